//! Policies, groups, host and notifications out of tables.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use keyframe_types::{ByteLen, Retention, SecretFile, TimeToLive, parse_span};

use super::sense;
use super::table::{Read, Table};
use crate::calendar::{CalendarError, Schedule};
use crate::policy::{
    BackupPolicy, Consistency, DrillPolicy, DrillTarget, Group, Keep, Limits, Objectives, Policy, PolicyName,
    SnapshotPolicy,
};
use crate::select::{Selector, Tag};
use crate::window::{Window, Windows, Work};

/// What schedules are read with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting<'a> {
    pub zone: &'a TimeZone,
    pub now: Timestamp,
}

const SCHEDULE: &str = "a schedule such as \"hourly\", \"Mon..Fri 02:30\" or \"cron: 0 2 * * *\"";
pub(super) const SPAN: &str = "a span such as \"15m\", \"12h\" or \"7d\"";
const PATH: &str = "an absolute path";

pub(super) fn optional<T>(read: Option<Read<T>>) -> Option<T> {
    read.map(|read| read.value)
}

pub(super) fn values<T>(read: Option<Vec<Read<T>>>) -> Vec<T> {
    read.unwrap_or_default().into_iter().map(|read| read.value).collect()
}

pub(super) fn small(read: Option<Read<i64>>) -> Option<u32> {
    read.and_then(|read| u32::try_from(read.value).ok())
}

pub(super) fn policy(name: &Read<String>, table: Table<'_, '_>, setting: Setting<'_>) -> Option<Policy> {
    let known = self::name(name, &table);
    let source = table.source;
    let machines = selector(&table);
    let snapshot = table.table("snapshot").map(|inner| self::snapshot(inner, setting));
    let backups: Vec<_> = table.tables("backup").into_iter().map(|inner| backup(inner, setting)).collect();
    let windows = windows(&table, setting.zone);
    let complete = snapshot.as_ref().is_none_or(Option::is_some) && backups.iter().all(Option::is_some);
    let mut names: Vec<PolicyName> = Vec::new();
    for (at, backup) in backups.iter().flatten().map(|(backup, at)| (at, backup)) {
        if names.contains(&backup.name) {
            source.error(at, format!("{} has two backups named {}", table.path, backup.name), "give each its own name");
        }
        names.push(backup.name.clone());
    }
    let snapshot = snapshot.flatten();
    let drill = table.table("drill").map(|inner| self::drill(inner, setting, snapshot.is_some(), &names, complete));
    let promises = objectives(&table);
    let limits = limits(&table);
    let priority = optional(table.number("priority", -1_000_000..=1_000_000)).unwrap_or(0);
    // What is mistyped is told even where something is missing: it may be that.
    table.done();
    let policy = Policy {
        name: known?,
        place: source.place(&name.span),
        machines: machines?,
        priority,
        snapshot,
        backups: backups.into_iter().flatten().map(|(backup, _)| backup).collect(),
        drill: drill.flatten(),
        objectives: promises.map,
        windows,
        limits,
    };
    if complete {
        sense::policy(source, &name.span, &policy, &promises, setting.now);
    }
    Some(policy)
}

fn name(read: &Read<String>, table: &Table<'_, '_>) -> Option<PolicyName> {
    let name = read.value.parse().map_err(|error: crate::policy::PolicyNameError| {
        table.source.error(&read.span, error.to_string(), "choose such a name");
    });
    name.ok()
}

fn selector(table: &Table<'_, '_>) -> Option<Selector> {
    let what = "say which machines: machines = { names = [\"db*\"], tags = [\"prod\"] }";
    let Some(inner) = table.table("machines") else {
        table.missing("machines", what);
        return None;
    };
    let names = values(inner.parsed_list("names", "\"db*\""));
    let tags: Vec<Tag> = values(inner.parsed_list("tags", "\"prod\""));
    let selector = Selector { names, tags: tags.into_iter().map(|tag| tag.to_string()).collect() };
    if selector.tags.is_empty() && selector.names.iter().all(crate::select::Glob::excludes) {
        let given = inner.has("names") || inner.has("tags");
        let why = if given { "chooses no machine" } else { "says neither names nor tags" };
        inner.source.error(&inner.span, format!("{} {why}", inner.path), what);
    }
    inner.done();
    Some(selector)
}

