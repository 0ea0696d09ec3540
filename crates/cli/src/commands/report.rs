//! `keyframe report`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use keyframe_daemon::catalog::Catalog;
use keyframe_daemon::report::{self, Period, Report, Sources, files};
use keyframe_engine::evidence::Ledger;
use keyframe_engine::{Error, Home};
use keyframe_policy::{Owed, Policies};
use serde_json::json;

use super::policy;
use crate::output::Output;
use crate::report_args::ReportArgs;

/// The report is not as it was signed.
const FAILED: u8 = 1;

/// Reads what there is, whether a daemon runs or not.
pub fn run(root: &Path, args: &ReportArgs, output: &Output) -> Result<u8, Error> {
    if let Some(dir) = &args.verify {
        return verify(dir, args.public_key.as_deref(), output);
    }
    let (Some(from), Some(to)) = (args.from, args.to) else {
        return Err(Error::BadRequest { what: "--from and --to are missing".to_owned() });
    };
    // Neither looking nor a mistyped path makes a home.
    if !root.join("vms").is_dir() && !root.join("serve").is_dir() {
        return Err(Error::BadRequest { what: format!("there is no home in {}", root.display()) });
    }
    let home = Home::open(root)?;
    let policies = policies(root, args)?;
    let period = period(from, to, &policies.host.time_zone)?;
    let ledger = Ledger::of(&home);
    let report = made(root, &policies, period, &ledger)?;
    let out = match &args.out {
        Some(out) => Some(out.clone()),
        None if output.is_json() => None,
        None => Some(PathBuf::from(format!("keyframe-report-{from}-{to}"))),
    };
    let written =
        out.map(|out| files::write(&report, &ledger, &out)).transpose().map_err(|error| plain(error, root))?;
    output.result("report", &report, told(&report, written.as_ref()));
    Ok(0)
}

fn policies(root: &Path, args: &ReportArgs) -> Result<Policies, Error> {
    let read = policy::read(root, &args.directories, Timestamp::now());
    // Without them every machine would look as if nobody had promised anything.
    read.policies.ok_or_else(|| Error::BadRequest {
        what: "policies have mistakes, so that nothing can be measured against them: see `keyframe policy check`"
            .to_owned(),
    })
}

/// From the first instant of a day until the last of another.
fn period(from: Date, to: Date, zone: &TimeZone) -> Result<Period, Error> {
    let begins = |date: Date| date.to_zoned(zone.clone()).map(|day| day.timestamp());
    let both = || Ok::<_, jiff::Error>((begins(from)?, begins(to.checked_add(1.day())?)?));
    let (from, to) = both().map_err(|error| Error::BadRequest { what: format!("these are no days: {error}") })?;
    Ok(Period { from, to, time_zone: zone.clone() })
}

fn made(root: &Path, policies: &Policies, period: Period, ledger: &Ledger) -> Result<Report, Error> {
    let serve = root.join("serve");
    let path = serve.join("catalog.db");
    let catalog = path.exists().then(|| Catalog::reader(&path)).transpose().map_err(|error| plain(error, &path))?;
    let mut notes = Vec::new();
    if catalog.is_none() {
        notes.push("`keyframe serve` never ran here: only drills on record are told.".to_owned());
    }
    let (proofs, evidence) = report::evidence_log(ledger).map_err(|error| plain(error, ledger.dir()))?;
    let audit = report::audit_log(&serve).map_err(|error| plain(error, &serve))?;
    let found = policy::machines(root)?;
    let mut machines: BTreeMap<String, Option<Owed>> = BTreeMap::new();
    for machine in found.known {
        let owed = policies.for_machine(&machine.name, &machine.tags);
        machines.insert(machine.name, owed);
    }
    for (name, error) in found.unreadable {
        notes.push(format!("{name} cannot be read, and its tags are not known: {error}"));
        machines.insert(name.to_string(), policies.for_machine(name.as_str(), &[]));
    }
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let sources = Sources { host: &host, machines, catalog: catalog.as_ref(), proofs: &proofs, evidence, audit, notes };
    Report::of(sources, period, Timestamp::now()).map_err(|error| plain(error, &path))
}

/// As an error of the commands; `path` is what was read.
fn plain(error: keyframe_daemon::Error, path: &Path) -> Error {
    match error {
        keyframe_daemon::Error::Engine(error) => error,
        keyframe_daemon::Error::Io { action, path, source } => Error::Io { action, path, source },
        keyframe_daemon::Error::Refused(what) => Error::BadRequest { what },
        other => {
            let cause = std::error::Error::source(&other).map(|cause| format!(": {cause}")).unwrap_or_default();
            Error::Damaged { path: path.to_owned(), reason: format!("{other}{cause}") }
        }
    }
}

fn told(report: &Report, written: Option<&files::Written>) -> String {
    let totals = &report.totals;
    let mut text = String::new();
    let mut line = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    line(format!("{} machines, {} of them without a policy", totals.machines, totals.without_policy));
    let (points, incomplete) = (totals.points, totals.points_incomplete);
    line(format!("{points} points, {incomplete} besides them incomplete; {} snapshots", totals.snapshots));
    line(format!("drills: {} passed, {} failed", totals.drills_passed, totals.drills_failed));
    line(format!(
        "RPO: {} machines kept it, {} missed it, {} not measured",
        totals.rpo.kept, totals.rpo.missed, totals.rpo.not_measured
    ));
    line(format!(
        "RTO: {} machines kept it, {} missed it, {} not measured",
        totals.rto.kept, totals.rto.missed, totals.rto.not_measured
    ));
    line(format!("{} exceptions, {} of them open", totals.exceptions, totals.exceptions_open));
    for (name, log) in [("evidence", &report.evidence), ("who did what", &report.audit)] {
        if !log.is_sound() {
            line(format!("the log of {name} is not as it was written: {}", log.flaws.join("; ")));
        }
    }
    for note in &report.notes {
        line(format!("note: {note}"));
    }
    if let Some(written) = written {
        line(format!("page:      {}", written.page.display()));
        line(format!("document:  {}", written.document.display()));
        line(format!("signature: {}, by key {}", written.signature.display(), written.public_key));
    }
    text
}

fn verify(dir: &Path, public_key: Option<&str>, output: &Output) -> Result<u8, Error> {
    let (verdict, status) = match files::verify(dir, public_key) {
        Ok(key) => (Ok(key), 0),
        Err(keyframe_daemon::Error::Refused(why)) => (Err(why), FAILED),
        Err(error) => return Err(plain(error, dir)),
    };
    let text = match (&verdict, public_key) {
        (Ok(key), Some(_)) => format!("it is as it was signed, by key {key}\n"),
        (Ok(key), None) => {
            format!("it is as it was signed, by key {key}: compare that with a copy, or give it with --public-key\n")
        }
        (Err(why), _) => format!("{why}\n"),
    };
    let document =
        json!({"sound": verdict.is_ok(), "public_key": verdict.as_ref().ok(), "why": verdict.as_ref().err()});
    output.result("report-verified", &document, text);
    Ok(status)
}
