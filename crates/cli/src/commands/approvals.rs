//! `keyframe approvals`: what waits for a second person, decided on the daemon's socket by the user that runs this.

use std::fmt::Write as _;
use std::path::Path;

use keyframe_engine::Error;
use serde_json::{Value, json};

use super::serve::{nobody, talk, unasked};
use crate::output::{Output, table};
use crate::serve_args::ApprovalsCommand;

const PATH: &str = "/api/v1/approvals";

/// Runs it.
pub fn run(home: &Path, command: ApprovalsCommand, output: &Output) -> Result<u8, Error> {
    let (id, decision) = match command {
        ApprovalsCommand::List => {
            let document = asked(home, PATH, None)?;
            output.result("approvals", &document, told(&document));
            return Ok(0);
        }
        ApprovalsCommand::Approve { id } => (id, "approve"),
        ApprovalsCommand::Refuse { id } => (id, "refuse"),
        ApprovalsCommand::Withdraw { id } => (id, "withdraw"),
    };
    let document = asked(home, &format!("{PATH}/{id}"), Some(&json!({"decision": decision})))?;
    let approval = &document["approval"];
    let word = |key: &str| approval[key].as_str().unwrap_or_default();
    let job = approval["job"].as_str().map(|job| format!("; its job is {job}")).unwrap_or_default();
    let text = format!("the {} of {} is {}{job}\n", word("kind"), word("machine"), word("state"));
    output.result("approval", &document, text);
    Ok(0)
}

fn asked(home: &Path, path: &str, body: Option<&Value>) -> Result<Value, Error> {
    let (status, document) =
        talk(home, path, body).map_err(|source| unasked(home, source))?.ok_or_else(|| nobody(home))?;
    if (200..300).contains(&status) {
        return Ok(document);
    }
    let said = document["error"].as_str().map_or_else(|| format!("the daemon answered {status}"), str::to_owned);
    let advice = document["advice"].as_str().map(|advice| format!(": {advice}")).unwrap_or_default();
    Err(Error::Failed { what: format!("{said}{advice}") })
}

fn told(document: &Value) -> String {
    let all = document["approvals"].as_array().map(Vec::as_slice).unwrap_or_default();
    let (waiting, decided): (Vec<&Value>, Vec<&Value>) = all.iter().partition(|one| one["state"] == "waiting");
    let mut text = String::new();
    if waiting.is_empty() {
        text.push_str("nothing waits for an approval\n");
    }
    for one in waiting {
        let word = |key: &str| one[key].as_str().unwrap_or_default();
        let words = |key: &str| one[key].as_array().into_iter().flatten().filter_map(Value::as_str);
        let _ =
            writeln!(text, "{}: {} asked at {}, it waits until {}", word("id"), word("by"), word("at"), word("until"));
        let _ = writeln!(text, "  keyframe {}", words("arguments").collect::<Vec<_>>().join(" "));
        for line in words("plan") {
            let _ = writeln!(text, "  {line}");
        }
        let _ = writeln!(text, "  another one with the role {} decides", word("role"));
    }
    if !decided.is_empty() {
        let mut rows =
            vec![["DECIDED", "OUTCOME", "WHAT", "ASKED BY", "DECIDED BY", "JOB"].map(str::to_owned).to_vec()];
        rows.extend(decided.iter().map(|one| {
            let word = |key: &str| one[key].as_str().unwrap_or("-").to_owned();
            let what = format!("{} {}", word("kind"), word("machine"));
            vec![word("decided_at"), word("state"), what, word("by"), word("decided_by"), word("job")]
        }));
        text.push_str(&table(&rows));
    }
    text
}