fn schedule(table: &Table<'_, '_>, setting: Setting<'_>) -> Option<Schedule> {
    let Some(read) = table.pointed("schedule", SCHEDULE, |text| Schedule::parse(text, setting.zone)) else {
        table.missing("schedule", &format!("write {SCHEDULE}"));
        return None;
    };
    if read.value.next_after(setting.now).is_none() {
        let what = format!("{}.schedule is never due", table.path);
        table.source.error(&read.span, what, "name days that are still to come: this one is past, or in no calendar");
    }
    Some(read.value)
}

fn jitter(table: &Table<'_, '_>) -> Duration {
    let most = Duration::from_secs(7 * 86_400);
    let read = table.parsed::<TimeToLive>("jitter", SPAN);
    if let Some(read) = read.as_ref().filter(|read| read.value.duration() > most) {
        table.source.error(&read.span, format!("{}.jitter is more than a week", table.path), "write at most \"7d\"");
    }
    optional(read).map_or(Duration::ZERO, TimeToLive::duration)
}

fn consistency(table: &Table<'_, '_>) -> Consistency {
    let words = [
        ("crash", Consistency::Crash),
        ("freeze-if-possible", Consistency::FreezeIfPossible),
        ("freeze", Consistency::Freeze),
    ];
    optional(table.choice("consistency", &words)).unwrap_or_default()
}

fn snapshot(table: Table<'_, '_>, setting: Setting<'_>) -> Option<SnapshotPolicy> {
    let schedule = schedule(&table, setting);
    let ttl = table.parsed::<TimeToLive>("ttl", SPAN);
    let keep = keep(&table);
    let memory = optional(table.flag("memory")).unwrap_or(true);
    let max_pause = table.parsed_by("max_pause", "a span such as \"50ms\" or \"1s\"", |text| {
        parse_span(text).map_err(|error| error.to_string())
    });
    let or_disk_only = table.flag("or_disk_only");
    if let Some(read) = or_disk_only.as_ref().filter(|read| read.value && (max_pause.is_none() || !memory)) {
        let what = format!("{}.or_disk_only says what to do when a pause with memory would be too long", table.path);
        table.source.error(&read.span, what, "set max_pause, with memory = true; or take it out");
    }
    if keep.is_none() && ttl.is_none() && !table.has("keep") && !table.has("ttl") {
        let remedy = "say which stay: keep = { hourly = 24, daily = 7 }; or for how long: ttl = \"2d\"";
        table.source.error(&table.span, format!("{} keeps all snapshots for ever", table.path), remedy);
    }
    if let (Some(Keep::All), None) = (&keep, &ttl) {
        let remedy =
            "set ttl too, or rules: keep = { hourly = 24, daily = 7 }; a chain of layers does not grow for ever";
        table.source.error(&table.span, format!("{} keeps all snapshots for ever", table.path), remedy);
    }
    let jitter = jitter(&table);
    let consistency = consistency(&table);
    if let (Some(Keep::By(rule)), Some(ttl)) = (&keep, &ttl) {
        sense::keep_within(&table, rule, ttl);
    }
    if let (Some(Keep::By(rule)), Some(schedule)) = (&keep, &schedule) {
        sense::keep_of(&table, rule, schedule, setting.now);
    }
    // What could not be read is noted; a rule that keeps all is never acted upon then.
    let keep = keep.unwrap_or(Keep::All);
    let (max_pause, or_disk_only, ttl) = (optional(max_pause), optional(or_disk_only).unwrap_or(false), optional(ttl));
    table.done();
    Some(SnapshotPolicy { schedule: schedule?, jitter, memory, consistency, max_pause, or_disk_only, keep, ttl })
}

/// `"all"`, or a table of numbers.
fn keep(table: &Table<'_, '_>) -> Option<Keep> {
    if let Some(word) = table.word("keep") {
        if word.value == "all" {
            return Some(Keep::All);
        }
        let remedy = "write \"all\", or rules: { last = 3, daily = 7 }";
        table.source.error(&word.span, format!("{}.keep is {:?}", table.path, word.value), remedy);
        return None;
    }
    let inner = table.table("keep")?;
    let count = |key| optional(inner.number(key, 0..=100_000)).and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
    let rule = Retention {
        last: count("last"),
        hourly: count("hourly"),
        daily: count("daily"),
        weekly: count("weekly"),
        monthly: count("monthly"),
        yearly: count("yearly"),
        tags: Vec::new(),
    };
    if rule.is_empty() {
        let remedy = "set one of last, hourly, daily, weekly, monthly and yearly";
        inner.source.error(&inner.span, format!("{} keeps nothing", inner.path), remedy);
    }
    inner.done();
    Some(Keep::By(rule))
}

