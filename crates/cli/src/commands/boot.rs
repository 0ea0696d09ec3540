//! `keyframe boot`

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use keyframe_engine::backup::members;
use keyframe_engine::boot::{self, BootReport, BootRequest, BootStatus, Opener, Place};
use keyframe_engine::machine::{Machine, State};
use keyframe_engine::{Context, Error};
use keyframe_repo::Repository;
use keyframe_repo::ids::ObjectId;
use keyframe_types::VmName;
use serde_json::json;

use super::repository::{self, Reading};
use crate::backup_args::BootArgs;
use crate::output::{Output, ms, table};
use crate::repo_args::{Access, PerhapsWhere, Where};

/// Runs it.
pub fn run(ctx: &Context<'_>, args: BootArgs, output: &Output) -> Result<u8, Error> {
    match (&args.point, &args.new, &args.status, &args.wait, &args.resume) {
        (Some(point), Some(new), ..) => start(ctx, &args, point, new, output),
        (_, _, Some(vm), ..) => status(ctx, vm, output),
        (_, _, _, Some(vm), _) => {
            let begun = Instant::now();
            boot::status::wait(ctx, vm, args.patience)?;
            let took = begun.elapsed().as_secs_f64() * 1e3;
            let text = format!("{vm} is wholly local, after {}\n", ms(took));
            output.result("boot-wait", &json!({"name": vm, "local": true, "waited_ms": took}), text);
            Ok(0)
        }
        (_, _, _, _, Some(vm)) => resume(ctx, vm, args.place, output),
        _ => Err(Error::BadRequest { what: "say POINT --as NEW, --status, --wait or --resume".to_owned() }),
    }
}

fn start(ctx: &Context<'_>, args: &BootArgs, point: &str, new: &VmName, output: &Output) -> Result<u8, Error> {
    let begun = Instant::now();
    repository::keep_memory();
    let place = &args.place;
    let needed = || Error::BadRequest { what: "name the repository with --repo or KEYFRAME_REPO".to_owned() };
    let place = place.clone().known().ok_or_else(needed)?;
    let (repository, passphrase) = repository::opened(&place, Reading::Cache)?;
    let point = members::find(&repository, point)?;
    let request = BootRequest {
        name: new.clone(),
        place: lasting(&place)?,
        passphrase: passphrase.map(|text| text.to_string()),
        cold: args.cold,
        paused: args.paused,
    };
    let report = boot::boot(ctx, &repository, &point, &request, begun)?;
    output.result("boot", &report, told(&report));
    Ok(0)
}

fn told(report: &BootReport) -> String {
    let what = if report.memory { "goes on with its running state" } else { "starts from its firmware" };
    let name = &report.name;
    let mut text = match report.state {
        State::Paused => format!("{name} stands ready from {}, after {}\n", report.point, ms(report.running_ms)),
        _ => format!("{name} runs from {}, after {}: it {what}\n", report.point, ms(report.running_ms)),
    };
    if report.state == State::Paused {
        let _ = writeln!(text, "let it run with `keyframe vm start {name}`");
    }
    let _ = writeln!(text, "its data follow: `keyframe boot --wait {name}` waits until it is wholly local");
    for note in &report.notes {
        let _ = writeln!(text, "  note: {note}");
    }
    text
}

fn status(ctx: &Context<'_>, vm: &VmName, output: &Output) -> Result<u8, Error> {
    // Whoever was killed is replaced by looking, as `vm show` does.
    keyframe_engine::lifecycle::show(ctx, vm)?;
    let machine = Machine::open(ctx.home, vm)?;
    let status = boot::status(&machine)?;
    say(vm, status.as_ref(), output);
    Ok(0)
}

fn say(vm: &VmName, status: Option<&BootStatus>, output: &Output) {
    let text = match status {
        None => format!("{vm} is wholly local: it needs no repository\n"),
        Some(status) => {
            let mut rows = vec![vec!["stands on".to_owned(), status.sentence()]];
            rows.extend(status.trouble.iter().map(|trouble| vec!["trouble".to_owned(), trouble.clone()]));
            let lost =
                |lost: &boot::shelf::Lost| format!("{} bytes {} to {}: {}", lost.image, lost.at, lost.end, lost.reason);
            rows.extend(status.lost.iter().map(|place| vec!["lost".to_owned(), lost(place)]));
            format!("{vm}\n{}", table(&rows))
        }
    };
    output.result("boot-status", &json!({"name": vm, "local": status.is_none(), "stands_on": status}), text);
}

fn resume(ctx: &Context<'_>, vm: &VmName, place: PerhapsWhere, output: &Output) -> Result<u8, Error> {
    let place = place.known();
    let opened = place.as_ref().map(|place| repository::opened(place, Reading::Cache)).transpose()?;
    let lasting = place.as_ref().map(lasting).transpose()?;
    let passphrase = opened.as_ref().and_then(|(_, passphrase)| passphrase.as_ref().map(|text| text.to_string()));
    let from = opened.as_ref().map(|(repository, _)| repository).zip(lasting);
    let status = boot::resume(ctx, vm, from, passphrase.as_deref())?;
    say(vm, Some(&status), output);
    Ok(0)
}

/// A place that is found from any directory.
fn lasting(place: &Where) -> Result<Place, Error> {
    let absolute = |path: &Path| -> Result<PathBuf, Error> {
        std::path::absolute(path).map_err(|source| Error::Io { action: "find", path: path.to_owned(), source })
    };
    let repository = if place.repo.contains("://") {
        place.repo.clone()
    } else {
        absolute(Path::new(&place.repo))?.to_string_lossy().into_owned()
    };
    let access = &place.access;
    let key_file = access.key_file.as_deref().map(absolute).transpose()?;
    Ok(Place { repository, key_file, cache: !access.no_cache, bandwidth: access.bandwidth })
}

/// Opens the stores that the command line knows.
pub struct Stores;

fn named(place: &Place) -> Where {
    let access = Access { key_file: place.key_file.clone(), no_cache: !place.cache, bandwidth: place.bandwidth };
    Where { repo: place.repository.clone(), access }
}

impl Opener for Stores {
    fn open(&self, place: &Place) -> Result<Repository, keyframe_repo::Error> {
        repository::open(&named(place))
    }

    fn answers(&self, place: &Place) -> Result<ObjectId, keyframe_repo::Error> {
        let store = repository::store(&named(place), false, Reading::Store)?;
        Ok(Repository::config_of(&*store)?.repository)
    }
}
