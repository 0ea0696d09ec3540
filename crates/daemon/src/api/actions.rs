//! What is done: plans first.

use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use keyframe_types::{SnapshotName, TimeToLive, VmName};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Api;
use super::gate::{Refusal, allow};
use crate::access::{Caller, Role};
use crate::commands;
use crate::job::{Action, JobId};
use crate::service::Wish;
use crate::view::JobShown;

/// What somebody wants done.
#[derive(Debug, Deserialize)]
#[serde(tag = "action", rename_all = "lowercase")]
enum Wanted {
    Snapshot {
        note: Option<String>,
        #[serde(default)]
        disk_only: bool,
        ttl: Option<String>,
        #[serde(default)]
        pin: bool,
    },
    Backup {
        backup: String,
    },
    Drill {
        backup: String,
    },
    Revert {
        snapshot: String,
        #[serde(default)]
        discard: bool,
    },
    Fork {
        snapshot: String,
        name: String,
        #[serde(default = "one")]
        count: u32,
    },
    Delete {
        snapshots: Vec<String>,
    },
    Test {
        snapshot: String,
    },
    Start {},
    Stop {
        #[serde(default)]
        force: bool,
    },
}

/// How many snapshots one request deletes: all of them are in the log.
const DELETED_MOST: usize = 20;

fn one() -> u32 {
    1
}

/// The same, whether only to be told of it.
#[derive(Debug, Deserialize)]
pub struct Asked {
    #[serde(default, alias = "dry_run")]
    plan: bool,
    #[serde(flatten)]
    wanted: Wanted,
}

/// What is to be run, by whom it may be, and what that means.
struct Command {
    role: Role,
    action: Action,
    plan: Vec<String>,
}

/// A snapshot, by its name or id; nothing else gets onto a command line.
fn reference(vm: &VmName, snapshot: &str) -> Result<String, Refusal> {
    let name = SnapshotName::new(snapshot).map_err(|error| Refusal::bad(error.to_string()))?;
    Ok(format!("{vm}@{name}"))
}

fn command(vm: &VmName, wanted: Wanted) -> Result<Command, Refusal> {
    let name = vm.as_str();
    let made = |role, kind: &str, arguments: Vec<String>, backup: Option<String>, plan: Vec<String>| Command {
        role,
        action: Action { kind: kind.to_owned(), arguments, backup },
        plan,
    };
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    Ok(match wanted {
        Wanted::Snapshot { note, disk_only, ttl, pin } => {
            let mut arguments = words(&["snapshot", name]);
            if let Some(note) = note.filter(|note| !note.is_empty()) {
                arguments.push(format!("--note={}", note.chars().take(500).collect::<String>()));
            }
            arguments.extend(disk_only.then(|| "--disk-only".to_owned()));
            if let Some(ttl) = ttl.filter(|ttl| !ttl.is_empty()) {
                ttl.parse::<TimeToLive>().map_err(|error| Refusal::bad(error.to_string()))?;
                arguments.push(format!("--ttl={ttl}"));
            }
            arguments.extend(pin.then(|| "--pin".to_owned()));
            let what = if disk_only { "its disks" } else { "memory, devices and every disk" };
            let plan = format!("{name} is taken as it is: {what} of one instant; the guest works on");
            made(Role::Operate, "snapshot", arguments, None, vec![plan])
        }
        Wanted::Backup { backup } => {
            let plan = format!("a point of {name} is made in the repository of backup {backup}");
            made(Role::Operate, "backup", words(&["backup", name]), Some(backup), vec![plan])
        }
        Wanted::Drill { backup } => {
            let plan = format!(
                "the latest point of {name} in the repository of backup {backup} is restored into isolation, brought up, asked, and thrown away"
            );
            made(Role::Operate, "drill", words(&["drill", name]), Some(backup), vec![plan])
        }
        Wanted::Test { snapshot } => {
            let reference = reference(vm, &snapshot)?;
            let plan = format!("{reference} is brought up in isolation, asked, and thrown away");
            made(Role::Operate, "test", words(&["test", &reference]), None, vec![plan])
        }
        Wanted::Revert { snapshot, discard } => {
            let reference = reference(vm, &snapshot)?;
            let mut arguments = words(&["revert", &reference]);
            arguments.extend(discard.then(|| "--discard".to_owned()));
            let kept =
                if discard { "its present is NOT kept: it is gone" } else { "its present is kept as a snapshot first" };
            made(
                if discard { Role::Admin } else { Role::Restore },
                "revert",
                arguments,
                None,
                vec![format!("{name} goes back to {reference}, with its programs as they ran then"), kept.to_owned()],
            )
        }
        Wanted::Fork { snapshot, name: fork, count } => {
            let reference = reference(vm, &snapshot)?;
            let fork = VmName::new(fork).map_err(|error| Refusal::bad(error.to_string()))?;
            if !(1..=64).contains(&count) {
                return Err(Refusal::bad("from 1 to 64 machines at once"));
            }
            let arguments = words(&["fork", &reference, fork.as_str(), "--count", &count.to_string()]);
            let plan = format!("{count} machine(s) {fork} continue from {reference}, beside {name}");
            made(Role::Restore, "fork", arguments, None, vec![plan])
        }
        Wanted::Delete { snapshots } => {
            if !(1..=DELETED_MOST).contains(&snapshots.len()) {
                return Err(Refusal::bad(format!("from 1 to {DELETED_MOST} snapshots at once")));
            }
            let mut arguments = words(&["delete"]);
            for snapshot in &snapshots {
                arguments.push(reference(vm, snapshot)?);
            }
            made(Role::Admin, "delete", arguments, None, Vec::new())
        }
        Wanted::Start {} => {
            made(Role::Operate, "start", words(&["vm", "start", name]), None, vec![format!("{name} starts")])
        }
        Wanted::Stop { force } => {
            let mut arguments = words(&["vm", "stop", name]);
            arguments.extend(force.then(|| "--force".to_owned()));
            let how = if force { "is switched off as a power cut would" } else { "is shut down by its power button" };
            made(Role::Restore, "stop", arguments, None, vec![format!("{name} {how}")])
        }
    })
}

