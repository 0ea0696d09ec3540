//! A browser that a test sits at: Chromium without a window, driven through WebDriver.
//!
//! Source: <https://www.w3.org/TR/webdriver2/>, and `chromedriver`'s own `goog/cdp` and `se/log`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::home::Home;

/// Nothing that a page owes takes longer, on the slowest of machines.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The driver starts a browser before it answers.
const ANSWERS_WITHIN: Duration = Duration::from_secs(120);
const FLAGS: [&str; 10] = [
    "--headless=new",
    "--hide-scrollbars",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];
/// The name by which WebDriver marks the reference to an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// Keys that are no letters.
pub mod key {
    /// Enter.
    pub const ENTER: &str = "\u{e007}";
    /// Escape.
    pub const ESCAPE: &str = "\u{e00c}";
    /// The arrow down.
    pub const DOWN: &str = "\u{e015}";
    /// The tabulator.
    pub const TAB: &str = "\u{e004}";
}

/// A browser with one page. It ends when it is dropped, or with the home.
pub struct Browser {
    driver: Child,
    // When nobody reads it any more, the driver cannot write.
    _said: BufReader<ChildStdout>,
    port: u16,
    session: String,
}

impl Browser {
    /// Starts one, with a profile of its own in the home.
    ///
    /// # Errors
    /// When `chromedriver` or the browser does not start.
    pub fn start(home: &Home) -> Result<Self> {
        let (driver, said, port) = start_driver(home)?;
        let mut browser = Self { driver, _said: said, port, session: String::new() };
        let profile = format!("--user-data-dir={}", home.file("browser").display());
        let flags: Vec<&str> = FLAGS.into_iter().chain([profile.as_str(), "--window-size=1280,800"]).collect();
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "acceptInsecureCerts": true,
            "goog:chromeOptions": {"args": flags},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let made = browser.ask("POST", "/session", &wanted)?;
        browser.session = made["sessionId"].as_str().unwrap_or_default().to_owned();
        browser.size(1280, 800, false)?;
        Ok(browser)
    }

    /// Opens a page.
    ///
    /// # Errors
    /// When it cannot be loaded.
    pub fn open(&self, url: &str) -> Result<()> {
        self.command("POST", "url", &json!({"url": url})).map(drop)
    }

    /// The value of some JavaScript, written as the body of a function.
    ///
    /// # Errors
    /// When it throws.
    pub fn script(&self, body: &str) -> Result<Value> {
        self.command("POST", "execute/sync", &json!({"script": body, "args": []}))
    }

    /// The value of a promise.
    ///
    /// # Errors
    /// When it throws, or rejects.
    pub fn promise(&self, expression: &str) -> Result<Value> {
        let body = format!("const done = arguments[0]; ({expression}).then(done, (error) => done(String(error)));");
        self.command("POST", "execute/async", &json!({"script": body, "args": []}))
    }

    /// Waits until an expression is true of the page.
    ///
    /// # Errors
    /// [`Error::Browser`] with what the page shows, when it does not become so.
    pub fn wait_until(&self, expression: &str) -> Result<()> {
        self.wait_within(PATIENCE, expression)
    }

