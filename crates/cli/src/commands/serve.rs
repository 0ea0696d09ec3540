//! `keyframe serve`, `status`, `token`, `audit`

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use jiff::Timestamp;
use keyframe_daemon::access::Tokens;
use keyframe_daemon::activation::Handed;
use keyframe_daemon::service::{self, Config};
use keyframe_daemon::{Doors, audit, server};
use keyframe_engine::{Error, Home};
use keyframe_types::text::span;
use serde_json::{Value, json};

use crate::output::{Output, table};
use crate::record::who_types;
use crate::serve_args::{AuditCommand, ServeArgs, StatusArgs, TokenCommand};

/// The longest answer of a daemon that is read, in bytes.
const ANSWER_MOST: u64 = 64 << 20;
/// How long a daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Exit statuses of `status --check`, as Nagios has them.
mod check {
    pub const WARNING: u8 = 1;
    pub const CRITICAL: u8 = 2;
    pub const UNKNOWN: u8 = 3;
}

/// The same, as every command tells it.
pub fn failed(error: keyframe_daemon::Error) -> Error {
    match error {
        keyframe_daemon::Error::Engine(error) => error,
        keyframe_daemon::Error::Io { action, path, source } => Error::Io { action, path, source },
        other => {
            let mut what = other.to_string();
            let mut cause = std::error::Error::source(&other);
            while let Some(inner) = cause {
                let _ = write!(what, ": {inner}");
                cause = inner.source();
            }
            Error::Failed { what }
        }
    }
}

/// `keyframe serve`
pub fn serve(home: &Home, args: ServeArgs, over: &Arc<AtomicBool>, output: &Output) -> Result<u8, Error> {
    // Before anything else runs: it takes what it finds out of the environment.
    let handed = Handed::of_environment().map_err(failed)?;
    let path = Path::new("/proc/self/exe");
    let program = std::env::current_exe().map_err(|source| Error::Io { action: "find", path: path.into(), source })?;
    let reload = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGHUP, Arc::clone(&reload)).map_err(|source| Error::Io {
        action: "listen for",
        path: "signals".into(),
        source,
    })?;
    let (home_of, version) = (home.clone(), crate::VERSION.to_owned());
    let config = Config { home: home_of, policies: args.policies, program, version, reload };
    let socket = server::socket(&service::directory(home));
    let told = |unheard: Option<&str>| {
        let mut text =
            format!("{} is served; the host's own users ask at {}\n", home.root().display(), socket.display());
        if let Some(what) = unheard {
            output.note(&format!("{what}; it is tried again and again"));
        } else if let Some(address) = args.listen {
            let _ = writeln!(
                text,
                "the dashboard is at https://{address}/, for those who have a token: `keyframe token add NAME --role read`"
            );
        }
        let _ = writeln!(
            text,
            "`keyframe status` says how everything is; Ctrl-C ends this, and what is at work then goes on"
        );
        output.result("serving", &json!({"home": home.root(), "socket": socket, "listen": args.listen}), text);
        let _ = std::io::stdout().flush();
    };
    keyframe_daemon::serve(config, Doors { handed, listen: args.listen }, over, told).map_err(failed)?;
    Ok(0)
}

/// What a daemon answered: the HTTP status, and a document.
pub type Answer = (u16, Value);