pub(super) fn absolute(table: &Table<'_, '_>, key: &'static str) -> Option<PathBuf> {
    optional(table.parsed_by(key, PATH, |text| {
        let path = Path::new(text);
        if path.is_absolute() { Ok(path.to_owned()) } else { Err(format!("{text:?} is not an absolute path")) }
    }))
}

/// A file with a secret, or a credential.
pub(super) fn secret_file(table: &Table<'_, '_>, key: &'static str) -> Option<SecretFile> {
    let wanted = "an absolute path, or \"credential:NAME\"";
    optional(table.parsed_by(key, wanted, |text| match text.parse() {
        Ok(SecretFile::Path(path)) if !path.is_absolute() => Err(format!("{text:?} is not an absolute path")),
        Ok(file) => Ok(file),
        Err(error) => Err(error.to_string()),
    }))
}

fn backup(table: Table<'_, '_>, setting: Setting<'_>) -> Option<(BackupPolicy, super::table::Span)> {
    let name = optional(table.parsed::<PolicyName>("name", "a name, such as \"nightly\""));
    table.missing("name", "give it a name, such as \"nightly\": other commands and reports name it");
    let place = "a directory, sftp://[USER@]HOST[:PORT]/PATH or s3://BUCKET[/PATH]";
    let repository = optional(table.parsed_by("repository", place, |text| {
        let known = text.starts_with("sftp://") || text.starts_with("s3://");
        if known || (Path::new(text).is_absolute() && !text.contains("://")) {
            Ok(text.to_owned())
        } else if text.contains("://") {
            Err(format!("repositories of {text:?} are not known"))
        } else {
            Err(format!("{text:?} is not an absolute path"))
        }
    }));
    table.missing("repository", &format!("write {place}"));
    let schedule = schedule(&table, setting);
    let keep = keep(&table);
    table.missing("keep", "say which points stay: keep = { daily = 14, monthly = 12 }; or keep = \"all\"");
    if let (Some(Keep::By(rule)), Some(schedule)) = (&keep, &schedule) {
        sense::keep_of(&table, rule, schedule, setting.now);
    }
    let key_file = secret_file(&table, "key_file");
    let jitter = jitter(&table);
    let memory = optional(table.flag("memory")).unwrap_or(false);
    let consistency = consistency(&table);
    let lock_days = small(table.number("lock_days", 0..=36_500)).unwrap_or(0);
    let bandwidth = bandwidth(&table);
    let audit_percent = small(table.number("audit_percent", 0..=100)).and_then(|n| u8::try_from(n).ok()).unwrap_or(0);
    let rpo = optional(table.parsed::<TimeToLive>("rpo", SPAN));
    let tags: Vec<Tag> = values(table.parsed_list("tags", "\"nightly\""));
    let tags = tags.into_iter().map(|tag| tag.to_string()).collect();
    let span = table.span.clone();
    table.done();
    let keep = keep.unwrap_or(Keep::All);
    let backup = BackupPolicy {
        name: name?,
        repository: repository?,
        key_file,
        schedule: schedule?,
        jitter,
        memory,
        consistency,
        keep,
        lock_days,
        bandwidth,
        audit_percent,
        rpo,
        tags,
    };
    Some((backup, span))
}

pub(super) fn bandwidth(table: &Table<'_, '_>) -> Option<ByteLen> {
    let read = table.parsed::<ByteLen>("bandwidth", "bytes per second, such as \"20M\"");
    if let Some(read) = read.as_ref().filter(|read| read.value == ByteLen::ZERO) {
        let remedy = "write bytes per second, such as \"20M\"; take it out for no limit";
        table.source.error(&read.span, format!("{}.bandwidth lets nothing through", table.path), remedy);
    }
    optional(read)
}

