//! What is done: plans first.

use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use keyframe_types::VmName;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Api;
use super::approvals;
use super::gate::{Refusal, allow};
use crate::access::{Caller, Role};
use crate::commands;
use crate::deeds::{Deed, Wanted};
use crate::job::{Action, JobId};
use crate::service::{Granted, Wish};
use crate::view::JobShown;

/// What somebody wants done, or only to be told of.
#[derive(Debug, Deserialize)]
pub struct Asked {
    #[serde(default, alias = "dry_run")]
    plan: bool,
    #[serde(flatten)]
    wanted: Wanted,
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
    let mut deed = Deed::of(&vm, asked.wanted).map_err(Refusal::bad)?;
    allow(&caller, deed.role)?;
    if let Some(backup) = &deed.action.backup {
        let owed = view.owed.get(vm.as_str());
        if !owed.is_some_and(|owed| owed.backups.iter().any(|known| known.name.as_str() == backup)) {
            return Err(Refusal::nothing(format!("{vm}'s policy has no backup {backup}")));
        }
    }
    // As the policy's own: an easier one would say that all is well.
    let drill = view.owed.get(vm.as_str()).and_then(|owed| owed.drill.as_ref());
    if let Some(drill) = drill.filter(|_| deed.action.kind == "drill") {
        deed.action.arguments.extend(commands::asking(drill));
    }
    let rule = &view.overview.approval;
    let needs_approval = deed.wanted.needs().iter().any(|need| rule.asked_for.contains(need));
    if asked.plan {
        let approval = needs_approval.then(|| json!({"valid_s": rule.valid_s}));
        return Ok(Json(json!({"plan": planned(&api, &deed).await?, "approval": approval})).into_response());
    }
    let wish = if needs_approval { Wish::AskFor(approvals::pinned(&api, deed).await?) } else { Wish::Do(deed) };
    let (job, approval) = match api.shared.wish(wish, &caller.who).await? {
        Granted::Job(job) => (Some(JobShown::of(&job, None)), None),
        Granted::Request(approval) => (None, Some(approvals::shown(&approval))),
        Granted::Done => (None, None),
    };
    Ok((StatusCode::ACCEPTED, Json(json!({"job": job, "approval": approval}))).into_response())
}

/// What it would do.
pub async fn planned(api: &Api, deed: &Deed) -> Result<Vec<String>, Refusal> {
    if deed.action.kind == "delete" { deletion(api, &deed.action).await } else { Ok(deed.plan.clone()) }
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
    let job = match api.shared.wish(Wish::Cancel(id), &caller.who).await? {
        Granted::Job(job) => Some(JobShown::of(&job, None)),
        Granted::Done | Granted::Request(_) => None,
    };
    Ok(Json(json!({"job": job})))
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
