//! What is looked at.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::extract::{Extension, Path, Query, State};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use jiff::civil::Date;
use jiff::{Timestamp, ToSpan as _};
use keyframe_engine::evidence::Ledger;
use keyframe_policy::{BackupPolicy, Plan, What};
use keyframe_types::VmName;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;
use tokio_stream::wrappers::{BroadcastStream, WatchStream};

use super::Api;
use super::gate::{Refusal, allow};
use crate::access::{Caller, Role};
use crate::catalog::Wanted;
use crate::commands;
use crate::error::Error;
use crate::fleet::tree_of;
use crate::job::{Job, JobId, State as JobState};
use crate::view::{JobShown, View};

/// How many entries an answer lists at most.
const MOST: usize = 1000;
/// How many days a calendar shows at most, each way.
const DAYS_MOST: u32 = 366;
/// Of how many commands of a job, the latest, it is told what they said.
const COMMANDS_SHOWN: u32 = 8;
/// How much of what a command said is shown, in bytes.
const LOG_SHOWN: u64 = 16 << 10;

pub async fn overview(State(api): State<Api>) -> Response {
    let view = api.shared.view();
    Json(&view.overview).into_response()
}

pub async fn machines(State(api): State<Api>) -> Response {
    let view = api.shared.view();
    Json(json!({"schema": "keyframe.machines/1", "machines": view.overview.machines})).into_response()
}

/// A machine that is there.
fn known(view: &View, name: &str) -> Result<VmName, Refusal> {
    let missing = || Refusal::nothing(format!("there is no machine {name:?}"));
    if !view.seen.contains_key(name) {
        return Err(missing());
    }
    VmName::new(name).map_err(|_| missing())
}

/// Does what takes a while where it holds up nobody.
pub async fn aside<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|error| Error::Refused(format!("the answer could not be made: {error}")))??)
}

pub async fn machine(State(api): State<Api>, Path(name): Path<String>) -> Result<Json<Value>, Refusal> {
    let view = api.shared.view();
    let vm = known(&view, &name)?;
    let row = view.overview.machines.iter().find(|row| row.name == name).cloned();
    let seen = view.seen.get(&name).cloned().unwrap_or_default();
    let shared = api.shared.clone();
    let (tree, jobs) = aside(move || {
        let tree = tree_of(&shared.home, &vm);
        let wanted = Wanted { machine: Some(vm.to_string()), limit: 50, ..Wanted::default() };
        let jobs = shared.catalog()?.jobs(&wanted)?;
        Ok((tree.map(|tree| json!(tree)).map_err(|error| error.to_string()), jobs))
    })
    .await?;
    let disks: Vec<Value> =
        seen.disks.iter().map(|(id, file)| json!({"id": id, "file": file, "size_bytes": null})).collect();
    let jobs = with_progress(&jobs, &view);
    let (tree, tree_trouble) = match tree {
        Ok(tree) => (Some(tree), None),
        Err(trouble) => (None, Some(trouble)),
    };
    Ok(Json(json!({
        "schema": "keyframe.machine/1",
        "row": row,
        "memory_bytes": seen.memory_bytes,
        "cpus": seen.cpus,
        "disks": disks,
        "owed": view.owed.get(&name),
        "tree": tree,
        "tree_trouble": tree_trouble,
        "jobs": jobs,
    })))
}

fn backup<'v>(view: &'v View, machine: &str, name: &str) -> Result<&'v BackupPolicy, Refusal> {
    let owed = view.owed.get(machine);
    let found = owed.and_then(|owed| owed.backups.iter().find(|backup| backup.name.as_str() == name));
    found.ok_or_else(|| Refusal::nothing(format!("{machine}'s policy has no backup {name:?}")))
}

