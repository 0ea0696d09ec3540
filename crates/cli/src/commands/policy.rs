//! `keyframe policy`

mod plan;
mod show;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use keyframe_engine::machine::read_definition;
use keyframe_engine::{Error, Home};
use keyframe_policy::{Machine, Mistake, Owed, Policies, Severity};
use keyframe_types::VmName;
use serde_json::json;

use crate::output::Output;
use crate::policy_args::{PolicyCommand, PolicyOf};

/// The files cannot be used, or nothing is owed.
const FAILED: u8 = 1;
/// A machine could not be looked at.
const INCOMPLETE: u8 = 3;

/// What `keyframe policy example` writes.
const EXAMPLE: &str = include_str!("../../../../examples/policies/standard.toml");

/// Works without a home, too: policies can be checked where no machine is.
pub fn run(root: &Path, command: PolicyCommand, output: &Output) -> Result<u8, Error> {
    match command {
        PolicyCommand::Check { directories } => check(root, &directories, output),
        PolicyCommand::Show { of } => {
            let Some((owed, now)) = owed(root, &of, output)? else { return Ok(FAILED) };
            show::run(&owed, now, output);
            Ok(0)
        }
        PolicyCommand::Plan { of, days, events } => {
            let Some((owed, now)) = owed(root, &of, output)? else { return Ok(FAILED) };
            plan::run(&owed, now, days, events, output);
            Ok(0)
        }
        PolicyCommand::Example => {
            output.result("policy-example", &json!({ "toml": EXAMPLE }), EXAMPLE);
            Ok(0)
        }
    }
}

/// What is read, and what is wrong with it.
pub(super) struct Read {
    pub(super) policies: Option<Policies>,
    mistakes: Vec<Mistake>,
}

pub(super) fn read(root: &Path, directories: &[PathBuf], now: Timestamp) -> Read {
    let default = [keyframe_policy::default_directory(root)];
    let directories: Vec<&Path> =
        if directories.is_empty() { &default[..] } else { directories }.iter().map(PathBuf::as_path).collect();
    let loaded = keyframe_policy::load(&directories, now);
    Read { policies: loaded.policies, mistakes: loaded.mistakes }
}

/// The machines of a home, and those of which that cannot be told.
#[derive(Default)]
pub(super) struct Machines {
    pub(super) known: Vec<Machine>,
    pub(super) unreadable: Vec<(VmName, Error)>,
}

pub(super) fn machines(root: &Path) -> Result<Machines, Error> {
    let mut machines = Machines::default();
    // Looking does not make a home.
    if !root.join("vms").is_dir() {
        return Ok(machines);
    }
    let home = Home::open(root)?;
    for name in home.machine_names()? {
        match read_definition(&home.vm(&name).definition()) {
            Ok(Some(found)) => machines.known.push(Machine { name: name.to_string(), tags: found.tags }),
            // It went meanwhile.
            Ok(None) => {}
            Err(error) => machines.unreadable.push((name, error)),
        }
    }
    Ok(machines)
}