fn drill(
    table: Table<'_, '_>,
    setting: Setting<'_>,
    snapshots: bool,
    backups: &[PolicyName],
    complete: bool,
) -> Option<DrillPolicy> {
    let schedule = schedule(&table, setting);
    let wanted = "\"snapshot\", \"point\" or \"point:BACKUP\"";
    let words = match table.word("what") {
        Some(word) => vec![word],
        None => table.parsed_list::<String>("what", wanted).unwrap_or_default(),
    };
    let mut what = Vec::new();
    for word in &words {
        let targets: Vec<DrillTarget> = match word.value.split_once(':') {
            None if word.value == "snapshot" && (snapshots || !complete) => vec![DrillTarget::Snapshot],
            None if word.value == "point" && (!backups.is_empty() || !complete) => {
                backups.iter().cloned().map(DrillTarget::Point).collect()
            }
            Some(("point", name)) if !complete || backups.iter().any(|backup| backup.as_str() == name) => {
                backups.iter().filter(|backup| backup.as_str() == name).cloned().map(DrillTarget::Point).collect()
            }
            _ => {
                let made = match word.value.as_str() {
                    "snapshot" => "the policy takes no snapshots",
                    text if text.starts_with("point") => "the policy makes no such points",
                    _ => "it is not known",
                };
                let remedy = format!("write {wanted}, of what the policy makes");
                table.source.error(&word.span, format!("{}.what is {:?}: {made}", table.path, word.value), remedy);
                continue;
            }
        };
        what.extend(targets.into_iter().filter(|target| !what.contains(target)).collect::<Vec<_>>());
    }
    if words.is_empty() {
        if table.has("what") {
            table.source.error(&table.span, format!("{}.what names nothing", table.path), format!("write {wanted}"));
        }
        table.missing("what", &format!("write {wanted}"));
    }
    let jitter = jitter(&table);
    let within =
        optional(table.parsed::<TimeToLive>("within", SPAN)).map_or(Duration::from_secs(120), TimeToLive::duration);
    let probes = table.list("probes", "\"agent\" or \"tcp=22\"", |text| probe(text).map(|()| text.to_owned()));
    let probes = values(probes);
    table.done();
    Some(DrillPolicy { schedule: schedule?, jitter, what, within, probes })
}

/// Whether a text names a kind of probe; what it asks is checked where it is asked.
fn probe(text: &str) -> Result<(), CalendarError> {
    let known = match text.split_once('=') {
        None => matches!(text, "agent" | "screen"),
        Some((kind, what)) => matches!(kind, "serial" | "tcp" | "command") && !what.is_empty(),
    };
    let what = "write agent, screen, serial=REGEX, tcp=PORT, tcp=ADDRESS:PORT or command=PROGRAM ARGUMENTS";
    let error = || CalendarError { at: 0..text.len(), what: format!("{text:?} is not a probe: {what}") };
    known.then_some(()).ok_or_else(error)
}

/// What is promised, and where that stands.
pub(super) struct Promises {
    pub map: Objectives,
    pub rpo: Option<super::table::Span>,
    pub rto: Option<super::table::Span>,
}

fn objectives(table: &Table<'_, '_>) -> Promises {
    let Some(inner) = table.table("objectives") else {
        return Promises { map: Objectives::default(), rpo: None, rto: None };
    };
    let (rpo, rto) = (inner.parsed::<TimeToLive>("rpo", SPAN), inner.parsed::<TimeToLive>("rto", SPAN));
    inner.done();
    let span = |read: &Option<Read<TimeToLive>>| read.as_ref().map(|read| read.span.clone());
    Promises { rpo: span(&rpo), rto: span(&rto), map: Objectives { rpo: optional(rpo), rto: optional(rto) } }
}

fn windows(table: &Table<'_, '_>, zone: &TimeZone) -> Windows {
    let Some(inner) = table.table("windows") else {
        return Windows::default();
    };
    let read = |key| values(inner.list(key, "\"Mon..Fri 22:00-06:00\"", |text| Window::parse(text, zone)));
    let (allowed, forbidden) = (read("allowed"), read("forbidden"));
    let applies_to = inner.parsed_list::<Work>("applies_to", "\"snapshot\", \"backup\" or \"drill\"");
    let applies_to = applies_to.map_or(Windows::default().applies_to, |all| values(Some(all)));
    inner.done();
    Windows { allowed, forbidden, applies_to }
}

fn limits(table: &Table<'_, '_>) -> Limits {
    let Some(inner) = table.table("limits") else {
        return Limits::default();
    };
    let limits = Limits {
        jobs: small(inner.number("jobs", 1..=1000)),
        jobs_per_disk: small(inner.number("jobs_per_disk", 1..=1000)),
    };
    inner.done();
    limits
}

pub(super) fn group(name: &Read<String>, table: Table<'_, '_>) -> Option<Group> {
    let known = self::name(name, &table);
    let machines = selector(&table);
    let within = table.parsed_by("within", "a span such as \"500ms\" or \"10s\"", |text| {
        let span = parse_span(text).map_err(|error| error.to_string())?;
        let sense = Duration::from_millis(1)..=Duration::from_secs(10);
        if sense.contains(&span) { Ok(span) } else { Err("from 1ms to 10s".to_owned()) }
    });
    let within = optional(within).unwrap_or(Duration::from_secs(10));
    let place = table.source.place(&name.span);
    table.done();
    Some(Group { name: known?, place, machines: machines?, within })
}