pub async fn points(State(api): State<Api>, Path(name): Path<String>) -> Result<Json<Value>, Refusal> {
    let view = api.shared.view();
    known(&view, &name)?;
    let (mut all, mut problems) = (Vec::new(), Vec::new());
    for backup in view.owed.get(&name).into_iter().flat_map(|owed| &owed.backups) {
        let mut arguments = vec!["points".to_owned(), name.clone()];
        arguments.extend(commands::place(backup, None));
        match api.asking.document(arguments).await {
            Ok(document) => {
                let points = document["points"].as_array().cloned().unwrap_or_default();
                all.extend(points.iter().map(|point| {
                    json!({
                        "backup": backup.name, "id": point["id"], "created": point["state_of"],
                        "consistency": point["consistency"], "memory": point["memory"],
                        "bytes": point["totals"]["logical_bytes"], "new_bytes": point["totals"]["new_bytes"],
                        "locked_until": point["locked_until"], "hold": !point["held"].is_null(),
                        "drilled": point["drilled"], "tags": point["tags"],
                    })
                }));
            }
            Err(refusal) => problems.push(json!({"backup": backup.name, "what": refusal.what()})),
        }
    }
    Ok(Json(json!({"schema": "keyframe.machine-points/1", "points": all, "problems": problems})))
}

#[derive(Debug, Deserialize)]
pub struct Days {
    #[serde(default = "thirty")]
    days: u32,
}

fn thirty() -> u32 {
    30
}

#[derive(Debug, Default, serde::Serialize)]
struct PastDay {
    snapshots: u32,
    points: u32,
    drills_passed: u32,
    drills_failed: u32,
    failed: u32,
}

pub async fn calendar(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(Days { days }): Query<Days>,
) -> Result<Json<Value>, Refusal> {
    let view = api.shared.view();
    known(&view, &name)?;
    let days = days.clamp(1, DAYS_MOST);
    let now = Timestamp::now();
    let owed = view.owed.get(&name).cloned();
    let shared = api.shared.clone();
    aside(move || {
        let zone = owed.as_ref().map_or(jiff::tz::TimeZone::UTC, |owed| owed.time_zone.clone());
        let today = zone.to_datetime(now).date();
        let first = today.checked_sub(i64::from(days - 1).days()).unwrap_or(today);
        let from = first.to_zoned(zone.clone()).map_or(now, |at| at.timestamp());
        let mut past: BTreeMap<Date, PastDay> =
            first.series(1.day()).take(days as usize).map(|date| (date, PastDay::default())).collect();
        for job in shared.catalog()?.ended_since(Some(&name), from, Timestamp::MAX)? {
            let date = zone.to_datetime(job.ended.unwrap_or(now)).date();
            let Some(day) = past.get_mut(&date) else { continue };
            match (job.kind(), job.state, job.refuted) {
                ("drill" | "test", JobState::Failed, true) => day.drills_failed += 1,
                ("drill" | "test", JobState::Done | JobState::Incomplete, _) => day.drills_passed += 1,
                ("snapshot", JobState::Done | JobState::Incomplete, _) => day.snapshots += 1,
                ("backup", JobState::Done | JobState::Incomplete, _) => day.points += 1,
                (_, JobState::Failed, _) => day.failed += 1,
                _ => {}
            }
        }
        let past: Vec<Value> = past
            .into_iter()
            .map(|(date, day)| {
                let mut shown = json!(day);
                shown["date"] = json!(date);
                shown
            })
            .collect();
        let coming = owed.map(|owed| coming(&Plan::of(&owed, now, days))).unwrap_or_default();
        Ok(Json(json!({"schema": "keyframe.calendar/1", "past": past, "coming": coming})))
    })
    .await
}

fn coming(plan: &Plan) -> Vec<Value> {
    let day = |day: &keyframe_policy::Day| {
        let count = |is: fn(&What) -> bool| day.events.iter().filter(|event| is(&event.what)).count();
        json!({
            "date": day.date,
            "snapshots": count(|what| matches!(what, What::Snapshot)),
            "points": count(|what| matches!(what, What::Point(_))),
            "drills": count(|what| matches!(what, What::Drill)),
        })
    };
    plan.days.iter().map(day).collect()
}

#[derive(Debug, Deserialize)]
pub struct JobsWanted {
    machine: Option<String>,
    state: Option<JobState>,
    limit: Option<u32>,
}

/// Jobs as they are shown: how far those are that are not over.
fn with_progress(jobs: &[Job], view: &View) -> Vec<JobShown> {
    let live: BTreeMap<&JobId, &JobShown> = view.overview.jobs.iter().map(|job| (&job.id, job)).collect();
    let shown = |job: &Job| match live.get(&job.id).filter(|_| !job.state.is_over()) {
        Some(shown) => (*shown).clone(),
        None => JobShown::of(job, None),
    };
    jobs.iter().map(shown).collect()
}