pub async fn act(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    Json(asked): Json<Asked>,
) -> Result<Response, Refusal> {
    let vm = VmName::new(name).map_err(|error| Refusal::nothing(error.to_string()))?;
    let view = api.shared.view();
    if !view.seen.contains_key(vm.as_str()) {
        return Err(Refusal::nothing(format!("there is no machine {vm}")));
    }
    let mut command = command(&vm, asked.wanted)?;
    allow(&caller, command.role)?;
    if let Some(backup) = &command.action.backup {
        let owed = view.owed.get(vm.as_str());
        if !owed.is_some_and(|owed| owed.backups.iter().any(|known| known.name.as_str() == backup)) {
            return Err(Refusal::nothing(format!("{vm}'s policy has no backup {backup}")));
        }
    }
    // As the policy's own: an easier one would say that all is well.
    let drill = view.owed.get(vm.as_str()).and_then(|owed| owed.drill.as_ref());
    if let Some(drill) = drill.filter(|_| command.action.kind == "drill") {
        command.action.arguments.extend(commands::asking(drill));
    }
    if asked.plan {
        let plan = if command.action.kind == "delete" { deletion(&api, &command.action).await? } else { command.plan };
        return Ok(Json(json!({"plan": plan})).into_response());
    }
    let job = api.shared.wish(Wish::Do(vm.to_string(), command.action), &caller.who).await?;
    let job = job.map(|job| JobShown::of(&job, None));
    Ok((StatusCode::ACCEPTED, Json(json!({"job": job}))).into_response())
}

/// What the command itself says that it would do.
async fn deletion(api: &Api, action: &Action) -> Result<Vec<String>, Refusal> {
    let mut arguments = action.arguments.clone();
    arguments.push("--dry-run".to_owned());
    let answer = api.asking.ask(arguments).await?;
    let text = String::from_utf8_lossy(&answer.output).into_owned();
    if answer.exit == Some(0) {
        return Ok(text.lines().map(str::to_owned).collect());
    }
    let said = answer.said.lines().find_map(|line| line.strip_prefix("error: "));
    Err(Refusal::new(StatusCode::CONFLICT, said.unwrap_or("it cannot be deleted").to_owned()))
}

pub async fn cancel(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    allow(&caller, Role::Operate)?;
    let id = JobId::try_from(id).map_err(|error| Refusal::nothing(error.to_string()))?;
    let job = api.shared.wish(Wish::Cancel(id), &caller.who).await?;
    Ok(Json(json!({"job": job.map(|job| JobShown::of(&job, None))})))
}

pub async fn pause(state: State<Api>, caller: Extension<Caller>) -> Result<Json<Value>, Refusal> {
    administer(state, caller, Wish::Pause(true)).await
}

pub async fn resume(state: State<Api>, caller: Extension<Caller>) -> Result<Json<Value>, Refusal> {
    administer(state, caller, Wish::Pause(false)).await
}

pub async fn reload(state: State<Api>, caller: Extension<Caller>) -> Result<Json<Value>, Refusal> {
    administer(state, caller, Wish::Reload).await
}

async fn administer(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    wish: Wish,
) -> Result<Json<Value>, Refusal> {
    allow(&caller, Role::Admin)?;
    api.shared.wish(wish, &caller.who).await?;
    Ok(Json(json!({})))
}
