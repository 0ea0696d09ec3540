//! The daemon's dashboard in a browser, and what every person does there: log in, go, confirm.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::browser::{Browser, key};
use crate::error::{Error, Result};
use crate::home::Home;

/// Where pictures go, if any are wanted.
const PICTURES: &str = "KEYFRAME_SCREENSHOTS";
/// Where a home usually is, which pictures show instead of a test's own.
const USUAL_HOME: &str = "/var/lib/keyframe";
/// How many steps of the tabulator are tried: no view has so many.
const TABS: usize = 80;

/// A dashboard with somebody in front of it.
pub struct Page {
    /// The browser that it is in.
    pub browser: Browser,
    address: String,
    pictures: Option<PathBuf>,
    home: PathBuf,
}

impl Page {
    /// A browser for a daemon of this home that listens on this port of the loopback interface. Nothing is opened yet.
    ///
    /// # Errors
    /// When no browser starts.
    pub fn of(home: &Home, port: u16) -> Result<Self> {
        let pictures = std::env::var_os(PICTURES).map(PathBuf::from);
        let address = format!("https://127.0.0.1:{port}/");
        Ok(Self { browser: Browser::start(home)?, address, pictures, home: home.path().to_owned() })
    }

    /// Loads it.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn open(&self) -> Result<()> {
        self.browser.open(&self.address)
    }

    /// Whether pictures are taken.
    #[must_use]
    pub fn takes_pictures(&self) -> bool {
        self.pictures.is_some()
    }

    /// Goes to a view by the page's own way, which does not load it anew, and waits until it is settled.
    ///
    /// # Errors
    /// As [`Browser::wait_until`].
    pub fn go(&self, view: &str) -> Result<()> {
        self.browser.script(&format!("location.hash = {}", json!(format!("#/{view}"))))?;
        self.settled()
    }

    /// Waits until nothing of the view is on its way any more.
    ///
    /// # Errors
    /// As [`Browser::wait_until`].
    pub fn settled(&self) -> Result<()> {
        self.browser.wait_until("!document.querySelector('main .loading')")
    }

    /// Shows a token, which may be one that is not known.
    ///
    /// # Errors
    /// As [`Browser::see`].
    pub fn show_token(&self, token: &str) -> Result<()> {
        self.browser.see("[data-dialog=login]")?;
        self.browser.script("document.getElementById('token').value = ''")?;
        self.browser.type_into("#token", token)?;
        self.browser.click("[data-action=log-in]")
    }

    /// Logs in with a token, and waits until changes are shown as they happen.
    ///
    /// # Errors
    /// As [`Browser::see`].
    pub fn log_in(&self, token: &str) -> Result<()> {
        self.show_token(token)?;
        self.browser.see("[data-connection=live]")
    }

    /// Logs out.
    ///
    /// # Errors
    /// As [`Browser::click`].
    pub fn log_out(&self) -> Result<()> {
        self.go("more")?;
        self.browser.click("[data-action=log-out]")
    }

    /// The plan of a dialog, once it is there: of what is chosen now.
    ///
    /// # Errors
    /// As [`Browser::text`].
    pub fn plan(&self, dialog: &str) -> Result<String> {
        self.browser.text(&format!("[data-dialog={dialog}] [data-plan=ready][aria-busy=false]"))
    }

    /// Says yes to a dialog, and waits until it is gone.
    ///
    /// # Errors
    /// As [`Browser::click`].
    pub fn confirm(&self, dialog: &str) -> Result<()> {
        self.browser.click(&format!("[data-dialog={dialog}] [data-action=confirm]"))?;
        self.gone(dialog)
    }

    /// Waits until a dialog is gone.
    ///
    /// # Errors
    /// As [`Browser::wait_until`].
    pub fn gone(&self, dialog: &str) -> Result<()> {
        self.browser.wait_until(&format!("!document.querySelector('[data-dialog={dialog}]')"))
    }

    /// Goes on with the tabulator until what has the focus matches.
    ///
    /// # Errors
    /// [`Error::Browser`] when it never does.
    pub fn tab_to(&self, selector: &str) -> Result<()> {
        let matches = format!("return document.activeElement.matches({})", json!(selector));
        for _ in 0..TABS {
            if self.browser.script(&matches)? == Value::Bool(true) {
                return Ok(());
            }
            self.browser.press(key::TAB)?;
        }
        let answer = format!("nothing like it had the focus within {TABS} steps");
        Err(Error::Browser { command: selector.to_owned(), answer })
    }

    /// Errors in the page's console since this was asked last, without those that only tell of an answer with one of these statuses.
    ///
    /// # Errors
    /// When the driver does not answer.
    pub fn complaints(&self, statuses: &[u16]) -> Result<Vec<String>> {
        let expected = |line: &String| statuses.iter().any(|status| line.contains(&format!("status of {status}")));
        Ok(self.browser.complaints()?.into_iter().filter(|line| !expected(line)).collect())
    }

    /// Whether nothing has to be scrolled for sideways in a window of this width.
    ///
    /// # Errors
    /// When the driver does not answer.
    pub fn is_no_wider_than(&self, width: u32) -> Result<bool> {
        let width = f64::from(width);
        let seen = self.browser.script("return [document.documentElement.scrollWidth, visualViewport.width]")?;
        Ok([&seen[0], &seen[1]].map(Value::as_f64) == [Some(width); 2])
    }

    /// Leaves a picture of the window, where pictures are wanted. Messages would lie above what is to be seen, and the pointer would
    /// light something up.
    ///
    /// # Errors
    /// When the driver does not answer; [`Error::File`] when it cannot be kept.
    pub fn picture(&self, name: &str) -> Result<()> {
        let Some(dir) = &self.pictures else { return Ok(()) };
        self.browser.wait_until("!document.querySelector('[data-toast=done]')")?;
        self.browser.point_at(0, 0)?;
        self.browser.script("scrollTo(0, 0); document.activeElement.blur()")?;
        let usual = format!(
            "const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT); \
             while (texts.nextNode()) texts.currentNode.data = texts.currentNode.data.replaceAll({}, {})",
            json!(self.home),
            json!(USUAL_HOME)
        );
        let own = format!("return document.body.textContent.includes({})", json!(self.home));
        let picture = loop {
            self.browser.script(&usual)?;
            let picture = self.browser.screenshot()?;
            // It may have been drawn anew meanwhile.
            if self.browser.script(&own)? == Value::Bool(false) {
                break picture;
            }
        };
        fs::create_dir_all(dir).map_err(Error::file("create", dir))?;
        let path = dir.join(format!("{name}.png"));
        fs::write(&path, picture).map_err(Error::file("write", &path))
    }

    /// The same of all of the page, as if the window were as high.
    ///
    /// # Errors
    /// As [`Page::picture`].
    pub fn whole_picture(&self, name: &str) -> Result<()> {
        if !self.takes_pictures() {
            return Ok(());
        }
        let sizes = self.browser.script("return [innerWidth, innerHeight, document.documentElement.scrollHeight]")?;
        let [width, height, whole] = [0, 1, 2].map(|at| sizes[at].as_u64().and_then(|n| u32::try_from(n).ok()));
        let [width, height, whole] = [width, height, whole].map(Option::unwrap_or_default);
        self.browser.size(width, whole, false)?;
        self.picture(name)?;
        self.browser.size(width, height, false)
    }
}