pub async fn jobs(State(api): State<Api>, Query(wanted): Query<JobsWanted>) -> Result<Json<Value>, Refusal> {
    let wanted = Wanted {
        machine: wanted.machine,
        state: wanted.state,
        limit: (wanted.limit.unwrap_or(100) as usize).min(MOST),
    };
    let shared = api.shared.clone();
    let jobs = aside(move || shared.catalog()?.jobs(&wanted)).await?;
    let view = api.shared.view();
    let shown = with_progress(&jobs, &view);
    Ok(Json(json!({"schema": "keyframe.jobs/1", "jobs": shown})))
}

pub async fn job(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<Value>, Refusal> {
    let id = JobId::try_from(id).map_err(|error| Refusal::nothing(error.to_string()))?;
    let shared = api.shared.clone();
    let found = aside(move || {
        let Some(job) = shared.catalog()?.job(&id)? else { return Ok(None) };
        // The command before the present one said more than one that has just begun.
        let latest = job.commands.saturating_sub(COMMANDS_SHOWN) + 1..=job.commands;
        let log: String = latest.clone().map(|number| shared.records.log(&id, number, LOG_SHOWN)).collect();
        let result = latest.rev().find_map(|number| shared.records.document(&id, number));
        let progress = (job.state == JobState::Running).then(|| shared.records.progress(&id, job.commands)).flatten();
        Ok(Some(json!({"schema": "keyframe.job/1", "job": JobShown::of(&job, progress), "log": log, "result": result})))
    });
    let found = found.await?;
    Ok(Json(found.ok_or_else(|| Refusal::nothing("there is no such job"))?))
}

#[derive(Debug, Deserialize)]
pub struct DrillsWanted {
    machine: Option<String>,
}

pub async fn drills(State(api): State<Api>, Query(wanted): Query<DrillsWanted>) -> Result<Json<Value>, Refusal> {
    let shared = api.shared.clone();
    aside(move || {
        let ledger = Ledger::of(&shared.home);
        let lines = ledger.lines()?;
        let of_machine = |point: &str| point.split('@').next().unwrap_or_default().to_owned();
        let wanted = |point: &str| wanted.machine.as_ref().is_none_or(|machine| *machine == of_machine(point));
        let entries = lines.iter().rev().map(|line| &line.entry).filter(|entry| wanted(&entry.point)).take(200);
        let shown = |entry: &keyframe_engine::evidence::Entry| {
            let document: Value = std::fs::read(ledger.dir().join(&entry.document))
                .ok()
                .and_then(|bytes| serde_json::from_slice(&bytes).ok())
                .unwrap_or_default();
            let id = entry.document.parent().map(|parent| parent.to_string_lossy().into_owned()).unwrap_or_default();
            let ways: Vec<Value> =
                ["resume", "cold"].iter().filter_map(|way| way_shown(way, &document[*way])).collect();
            let has_screen = ["resume", "cold"].iter().any(|way| document[*way]["screenshot"].is_string());
            json!({
                "id": id, "at": entry.at, "machine": of_machine(&entry.point), "what": "point", "target": entry.point,
                "passed": entry.verdict.as_str() == "passed", "ways": ways, "trouble": document["trouble"],
                "restored_ms": document["restored_ms"], "total_ms": document["total_ms"],
                "screenshot": has_screen.then(|| format!("/api/v1/drills/{id}/screen.png")),
                "page": format!("/api/v1/drills/{id}/page.html"),
            })
        };
        Ok(Json(json!({"schema": "keyframe.drills/1", "drills": entries.map(shown).collect::<Vec<_>>()})))
    })
    .await
}

fn way_shown(way: &str, record: &Value) -> Option<Value> {
    let checks = record.as_object()?.get("checks")?.as_array()?;
    let after = |name: &str| checks.iter().find(|check| check["name"] == name).map(|check| check["after_ms"].clone());
    let failed = checks.iter().find(|check| check["passed"] == false);
    let why = failed.map(|check| {
        format!("{}: {}", check["name"].as_str().unwrap_or("?"), check["seen"].as_str().unwrap_or_default())
    });
    Some(json!({
        "way": way, "passed": record["verdict"] == "passed", "vcpus_ms": record["running_ms"],
        "agent_ms": after("agent"), "all_ms": record["total_ms"], "why": why,
    }))
}

/// A file of a drill's evidence: of a drill that is in the log, and of names that its document has.
async fn evidence(
    api: &Api,
    id: String,
    pick: impl FnOnce(&Value) -> Option<String> + Send + 'static,
) -> Result<Vec<u8>, Refusal> {
    let shared = api.shared.clone();
    let read = aside(move || {
        let ledger = Ledger::of(&shared.home);
        let lines = ledger.lines()?;
        let line =
            lines.iter().find(|line| line.entry.document.parent().is_some_and(|parent| parent.to_string_lossy() == id));
        let Some(line) = line else { return Ok(None) };
        let path = ledger.dir().join(&line.entry.document);
        let document: Value =
            std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let name = pick(&document).filter(|name| !name.contains('/') && !name.starts_with('.'));
        Ok(name.and_then(|name| std::fs::read(path.with_file_name(name)).ok()))
    });
    read.await?.ok_or_else(|| Refusal::nothing("there is no such evidence"))
}

pub async fn drill_page(State(api): State<Api>, Path(id): Path<String>) -> Result<Response, Refusal> {
    let page = evidence(&api, id, |_| Some("drill.html".to_owned())).await?;
    Ok(([(CONTENT_TYPE, "text/html; charset=utf-8")], page).into_response())
}

pub async fn drill_screen(State(api): State<Api>, Path(id): Path<String>) -> Result<Response, Refusal> {
    let screen = evidence(&api, id, |document| {
        ["cold", "resume"].iter().find_map(|way| document[*way]["screenshot"].as_str().map(str::to_owned))
    });
    Ok(([(CONTENT_TYPE, "image/png")], screen.await?).into_response())
}

#[derive(Debug, Deserialize)]
pub struct InPoint {
    #[serde(default)]
    path: String,
}

/// A point on a command line: only what its id can be.
fn point_named(machine: &str, point: &str) -> Result<String, Refusal> {
    let plain = point.bytes().all(|byte| byte.is_ascii_hexdigit()) && (8..=64).contains(&point.len());
    if plain { Ok(format!("{machine}@{point}")) } else { Err(Refusal::nothing("that is no point's id")) }
}

fn in_point(
    api: &Api,
    caller: &Caller,
    place: &(String, String, String),
    what: &[&str],
) -> Result<Vec<String>, Refusal> {
    allow(caller, Role::Restore)?;
    let (backup_name, machine, point) = place;
    let view = api.shared.view();
    known(&view, machine)?;
    let backup = backup(&view, machine, backup_name)?;
    let mut arguments = vec!["files".to_owned()];
    arguments.extend(commands::place(backup, None));
    arguments.push(point_named(machine, point)?);
    arguments.extend(what.iter().map(|word| (*word).to_owned()));
    Ok(arguments)
}

pub async fn files(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(place): Path<(String, String, String)>,
    Query(InPoint { path }): Query<InPoint>,
) -> Result<Json<Value>, Refusal> {
    if path.is_empty() {
        let arguments = in_point(&api, &caller, &place, &["ls"])?;
        let document = api.asking.document(arguments).await?;
        let volumes = document["volumes"].as_array().cloned().unwrap_or_default();
        let entries: Vec<Value> = volumes.iter().map(volume).collect();
        return Ok(Json(json!({"schema": "keyframe.point-files/1", "path": "", "entries": entries})));
    }
    let arguments = in_point(&api, &caller, &place, &["ls", "--long", "--", &path])?;
    let document = api.asking.document(arguments).await?;
    let entries: Vec<Value> =
        document["entries"].as_array().into_iter().flatten().map(|entry| file_shown(&path, entry)).collect();
    Ok(Json(json!({"schema": "keyframe.point-files/1", "path": path, "entries": entries})))
}

fn volume(volume: &Value) -> Value {
    let readable = volume["file_system"] == true;
    let name = volume["volume"].as_str().unwrap_or_default();
    json!({
        "name": name, "kind": if readable { "volume" } else { "disk" }, "bytes": volume["bytes"], "modified": null, "mode": null,
        "content": volume["content"], "label": volume["label"],
        "path": readable.then(|| format!("{name}:/")),
    })
}

fn file_shown(path: &str, entry: &Value) -> Value {
    let name = entry["name"].as_str().unwrap_or_default();
    let modified = entry["modified"]["seconds"].as_i64().and_then(|seconds| Timestamp::from_second(seconds).ok());
    let inside = if path.ends_with('/') { format!("{path}{name}") } else { format!("{path}/{name}") };
    json!({
        "name": name, "kind": entry["kind"], "bytes": entry["bytes"], "modified": modified, "mode": entry["mode"],
        "uid": entry["uid"], "gid": entry["gid"], "target": entry["target"], "path": inside,
    })
}

pub async fn file(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(place): Path<(String, String, String)>,
    Query(InPoint { path }): Query<InPoint>,
) -> Result<Response, Refusal> {
    let arguments = in_point(&api, &caller, &place, &["cat", "--", &path])?;
    let (_, machine, point) = &place;
    api.shared.note(&caller.who, &format!("read {path} of {machine}@{point}"), "asked for")?;
    let answer = api.asking.ask(arguments).await?;
    if answer.exit != Some(0) {
        let said = answer.said.lines().find_map(|line| line.strip_prefix("error: "));
        return Err(Refusal::nothing(said.unwrap_or("the file cannot be read").to_owned()));
    }
    let name: String = path
        .rsplit('/')
        .next()
        .unwrap_or("file")
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c))
        .collect();
    let as_file = format!("attachment; filename=\"{name}\"");
    Ok(([(CONTENT_TYPE, "application/octet-stream".to_owned()), (CONTENT_DISPOSITION, as_file)], answer.output)
        .into_response())
}