/// Talks to the daemon: asks, or with a body tells it to do something; nothing when there is none.
pub fn talk(home: &Path, path: &str, body: Option<&Value>) -> std::io::Result<Option<Answer>> {
    let stream = UnixStream::connect(server::socket(&home.join("serve")));
    let mut stream = match stream {
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        stream => stream?,
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let host = "HTTP/1.0\r\nHost: localhost\r\n";
    match body.map(Value::to_string) {
        None => write!(stream, "GET {path} {host}\r\n")?,
        Some(body) => write!(
            stream,
            "POST {path} {host}X-Keyframe: 1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?,
    }
    let mut answer = Vec::new();
    stream.take(ANSWER_MOST).read_to_end(&mut answer)?;
    let bad = || std::io::Error::other("no answer");
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").ok_or_else(bad)?;
    let head = String::from_utf8_lossy(&answer[..end]);
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(bad)?;
    let document = serde_json::from_slice(&answer[end + 4..]).map_err(std::io::Error::other)?;
    Ok(Some((status, document)))
}

/// That nobody answers.
pub fn nobody(home: &Path) -> Error {
    Error::Failed { what: format!("no daemon serves {}: start `keyframe serve`", home.display()) }
}

/// That the daemon cannot be asked.
pub fn unasked(home: &Path, source: std::io::Error) -> Error {
    Error::Io { action: "ask", path: server::socket(&home.join("serve")), source }
}

/// `keyframe status`
pub fn status(home: &Path, args: &StatusArgs, output: &Output) -> Result<u8, Error> {
    let answer = talk(home, "/api/v1/overview", None);
    let overview = match answer {
        Ok(Some((_, overview))) => overview,
        Ok(None) | Err(_) if args.check => {
            let what = match answer {
                Err(error) => format!("KEYFRAME UNKNOWN: the daemon does not answer: {error}\n"),
                Ok(_) => "KEYFRAME UNKNOWN: no daemon serves this home: `keyframe serve`\n".to_owned(),
            };
            output.result("status", &json!({"status": "unknown", "what": what.trim()}), what);
            return Ok(check::UNKNOWN);
        }
        Ok(None) => return Err(nobody(home)),
        Err(source) => return Err(unasked(home, source)),
    };
    let (status, word) = weighed(&overview);
    let text = if args.check { checked(&overview, word) } else { told(&overview) };
    let mut document = overview;
    document["status"] = json!(word.to_lowercase());
    output.result("status", &document, text);
    Ok(if args.check { status } else { 0 })
}

fn weighed(overview: &Value) -> (u8, &'static str) {
    let alerts = overview["alerts"].as_array().map(Vec::as_slice).unwrap_or_default();
    let now: Timestamp = overview["now"].as_str().and_then(|at| at.parse().ok()).unwrap_or(Timestamp::UNIX_EPOCH);
    if Timestamp::now().duration_since(now).as_secs() > 60 {
        return (check::CRITICAL, "CRITICAL");
    }
    if alerts.iter().any(|alert| alert["severity"] == "critical") {
        (check::CRITICAL, "CRITICAL")
    } else if !alerts.is_empty() || overview["paused"] == true {
        (check::WARNING, "WARNING")
    } else {
        (0, "OK")
    }
}

/// One line, with figures behind a bar.
fn checked(overview: &Value, word: &str) -> String {
    let counts = &overview["counts"];
    let first = overview["alerts"].get(0).map(|alert| {
        let machine = alert["machine"].as_str().map(|name| format!("{name}: ")).unwrap_or_default();
        format!("; {machine}{}", alert["what"].as_str().unwrap_or_default())
    });
    let first = if overview["paused"] == true && first.is_none() { Some("; it is paused".to_owned()) } else { first };
    // A bar begins the figures: none may stand in what is told.
    let first = first.unwrap_or_default().replace(['|', '\n'], " ");
    format!(
        "KEYFRAME {word}: {} of {} machines protected{first} | protected={} at_risk={} unprotected={} alerts={}\n",
        counts["protected"],
        counts["machines"],
        counts["protected"],
        counts["at_risk"],
        counts["unprotected"],
        counts["alerts"]
    )
}

fn told(overview: &Value) -> String {
    let counts = &overview["counts"];
    let now: Timestamp = overview["now"].as_str().and_then(|at| at.parse().ok()).unwrap_or(Timestamp::UNIX_EPOCH);
    let mut text = format!(
        "{} of {} machines are protected; {} job(s) at work, {} waiting{}\n",
        counts["protected"],
        counts["machines"],
        counts["jobs_running"],
        counts["jobs_waiting"],
        if overview["paused"] == true { "; PAUSED: nothing new is begun" } else { "" }
    );
    let age =
        |at: &Value| at.as_str().and_then(|at| at.parse::<Timestamp>().ok()).map(|at| now.duration_since(at).as_secs());
    let ago = |at: &Value| age(at).map_or("-".to_owned(), |age| span(age.try_into().unwrap_or(0)));
    let until = |at: &Value| {
        age(at).map_or("-".to_owned(), |age| {
            if age >= 0 { "now".to_owned() } else { format!("in {}", span(age.unsigned_abs())) }
        })
    };
    let mut rows = vec![
        ["MACHINE", "STATE", "VERDICT", "SNAPSHOT", "POINT", "DRILL", "NEXT", "POLICY"].map(str::to_owned).to_vec(),
    ];
    for row in overview["machines"].as_array().into_iter().flatten() {
        let word = |key: &str| row[key].as_str().unwrap_or("-").to_owned();
        let next = ["snapshot", "backup", "drill"].into_iter().filter(|what| row["next"][*what].is_string());
        let next = next.min_by_key(|what| row["next"][*what].as_str().unwrap_or_default().to_owned());
        let drill = match row["last_drill"]["passed"].as_bool() {
            None => "-".to_owned(),
            Some(passed) => format!("{} {}", if passed { "passed" } else { "FAILED" }, ago(&row["last_drill"]["at"])),
        };
        rows.push(vec![
            word("name"),
            word("state"),
            word("verdict"),
            ago(&row["last_snapshot"]),
            ago(&row["last_point"]["at"]),
            drill,
            next.map_or("-".to_owned(), |what| format!("{what} {}", until(&row["next"][what]))),
            word("policy"),
        ]);
    }
    text.push_str(&table(&rows));
    for alert in overview["alerts"].as_array().into_iter().flatten() {
        let machine = alert["machine"].as_str().map(|name| format!("{name}: ")).unwrap_or_default();
        let said = |key: &str| alert[key].as_str().unwrap_or_default();
        let _ = writeln!(text, "{}: {machine}{}\n  try: {}", said("severity"), said("what"), said("advice"));
    }
    text
}

/// `keyframe token`
pub fn token(home: &Home, command: TokenCommand, output: &Output) -> Result<u8, Error> {
    let serve = service::directory(home);
    let tokens = Tokens::of(&serve);
    let by = who_types();
    let note =
        |what: &str| audit::Audit::open(&serve).and_then(|mut audit| audit.add(Timestamp::now(), &by, what, "done"));
    match command {
        TokenCommand::Add { name, role } => {
            let secret = tokens.add(&name, role, Timestamp::now()).map_err(failed)?;
            note(&format!("token add {name} with the role {}", role.as_str())).map_err(failed)?;
            let document = json!({"name": name, "role": role, "token": secret});
            output.result("token", &document, format!("{secret}\n"));
            output.note("this is the only time that it is shown");
        }
        TokenCommand::List => {
            let all = tokens.all().map_err(failed)?;
            let mut rows = vec![["NAME", "ROLE", "SINCE"].map(str::to_owned).to_vec()];
            rows.extend(
                all.iter()
                    .map(|token| vec![token.name.clone(), token.role.as_str().to_owned(), token.created.to_string()]),
            );
            let text = if all.is_empty() {
                "there is no token; `keyframe token add NAME --role read` makes one\n".to_owned()
            } else {
                table(&rows)
            };
            let shown: Vec<Value> = all
                .iter()
                .map(|token| json!({"name": token.name, "role": token.role, "created": token.created}))
                .collect();
            output.result("tokens", &json!({"tokens": shown}), text);
        }
        TokenCommand::Revoke { name } => {
            tokens.revoke(&name).map_err(failed)?;
            note(&format!("token revoke {name}")).map_err(failed)?;
            output.result(
                "token",
                &json!({"name": name, "revoked": true}),
                format!("{name}'s token is worth nothing any more\n"),
            );
        }
    }
    Ok(0)
}

/// `keyframe audit`
pub fn audit(home: &Path, command: AuditCommand, output: &Output) -> Result<u8, Error> {
    let (entries, flaws) = audit::read(&home.join("serve")).map_err(failed)?;
    let head = entries.last().map(|entry| format!("{} {}", entry.n, entry.hash));
    match command {
        AuditCommand::List { last } => {
            let latest = &entries[entries.len().saturating_sub(last)..];
            let rows: Vec<Vec<String>> = latest
                .iter()
                .map(|entry| {
                    vec![
                        entry.n.to_string(),
                        entry.at.to_string(),
                        entry.who.clone(),
                        entry.told(),
                        entry.result.clone(),
                    ]
                })
                .collect();
            let text = if rows.is_empty() { "nothing is on record here\n".to_owned() } else { table(&rows) };
            output.result("audit", &json!({"entries": latest, "head": head}), text);
            Ok(0)
        }
        AuditCommand::Verify { head: wanted } => {
            let wanted = wanted.map(|text| text.split_whitespace().last().unwrap_or_default().to_owned());
            let anchored = wanted.is_some();
            let missing = wanted.filter(|hash| !entries.iter().any(|entry| entry.hash == *hash));
            let mut text = String::new();
            for flaw in &flaws {
                let _ = writeln!(text, "line {}: {}", flaw.line, flaw.what);
            }
            if let Some(hash) = &missing {
                let _ = writeln!(text, "the entry {hash} is not there: the log was cut short, or is another");
            }
            let sound = flaws.is_empty() && missing.is_none();
            if sound {
                let _ = writeln!(text, "all {} entries are as they were written", entries.len());
                if !anchored {
                    let _ = writeln!(
                        text,
                        "whether some are missing at the end, only a head that was kept elsewhere tells: --head"
                    );
                }
            }
            output.result(
                "audit-verified",
                &json!({"sound": sound, "entries": entries.len(), "flaws": flaws, "head": head}),
                text,
            );
            Ok(u8::from(!sound))
        }
        AuditCommand::Export => {
            for entry in &entries {
                output.line(&serde_json::to_string(entry).map_err(|source| Error::Encode { source })?);
            }
            Ok(0)
        }
    }
}
