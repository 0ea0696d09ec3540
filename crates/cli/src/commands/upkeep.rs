//! `keyframe repo forget`, `prune`, `check`, `verify`, `repair`

use std::fmt::Write as _;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use keyframe_engine::backup::members;
use keyframe_repo::ids::ObjectId;
use keyframe_repo::{Decision, Error, Problem, PruneOptions, Retention, VerifyOptions, mark};
use keyframe_types::{ByteLen, Timestamp};
use serde_json::json;

use super::repository::{self, Ctx, Reading, usage};
use crate::output::table;
use crate::repo_args::{Scope, Where};

/// Done, but something is wrong.
const INCOMPLETE: u8 = 3;

fn size(bytes: u64) -> String {
    ByteLen::from_bytes(bytes).to_string()
}

/// `keyframe repo forget`
pub fn forget(
    ctx: &Ctx<'_>,
    place: &Where,
    retention: &Retention,
    (name, tag): (Option<&str>, Option<&str>),
    dry_run: bool,
) -> Result<u8, Error> {
    if retention.is_empty() {
        return Err(usage("say what to keep: --keep-last, --keep-daily, …; keeping nothing is never meant"));
    }
    let repository = repository::open(place)?;
    let (mut points, damaged) = repository.points()?;
    points.retain(|point| name.is_none_or(|name| point.name == name));
    points.retain(|point| tag.is_none_or(|tag| point.tags.iter().any(|known| known == tag)));
    let now = Timestamp::now();
    // Made by a clock that was wrong: were they the latest, every further point would go at once.
    let (points, future): (Vec<_>, Vec<_>) = points.into_iter().partition(|point| point.created <= now);
    let mut decisions = keyframe_repo::decide_for_whole(retention, &points, members::is_whole);
    decisions.extend(future.into_iter().map(|point| Decision {
        id: point.id,
        name: point.name,
        created: point.created,
        reasons: vec!["of the future"],
    }));
    // A machine that left its group makes no further points: what rules count is the group's.
    let last = members::last_of_a_machine(&points);
    for decision in decisions.iter_mut().filter(|decision| last.contains(&decision.id)) {
        decision.reasons.push("the last of a machine");
    }
    let (standings, damaged_marks) = mark::standings(&repository)?;
    keyframe_repo::keep_marked(&mut decisions, &standings, now);
    let go: Vec<ObjectId> =
        decisions.iter().filter(|decision| decision.reasons.is_empty()).map(|decision| decision.id).collect();
    if !dry_run {
        keyframe_repo::forget(&repository, &go)?;
    }
    let mut rows = vec![["NAME", "ID", "CREATED", "KEPT AS"].map(str::to_owned).to_vec()];
    rows.extend(decisions.iter().map(|decision| {
        let reasons = if decision.reasons.is_empty() { "- forgotten".to_owned() } else { decision.reasons.join(", ") };
        vec![decision.name.clone(), decision.id.short(), decision.created.to_string(), reasons]
    }));
    let mut text = table(&rows);
    let verb = if dry_run { "would be forgotten" } else { "forgotten; `keyframe repo prune` frees their space" };
    let _ = writeln!(text, "{} of {} points {verb}", go.len(), decisions.len());
    let document = json!({"dry_run": dry_run, "forgotten": go, "decisions": decisions});
    ctx.output.result("repo-forgotten", &document, text);
    Ok(if damaged.is_empty() && damaged_marks.is_empty() { 0 } else { INCOMPLETE })
}

/// `keyframe repo prune`
pub fn prune(ctx: &Ctx<'_>, place: &Where, options: PruneOptions) -> Result<u8, Error> {
    let repository = repository::open(place)?;
    let report = keyframe_repo::prune(&repository, options, ctx.run)?;
    let plan = &report.plan;
    let count = |list: &[ObjectId]| list.len().to_string();
    let mut rows = vec![
        ("packs that nothing refers to", count(&plan.unused)),
        ("packs to be rewritten", count(&plan.rewrite)),
        ("packs of broken-off backups", count(&plan.stray)),
        ("points that never came to be", count(&plan.abandoned)),
        ("condemned packs, removed", count(&plan.remove)),
        ("condemned packs, needed after all", count(&plan.spare)),
        ("kept as it is", size(plan.kept_bytes)),
    ];
    if options.dry_run {
        rows.push(("would be freed now", size(plan.removed_bytes)));
        rows.push(("would be condemned", size(plan.condemned_bytes)));
    } else {
        rows.push(("moved", size(report.moved_bytes)));
        rows.push(("freed", size(report.freed_bytes)));
        rows.push(("freed by a prune after the grace period", size(report.pending_bytes)));
    }
    if !options.dry_run {
        match repository::tidy(place) {
            Ok(0) => {}
            Ok(files) => rows.push(("half-written files, removed", files.to_string())),
            Err(error) => ctx.run.progress.note(&format!("half-written files stay: {error}")),
        }
    }
    if !plan.missing.is_empty() {
        rows.push(("packs that points need and that are not there", count(&plan.missing)));
        ctx.run.progress.note("something is lost: `keyframe repo check` tells which points need it");
    }
    let rows: Vec<_> = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    ctx.output.result("repo-pruned", &json!({"dry_run": options.dry_run, "report": report}), table(&rows));
    Ok(if plan.missing.is_empty() { 0 } else { INCOMPLETE })
}

