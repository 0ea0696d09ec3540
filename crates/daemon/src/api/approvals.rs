//! What waits for a second person: what it is, and what somebody says to it.

use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use keyframe_engine::tree::{SnapshotSummary, Tree};
use keyframe_types::VmName;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Api;
use super::actions::planned;
use super::answers::aside;
use super::gate::{Refusal, allow};
use crate::access::Caller;
use crate::approvals::{Approval, ApprovalId, Decision};
use crate::deeds::Deed;
use crate::error::Error;
use crate::fleet::tree_of;
use crate::service::{Granted, Wish};

/// One, as it is shown.
pub fn shown(approval: &Approval) -> Value {
    let decided = approval.decided.as_ref();
    json!({
        "id": approval.id, "state": approval.state, "by": approval.by, "at": approval.at, "until": approval.until,
        "machine": approval.machine, "kind": approval.action.kind, "arguments": approval.action.arguments,
        "role": approval.role, "plan": approval.plan, "decided_by": decided.map(|decided| &decided.by),
        "decided_at": decided.map(|decided| decided.at), "job": approval.job,
    })
}

pub async fn list(State(api): State<Api>) -> Json<Value> {
    let view = api.shared.view();
    let all: Vec<Value> = view.approvals.iter().map(shown).collect();
    Json(json!({"schema": "keyframe.approvals/1", "approvals": all}))
}

fn known(api: &Api, id: String) -> Result<Approval, Refusal> {
    let id = ApprovalId::try_from(id).map_err(|error| Refusal::nothing(error.to_string()))?;
    let view = api.shared.view();
    let found = view.approvals.iter().find(|approval| approval.id == id).cloned();
    found.ok_or_else(|| Refusal::nothing(format!("there is no request {id}")))
}

pub async fn one(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<Value>, Refusal> {
    Ok(Json(json!({"schema": "keyframe.approval/1", "approval": shown(&known(&api, id)?)})))
}

#[derive(Debug, Deserialize)]
pub struct Said {
    decision: Decision,
}

pub async fn decide(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Json(Said { decision }): Json<Said>,
) -> Result<Json<Value>, Refusal> {
    let approval = known(&api, id)?;
    // Who may not do it is told nothing of whether it could be done. Whether they may decide is for the one who keeps it.
    allow(&caller, approval.role)?;
    if decision == Decision::Approve {
        still_there(&api, &approval).await?;
    }
    let wish = Wish::Decide(approval.id.clone(), decision, caller.role);
    match api.shared.wish(wish, &caller.who).await? {
        Granted::Request(approval) => Ok(Json(json!({"approval": shown(&approval)}))),
        Granted::Done | Granted::Job(_) => Err(Refusal::nothing("there is no such request")),
    }
}

/// The snapshot that a command would take: of that name, or the only one whose id begins so.
fn found<'t>(tree: &'t Tree, text: &str) -> Option<&'t SnapshotSummary> {
    let named = tree.snapshots.iter().find(|one| one.name == text);
    let mut begins = tree.snapshots.iter().filter(|one| one.id.as_str().starts_with(text));
    named.or_else(|| begins.next().filter(|_| begins.next().is_none()))
}

async fn tree(api: &Api, machine: &VmName) -> Result<Tree, Refusal> {
    let (shared, machine) = (api.shared.clone(), machine.clone());
    aside(move || tree_of(&shared.home, &machine)).await
}

/// The same deed with its whole plan, and each snapshot by its id: another one that gets its name meanwhile is not meant.
pub async fn pinned(api: &Api, deed: Deed) -> Result<Deed, Refusal> {
    let (machine, mut wanted, mut which) = (deed.machine, deed.wanted, Vec::new());
    if !wanted.snapshots().is_empty() {
        let tree = tree(api, &machine).await?;
        for snapshot in wanted.snapshots() {
            let one = found(&tree, snapshot).ok_or_else(|| {
                Refusal::new(StatusCode::CONFLICT, format!("{machine} has no snapshot {snapshot}, or several"))
            })?;
            which.push(format!("{machine}@{} is {}, taken at {}", one.id, one.name, one.created));
            *snapshot = one.id.to_string();
        }
    }
    let mut pinned = Deed::of(&machine, wanted).map_err(Refusal::bad)?;
    pinned.plan = planned(api, &pinned).await?;
    pinned.plan.extend(which);
    Ok(pinned)
}

/// Whether what was shown is still what would be done.
async fn still_there(api: &Api, approval: &Approval) -> Result<(), Refusal> {
    let mut wanted = approval.wanted.clone();
    let machine = VmName::new(&approval.machine).map_err(|error| Error::Refused(error.to_string()))?;
    let gone =
        |what: String| Refusal::new(StatusCode::CONFLICT, what).with("refuse it, and ask for what is to be done now");
    if !api.shared.view().seen.contains_key(machine.as_str()) {
        return Err(gone(format!("there is no machine {machine} any more")));
    }
    if wanted.snapshots().is_empty() {
        return Ok(());
    }
    let tree = tree(api, &machine).await?;
    for snapshot in wanted.snapshots() {
        let named = tree.snapshots.iter().any(|one| one.name == *snapshot);
        if named || !tree.snapshots.iter().any(|one| one.id.as_str() == snapshot.as_str()) {
            return Err(gone(format!("{machine} has no snapshot {snapshot} any more")));
        }
    }
    Ok(())
}