    /// The same for what takes longer or shorter.
    ///
    /// # Errors
    /// As [`Browser::wait_until`].
    pub fn wait_within(&self, within: Duration, expression: &str) -> Result<()> {
        let begun = Instant::now();
        while self.script(&format!("return Boolean({expression})"))? != Value::Bool(true) {
            if begun.elapsed() > within {
                let shown = self.script("return `${location.hash}\\n${document.body.innerText}`")?;
                return Err(trouble(expression, shown.as_str().unwrap_or_default()));
            }
            thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Waits until something is to be seen.
    ///
    /// # Errors
    /// As [`Browser::wait_until`].
    pub fn see(&self, selector: &str) -> Result<()> {
        self.wait_until(&format!("document.querySelector({})?.checkVisibility()", json!(selector)))
    }

    /// How many there are.
    ///
    /// # Errors
    /// When the driver does not answer.
    pub fn count(&self, selector: &str) -> Result<u64> {
        let found = self.script(&format!("return document.querySelectorAll({}).length", json!(selector)))?;
        Ok(found.as_u64().unwrap_or_default())
    }

    /// The text of the first one, once it is to be seen.
    ///
    /// # Errors
    /// As [`Browser::wait_until`].
    pub fn text(&self, selector: &str) -> Result<String> {
        self.see(selector)?;
        let text = self.script(&format!("return document.querySelector({}).innerText", json!(selector)))?;
        Ok(text.as_str().unwrap_or_default().to_owned())
    }

    /// Clicks where it is, as a person does, once that is possible: not while something else lies above it.
    ///
    /// # Errors
    /// With what the driver said last.
    pub fn click(&self, selector: &str) -> Result<()> {
        self.see(selector)?;
        self.wait_until(&format!("!document.querySelector({}).disabled", json!(selector)))?;
        self.with_element(selector, "click", &json!({}))
    }

    /// Types into a field, behind what is in it.
    ///
    /// # Errors
    /// With what the driver said last.
    pub fn type_into(&self, selector: &str, text: &str) -> Result<()> {
        self.see(selector)?;
        self.with_element(selector, "value", &json!({"text": text}))
    }

    /// Presses keys one after another, wherever the focus is.
    ///
    /// # Errors
    /// When the driver does not answer.
    pub fn press(&self, keys: &str) -> Result<()> {
        let strokes = |key: char| ["keyDown", "keyUp"].map(|kind| json!({"type": kind, "value": key.to_string()}));
        let strokes: Vec<Value> = keys.chars().flat_map(strokes).collect();
        self.act(&json!({"type": "key", "id": "keyboard", "actions": strokes}))
    }

    /// Moves the pointer there.
    ///
    /// # Errors
    /// When the driver does not answer.
    pub fn point_at(&self, x: u32, y: u32) -> Result<()> {
        let moved = json!({"type": "pointerMove", "x": x, "y": y, "duration": 0});
        self.act(&json!({"type": "pointer", "id": "mouse", "actions": [moved]}))
    }

    fn act(&self, action: &Value) -> Result<()> {
        self.command("POST", "actions", &json!({"actions": [action]})).map(drop)
    }

    /// Makes the page that large; a phone's page is scaled as a phone does.
    ///
    /// # Errors
    /// When the driver does not answer.
    pub fn size(&self, width: u32, height: u32, phone: bool) -> Result<()> {
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone});
        self.devtools("Emulation.setDeviceMetricsOverride", &metrics)
    }

    /// Runs some JavaScript in every page from now on, before anything of the page's own.
    ///
    /// # Errors
    /// When the driver does not answer.
    pub fn in_every_page(&self, source: &str) -> Result<()> {
        self.devtools("Page.addScriptToEvaluateOnNewDocument", &json!({"source": source}))
    }

    /// Whether its owner prefers dark colours.
    ///
    /// # Errors
    /// When the driver does not answer.
    pub fn dark(&self, is: bool) -> Result<()> {
        let value = if is { "dark" } else { "light" };
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": value}]});
        self.devtools("Emulation.setEmulatedMedia", &features)
    }

    /// A picture of what is shown: PNG.
    ///
    /// # Errors
    /// When the driver does not answer.
    pub fn screenshot(&self) -> Result<Vec<u8>> {
        let told = self.command("GET", "screenshot", &Value::Null)?;
        STANDARD.decode(told.as_str().unwrap_or_default()).map_err(|error| trouble("screenshot", &error.to_string()))
    }

    /// Errors in the page's console since this was asked last.
    ///
    /// # Errors
    /// When the driver does not answer.
    pub fn complaints(&self) -> Result<Vec<String>> {
        let told = self.command("POST", "se/log", &json!({"type": "browser"}))?;
        let severe = told.as_array().into_iter().flatten().filter(|entry| entry["level"] == "SEVERE");
        Ok(severe.map(|entry| entry["message"].as_str().unwrap_or_default().to_owned()).collect())
    }