#[derive(Debug, Deserialize)]
pub struct AuditWanted {
    limit: Option<u32>,
}

pub async fn audit(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Query(wanted): Query<AuditWanted>,
) -> Result<Json<Value>, Refusal> {
    allow(&caller, Role::Operate)?;
    let shared = api.shared.clone();
    let (entries, flaws) = aside(move || crate::audit::read(&shared.serve)).await?;
    let limit = (wanted.limit.unwrap_or(100) as usize).min(MOST);
    let latest: Vec<_> = entries.iter().rev().take(limit).collect();
    Ok(Json(json!({"schema": "keyframe.audit/1", "entries": latest, "verified": flaws.is_empty(), "flaws": flaws})))
}

/// What happens, as webhooks are told it.
#[derive(Serialize)]
struct Happening<'a> {
    schema: &'static str,
    #[serde(flatten)]
    event: &'a crate::event::Event,
}

/// A stream that says when what is shown has changed, and what happens.
pub async fn events(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
) -> Result<Sse<impl tokio_stream::Stream<Item = Result<Event, Infallible>>>, Refusal> {
    let listening = api.listeners.one_more(&caller.who).ok_or_else(|| {
        Refusal::new(StatusCode::TOO_MANY_REQUESTS, "too many streams of events are open for you")
            .with("close some: each window of the dashboard has one")
    })?;
    let changes = WatchStream::from_changes(api.shared.changes.subscribe()).map(move |count| {
        // Counted as long as it is read.
        let _ = &listening;
        Ok(Event::default().event("change").data(json!({"what": "overview", "id": count.to_string()}).to_string()))
    });
    let happenings = BroadcastStream::new(api.shared.happenings.subscribe()).map(|happened| {
        Ok(match happened {
            Ok(event) => {
                let document = Happening { schema: crate::event::SCHEMA, event: &event };
                Event::default().event("event").data(serde_json::to_string(&document).unwrap_or_default())
            }
            // Whoever reads too slowly is told how many went by.
            Err(BroadcastStreamRecvError::Lagged(count)) => {
                Event::default().event("lost").data(json!({"events": count}).to_string())
            }
        })
    });
    Ok(Sse::new(changes.merge(happenings)).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))))
}