/// `keyframe repo check`
pub fn check(ctx: &Ctx<'_>, place: &Where) -> Result<u8, Error> {
    let repository = repository::open_reading(place, Reading::Store)?;
    let report = keyframe_repo::check(&repository, ctx.run)?;
    let mut text = problems(&report.problems);
    let _ = writeln!(
        text,
        "{} points, {} packs, {} frames in use: {}",
        report.points,
        report.packs,
        report.frames,
        verdict(&report.problems)
    );
    ctx.output.result("repo-checked", &report, text);
    Ok(status(&report.problems))
}

/// `keyframe repo verify`
pub fn verify(ctx: &Ctx<'_>, place: &Where, scope: &Scope) -> Result<u8, Error> {
    let Scope { no_data, percent, seed, after } = scope;
    let (data, percent) = (!no_data, *percent);
    let begun = Instant::now();
    let bad = |text: &str| usage(&format!("{text:?} is not a pack's id of 32 hexadecimal digits"));
    let after = after.as_ref().map(|text| ObjectId::parse(text).ok_or_else(|| bad(text))).transpose()?;
    let repository = repository::open_reading(place, Reading::Store)?;
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let seed = seed.unwrap_or_else(clock);
    let report = keyframe_repo::verify(&repository, VerifyOptions { data, percent, seed, after }, ctx.run)?;
    let seconds = begun.elapsed().as_secs_f64();
    let mut text = problems(&report.problems);
    let what = if data { "authenticated, opened and compared" } else { "authenticated" };
    let _ = writeln!(
        text,
        "{} objects, {} {what} in {seconds:.1} s: {}",
        report.objects,
        size(report.bytes),
        verdict(&report.problems)
    );
    if report.left_out > 0 {
        let _ = writeln!(text, "{} packs were left out, as only {percent} percent were asked for", report.left_out);
    }
    if report.interrupted {
        // The same seed draws the same sample.
        let sample = if percent < 100 { format!(" --percent {percent} --seed {seed}") } else { String::new() };
        let _ = match report.up_to {
            Some(id) => writeln!(text, "interrupted; go on with --after {id}{sample}"),
            None => writeln!(text, "interrupted before the first pack was done"),
        };
    }
    ctx.output.result("repo-verified", &json!({"report": report, "seed": seed, "seconds": seconds}), text);
    Ok(if report.interrupted { 130 } else { status(&report.problems) })
}

/// `keyframe repo repair`
pub fn repair(ctx: &Ctx<'_>, place: &Where) -> Result<u8, Error> {
    let repository = repository::open_reading(place, Reading::Store)?;
    let report = keyframe_repo::repair(&repository, ctx.run)?;
    let mut text = problems(&report.problems);
    report.mended.iter().for_each(|object| {
        let _ = writeln!(text, "mended: {object}");
    });
    let _ = writeln!(
        text,
        "{} objects: {} mended, {} packs put into the index again, {} beyond repair",
        report.objects,
        report.mended.len(),
        report.reindexed,
        report.problems.len()
    );
    ctx.output.result("repo-repaired", &report, text);
    Ok(status(&report.problems))
}

fn problems(problems: &[Problem]) -> String {
    problems.iter().fold(String::new(), |mut text, problem| {
        let word = if problem.serious { "problem" } else { "note" };
        let _ = writeln!(text, "{word}: {}: {}", problem.object, problem.what);
        text
    })
}

fn verdict(problems: &[Problem]) -> String {
    match problems.iter().filter(|problem| problem.serious).count() {
        0 => "nothing is wrong".to_owned(),
        count => format!("{count} problems"),
    }
}

fn status(problems: &[Problem]) -> u8 {
    if problems.iter().any(|problem| problem.serious) { INCOMPLETE } else { 0 }
}