    fn devtools(&self, command: &str, parameters: &Value) -> Result<()> {
        self.command("POST", "goog/cdp/execute", &json!({"cmd": command, "params": parameters})).map(drop)
    }

    /// The page may draw the element anew in between, or move it: another try then.
    fn with_element(&self, selector: &str, what: &str, body: &Value) -> Result<()> {
        let begun = Instant::now();
        loop {
            let done = self.command("POST", "element", &json!({"using": "css selector", "value": selector})).and_then(
                |found| {
                    let id = found[ELEMENT].as_str().unwrap_or_default();
                    self.command("POST", &format!("element/{id}/{what}"), body)
                },
            );
            match done {
                Err(error) if begun.elapsed() > PATIENCE => return Err(error),
                Err(_) => thread::sleep(LOOK_EVERY),
                Ok(_) => return Ok(()),
            }
        }
    }

    fn command(&self, method: &str, what: &str, body: &Value) -> Result<Value> {
        self.ask(method, &format!("/session/{}/{what}", self.session), body)
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let (status, body) = self.talk(method, path, body).map_err(|error| trouble(path, &error.to_string()))?;
        let mut told: Value = serde_json::from_slice(&body).unwrap_or_default();
        if status != 200 {
            return Err(trouble(path, &String::from_utf8_lossy(&body)));
        }
        Ok(told["value"].take())
    }

    fn talk(&self, method: &str, path: &str, body: &Value) -> std::io::Result<(u16, Vec<u8>)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(ANSWERS_WITHIN))?;
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let host = format!("127.0.0.1:{}", self.port);
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        read_answer(&mut BufReader::new(stream))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The browser ends with its session. What does not end so, ends with the home.
        let _gone_already = self.ask("DELETE", &format!("/session/{}", self.session), &Value::Null);
        let _gone_already = self.driver.kill();
        let _gone_already = self.driver.wait();
    }
}

/// Status and body. The end of the connection is not waited for: a browser that the driver started holds it open.
fn read_answer(from: &mut impl BufRead) -> std::io::Result<(u16, Vec<u8>)> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let mut length = 0;
    while line.trim() != "" {
        line.clear();
        from.read_line(&mut line)?;
        let header = line.to_ascii_lowercase();
        if let Some(told) = header.strip_prefix("content-length:") {
            length = told.trim().parse().unwrap_or(0);
        }
    }
    let mut body = Vec::new();
    from.take(length).read_to_end(&mut body)?;
    Ok((status, body))
}

/// The driver chooses a port, and says which.
fn start_driver(home: &Home) -> Result<(Child, BufReader<ChildStdout>, u16)> {
    let program = "chromedriver";
    let failed = |source| Error::Run { program: program.to_owned(), source };
    let log: PathBuf = home.file("chromedriver.log");
    let mut command = Command::new(program);
    command.arg("--port=0").arg(format!("--log-path={}", log.display())).env("KEYFRAME_HOME", home.path());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut driver = command.spawn().map_err(failed)?;
    let pipe = driver.stdout.take().ok_or_else(|| failed(std::io::ErrorKind::BrokenPipe.into()))?;
    let mut said = BufReader::new(pipe);
    let mut line = String::new();
    while said.read_line(&mut line).map_err(failed)? > 0 {
        let port = line.trim().rsplit_once("on port ").and_then(|(_, port)| port.trim_end_matches('.').parse().ok());
        if let Some(port) = port.filter(|port| *port != 0) {
            return Ok((driver, said, port));
        }
        line.clear();
    }
    Err(trouble(program, "it did not say on which port it listens"))
}

fn trouble(command: &str, answer: &str) -> Error {
    Error::Browser { command: command.to_owned(), answer: answer.to_owned() }
}