fn check(root: &Path, directories: &[PathBuf], output: &Output) -> Result<u8, Error> {
    let now = Timestamp::now();
    let Read { policies, mut mistakes } = read(root, directories, now);
    let Machines { known: machines, unreadable } = machines(root)?;
    for (_, error) in &unreadable {
        output.trouble(error);
    }
    if let Some(policies) = policies.as_ref().filter(|_| !machines.is_empty()) {
        mistakes.extend(policies.against(&machines));
    }
    let errors = mistakes.iter().filter(|mistake| mistake.severity == Severity::Error).count();
    let warnings = mistakes.len() - errors;
    let chosen = |machine: &Machine| policies.as_ref()?.for_machine(&machine.name, &machine.tags);
    let owed: Vec<_> = machines.iter().map(|machine| (machine, chosen(machine))).collect();
    let mut text: String = mistakes.iter().map(told).collect();
    if let Some(policies) = &policies {
        let count = |count: usize, one: &str, more: &str| format!("{count} {}", if count == 1 { one } else { more });
        let _ = writeln!(
            text,
            "{} in {}; {} here",
            count(policies.policies.len(), "policy", "policies"),
            count(policies.files.len(), "file", "files"),
            count(machines.len(), "machine", "machines"),
        );
        for (machine, owed) in &owed {
            let by = owed.as_ref().map_or("nothing: no policy chooses it".to_owned(), |owed| owed.policy.to_string());
            let _ = writeln!(text, "  {}: {by}", machine.name);
        }
    }
    let verdict = match (errors, warnings) {
        (0, 0) => "nothing is wrong".to_owned(),
        (0, warnings) => format!("they can be used; warnings: {warnings}"),
        (errors, warnings) => format!("they cannot be used; errors: {errors}, warnings: {warnings}"),
    };
    let _ = writeln!(text, "{verdict}");
    let by_machine = owed.iter().map(|(machine, owed)| {
        let policy = owed.as_ref().map(|owed| &owed.policy);
        json!({"name": machine.name, "tags": machine.tags, "policy": policy})
    });
    let document = json!({
        "usable": errors == 0,
        "errors": errors,
        "warnings": warnings,
        "mistakes": mistakes,
        "files": policies.as_ref().map(|policies| &policies.files),
        "policies": policies.as_ref().map(|policies| policies.policies.values().collect::<Vec<_>>()),
        "machines": by_machine.collect::<Vec<_>>(),
    });
    output.result("policy-check", &document, text);
    Ok(match (errors, unreadable.is_empty()) {
        (0, true) => 0,
        (0, false) => INCOMPLETE,
        _ => FAILED,
    })
}

/// What one machine is owed; nothing, and said why, when that cannot be told or no policy chooses it.
fn owed(root: &Path, of: &PolicyOf, output: &Output) -> Result<Option<(Owed, Timestamp)>, Error> {
    let now = Timestamp::now();
    let Machines { known, unreadable } = machines(root)?;
    if let Some((_, error)) = unreadable.into_iter().find(|(name, _)| *name == of.vm) {
        return Err(error);
    }
    let known = known.into_iter().find(|machine| machine.name == of.vm.as_str());
    if known.is_none() && of.tags.is_empty() {
        return Err(Error::NoMachine(of.vm.clone()));
    }
    let mut tags = known.map(|machine| machine.tags).unwrap_or_default();
    tags.extend(of.tags.iter().map(ToString::to_string));
    let Read { policies, mistakes } = read(root, &of.directories, now);
    for mistake in mistakes.iter().filter(|mistake| mistake.severity == Severity::Error) {
        eprint!("{}", told(mistake));
    }
    let Some(policies) = policies else {
        let advice = "put right what is told above; `keyframe policy check` tells it again";
        failed(output, "the policies cannot be used", advice);
        return Ok(None);
    };
    let Some(owed) = policies.for_machine(of.vm.as_str(), &tags) else {
        let advice = "name it, or one of its tags, in a policy's machines; `keyframe policy example` shows one";
        failed(output, &format!("{} is owed nothing: no policy chooses it", of.vm), advice);
        return Ok(None);
    };
    for other in &owed.contradicted_by {
        let by = &owed.policy;
        output.note(&format!("policy {other} chooses {} with the same priority: {by} counts, by its name only", of.vm));
    }
    Ok(Some((owed, now)))
}

fn failed(output: &Output, what: &str, advice: &str) {
    eprintln!("error: {what}\n  try: {advice}");
    if output.is_json() {
        let document = json!({"error": what, "kind": "failed", "kept": null, "advice": advice});
        output.result("error", &document, "");
    }
}

/// A mistake with the line it is in.
fn told(mistake: &Mistake) -> String {
    let severity = match mistake.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    let place = &mistake.place;
    let mut text = format!("{place}: {severity}: {}\n", mistake.what);
    let line = std::fs::read_to_string(&place.file)
        .ok()
        .and_then(|text| text.lines().nth(place.line - 1).map(str::to_owned))
        .filter(|line| line.chars().count() <= 200 && !line.chars().any(char::is_control));
    if let Some(line) = line {
        let number = place.line.to_string();
        let _ =
            writeln!(text, "  {number} | {line}\n  {} | {}^", " ".repeat(number.len()), " ".repeat(place.column - 1));
    }
    let _ = writeln!(text, "  try: {}", mistake.remedy);
    text
}
