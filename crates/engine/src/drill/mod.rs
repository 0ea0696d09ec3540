//! Does a snapshot really come back? It is brought up in isolation, asked whether it works, and thrown away.
//!
//! ```text
//!   claim ─▶ layers, image checked ─▶ process ─▶ runs ─▶ probes ─▶ evidence ─▶ thrown away ─▶ record
//! ```
//! The snapshot's machine is locked only while the claim is taken ([`claim`] says why). Whatever happens behind that, the
//! throw-away machine goes with the claim: at the end, on failure, on Ctrl-C; and when the command is killed, its guard or the
//! next command on the machine removes it. The record is the only thing that stays, and comes last: a verdict is on record
//! only when nothing of the test is left.
//!
//! What keeps the *test* from being carried out (no room, no QEMU, an interruption) is an error and no verdict.

mod claim;
pub mod group;
mod picture;
pub mod point;
mod probe;
pub mod record;
mod throwaway;
pub(crate) mod together;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use keyframe_hypervisor::probe::MOST_PROBES;
use keyframe_hypervisor::{ProbeDefinition, isolation};
use keyframe_types::{SnapshotId, SnapshotName, SnapshotRef, SnapshotSelector, Timestamp, VmName};
use serde::Serialize;

use crate::bringup::{Source, Strategy};
use crate::context::Context;
use crate::error::Error;
use crate::failpoint::{Failpoint, pass};
use crate::guard::Guard;
use crate::machine::Machine;
use crate::sharing;
use crate::snapshots;
use crate::space;
use crate::state::home::{Home, SnapshotDir};
use crate::state::lock::Lock;
use crate::state::manifest::Manifest;
use keyframe_memory::Keeping;

pub(crate) use claim::{Claim, being_tested, has_leftovers, tidy};
use probe::Probes;
use record::{Check, Evidence, TestRecord, Verdict};
use throwaway::{Parts, Throwaway};
use together::{Together, Up};

/// The longest that all probes together may take.
const LONGEST_LIMIT: Duration = Duration::from_secs(24 * 3600);
/// How much of the end of the serial console's log is kept as evidence, in bytes.
const SERIAL_KEPT: usize = 64 << 10;

/// What to test, and how.
#[derive(Debug, Clone)]
pub struct TestRequest {
    /// The machine.
    pub vm: VmName,
    /// The snapshot.
    pub snapshot: SnapshotSelector,
    /// How long all probes together may take, from the start of the throw-away machine's process.
    pub within: Duration,
    /// Probes besides those that the machine's definition declares.
    pub probes: Vec<ProbeDefinition>,
}

/// What a test came to.
#[derive(Debug, Serialize)]
pub struct TestReport {
    /// The machine.
    pub vm: VmName,
    /// The snapshot.
    pub id: SnapshotId,
    /// Its name.
    pub name: SnapshotName,
    /// What is on record.
    #[serde(flatten)]
    pub record: TestRecord,
    /// Where evidence lies.
    pub evidence: Option<PathBuf>,
}

/// The snapshots of a machine that [`test`] can be asked for, by age.
///
/// # Errors
/// [`Error::NoMachine`], [`Error::Io`].
pub fn all_of(ctx: &Context<'_>, vm: &VmName) -> Result<Vec<SnapshotRef>, Error> {
    let machine = Machine::open(ctx.home, vm)?;
    let (manifests, damaged) = snapshots::scan(&machine.dir)?;
    let ids = manifests.iter().map(|manifest| &manifest.id).chain(damaged.iter().map(|damaged| &damaged.id));
    // An id is as good a name as any.
    Ok(ids.filter_map(|id| format!("{vm}@{id}").parse().ok()).collect())
}

/// Tests a snapshot, and puts the verdict on record.
///
/// # Errors
/// Whatever keeps the test from being carried out: [`Error::NoSnapshot`], [`Error::Busy`], [`Error::BadProbe`],
/// [`Error::MayLeadOutside`], [`Error::NoSpace`], [`Error::Interrupted`]. A snapshot that does not come back is no error
/// but a verdict.
pub fn test(ctx: &Context<'_>, request: &TestRequest) -> Result<TestReport, Error> {
    test_in(ctx, request, None)
}

/// [`test`], up at the same time as the machines of a group, and on one network with them.
pub(crate) fn test_in(
    ctx: &Context<'_>,
    request: &TestRequest,
    together: Option<Together>,
) -> Result<TestReport, Error> {
    let begun = Instant::now();
    let Claimed { claim, manifest, machine, mut declared, shared } = claim_snapshot(ctx, request)?;
    let asked_for = declared.len();
    if together.is_some() {
        declared.retain(|probe| !matches!(probe, ProbeDefinition::Tcp { .. }));
    }
    let guard = Guard::post(ctx.home, &request.vm)?;
    let dir = machine.dir.snapshot(&manifest.id);
    let mut trial = Trial::new(ctx, claim, dir.clone(), &declared, request.within, begun);
    if declared.len() < asked_for {
        trial.record.notes.push(
            "its tcp probes are not asked: the machines of a group are on a network of their own, and the host is not on it"
                .to_owned(),
        );
    }
    let tested = trial.carry_out(&machine, &manifest, together).and_then(|()| trial.conclude());
    // What is left of a test that failed, its claim removes when it goes.
    drop(trial);
    if shared && let Ok(Some(_lock)) = Lock::attempt(&machine.dir.lock(), "sharing memory again") {
        sharing::share_if_possible(ctx, &machine, &manifest.id);
    }
    guard.dismiss();
    let record = tested?;
    let kept = record.screenshot.is_some() || record.serial.is_some();
    let evidence = kept.then(|| dir.evidence());
    Ok(TestReport { vm: request.vm.clone(), id: manifest.id, name: manifest.name, record, evidence })
}

/// A snapshot that nobody deletes meanwhile.
struct Claimed {
    claim: Claim,
    manifest: Manifest,
    machine: Machine,
    declared: Vec<ProbeDefinition>,
    /// Its memory lay partly in other snapshots' files, and shall again: a test maps one file.
    shared: bool,
}

/// Finds the snapshot and takes its place.
fn claim_snapshot(ctx: &Context<'_>, request: &TestRequest) -> Result<Claimed, Error> {
    let (_lock, machine) = Machine::lock(ctx, &request.vm, &format!("test {}@{}", request.vm, request.snapshot))?;
    let manifest = snapshots::find(&machine.dir, &request.vm, &request.snapshot)?;
    let declared: Vec<_> = machine.definition.probes.iter().chain(&request.probes).cloned().collect();
    if declared.len() > MOST_PROBES {
        return Err(Error::BadRequest { what: format!("a machine is asked at most {MOST_PROBES} probes") });
    }
    if request.within > LONGEST_LIMIT {
        return Err(Error::BadRequest { what: "a test may last for 24 hours at most".to_owned() });
    }
    // Refused before anything is made.
    Probes::of(&declared)?;
    space::check(ctx.home.root(), keyframe_types::ByteLen::ZERO)?;
    let claim = Claim::take(&machine.dir, &manifest.id)?;
    pass(Failpoint::TestClaimed)?;
    // While nobody else works on the machine. What it fails with, the test itself finds and tells.
    let shared = matches!(sharing::keeping(&machine.dir, &manifest.id), Ok(Some(Keeping::Shared)));
    if shared && let Err(error) = sharing::make_whole(ctx, &machine.dir, &manifest) {
        ctx.progress.note(&format!("its memory could not be made whole: {error}"));
    }
    Ok(Claimed { claim, manifest, machine, declared, shared })
}

/// Every file, absolute, that a test which is under way stands on, of any machine: layers, and memory images. Whoever merges or
/// changes such files holds the machine's lock and asks first; tests of it do not begin meanwhile.
///
/// # Errors
/// [`Error::Io`] when it cannot be told what is tested, [`Error::Damaged`] when it cannot be told what that stands on.
pub fn stood_on(home: &Home) -> Result<BTreeSet<PathBuf>, Error> {
    let mut files = BTreeSet::new();
    for name in home.machine_names()? {
        let dir = home.vm(&name);
        for id in being_tested(&dir)? {
            let Some(manifest) = snapshots::read(&dir, &id)? else { continue };
            files.extend(manifest.memory.is_some().then(|| dir.snapshot(&id).memory()));
            let layers = manifest.chains().flat_map(|chain| &chain.layers);
            files.extend(layers.map(|layer| home.absolute(&layer.path)));
        }
    }
    Ok(files)
}

/// A test that is under way.
struct Trial<'a> {
    ctx: &'a Context<'a>,
    claim: Claim,
    dir: SnapshotDir,
    declared: &'a [ProbeDefinition],
    evidence: Evidence,
    begun: Instant,
    record: TestRecord,
}

impl<'a> Trial<'a> {
    fn new(
        ctx: &'a Context<'a>,
        claim: Claim,
        dir: SnapshotDir,
        declared: &'a [ProbeDefinition],
        within: Duration,
        begun: Instant,
    ) -> Self {
        let started = Timestamp::now();
        let evidence = Evidence::of(&dir, started);
        let record = TestRecord {
            started,
            verdict: Verdict::Failed,
            strategy: None,
            within_ms: u64::try_from(within.as_millis()).unwrap_or(u64::MAX),
            running_ms: None,
            total_ms: 0.0,
            checks: Vec::new(),
            screenshot: None,
            serial: None,
            notes: Vec::new(),
        };
        Self { ctx, claim, dir, declared, evidence, begun, record }
    }

    /// Brings the snapshot up and asks it. What it does not pass is in the record.
    fn carry_out(&mut self, machine: &Machine, manifest: &Manifest, together: Option<Together>) -> Result<(), Error> {
        let ctx = self.ctx;
        let Some(source) = self.examine(machine, manifest)? else { return Ok(()) };
        self.record.strategy = Some(source.strategy);
        let network = match &together {
            Some(together) => together.network.clone(),
            None => isolation::network_for(probe::guest_address(self.declared)?),
        };
        let parts = Parts::make(ctx, &self.claim, manifest, network)?;
        pass(Failpoint::TestPrepared)?;
        ctx.progress.step("starting the throw-away machine");
        let started = parts.start(ctx, &self.claim, &source);
        let Some(mut throwaway) = self.step("starts", started, |_| "its QEMU has started".to_owned())? else {
            return Ok(());
        };
        let asked = match self.bring_up(&mut throwaway, (&source, manifest), together) {
            Ok(Some(up)) => self.ask(&mut throwaway).and_then(|()| up.until_all_are_asked(ctx.cancel)),
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if asked.is_ok() {
            self.keep_evidence(&mut throwaway);
            pass(Failpoint::TestEvidenceKept)?;
        }
        asked
    }

    /// What can be seen without starting anything: layers and memory image.
    fn examine(&mut self, machine: &Machine, manifest: &Manifest) -> Result<Option<Source>, Error> {
        let layers = Machine::check_layers(self.ctx.home, manifest.chains()).map_err(|error| match error {
            // A layer that cannot even be looked at says something about the snapshot.
            Error::Io { path, source, .. } => Error::Damaged { path, reason: source.to_string() },
            other => other,
        });
        if self.step("layers", layers, |()| "all there and untouched".to_owned())?.is_none() {
            return Ok(None);
        }
        let strategy = manifest.memory.is_some().then_some(Strategy::Mapped);
        let source = Source::prepare(self.ctx, &machine.dir, manifest.clone(), strategy)
            .and_then(|source| source.verify(self.ctx).map(|()| source));
        self.step("memory image", source, |source| match source.strategy {
            Strategy::Cold => "there is none: it boots from its disks".to_owned(),
            _ => "every page is as its checksum says".to_owned(),
        })
    }

    /// Loads the state and lets it run, when those that it is up together with do; `None` if it does not.
    fn bring_up(
        &mut self,
        throwaway: &mut Throwaway,
        (source, manifest): (&Source, &Manifest),
        together: Option<Together>,
    ) -> Result<Option<Up>, Error> {
        pass(Failpoint::TestStarted)?;
        let loaded = source.load(&mut throwaway.started);
        if self.step("loads", loaded, |()| "QEMU has taken its state".to_owned())?.is_none() {
            return Ok(None);
        }
        pass(Failpoint::TestLoaded)?;
        let mut up = Up::default();
        if let Some(together) = together {
            up = together.ready(self.ctx.cancel)?;
            // The wait for others is none of its own.
            throwaway.begun = Instant::now();
        }
        let ran = throwaway.run(manifest);
        let Some((running, notes)) = self.step("runs", ran, |_| "its processors run".to_owned())? else {
            return Ok(None);
        };
        self.record.running_ms = Some(ms(running));
        if let Some(check) = self.record.checks.last_mut() {
            check.after_ms = self.record.running_ms;
        }
        self.record.notes.extend(notes);
        pass(Failpoint::TestRunning)?;
        Ok(Some(up))
    }

    fn ask(&mut self, throwaway: &mut Throwaway) -> Result<(), Error> {
        self.ctx.progress.step("waiting for it to answer");
        let deadline = throwaway.begun + Duration::from_millis(self.record.within_ms);
        let checks = probe::ask_all(self.ctx, throwaway, Probes::of(self.declared)?, deadline)?;
        self.record.checks.extend(checks);
        pass(Failpoint::TestProbed)
    }

    /// Keeps what can be seen of the machine. That some of it cannot be had is no verdict.
    fn keep_evidence(&mut self, throwaway: &mut Throwaway) {
        if throwaway.instance().is_alive() {
            let kept = throwaway
                .screen()
                .and_then(|picture| self.evidence.keep_picture(&picture).map_err(|error| told(&error)));
            match kept {
                Ok(name) => self.record.screenshot = Some(name),
                Err(trouble) => self.record.notes.push(format!("there is no picture of its screen: {trouble}")),
            }
        }
        let said = throwaway.serial();
        if !said.is_empty() {
            let end = said.len().saturating_sub(SERIAL_KEPT);
            match self.evidence.keep_serial(said.get(end..).unwrap_or_default()) {
                Ok(name) => self.record.serial = Some(name),
                Err(error) => self.record.notes.push(format!("its serial console is not kept: {}", told(&error))),
            }
        }
    }

    /// Throws the machine away and puts the verdict on record.
    fn conclude(&mut self) -> Result<TestRecord, Error> {
        self.claim.throw_away_machine()?;
        pass(Failpoint::TestThrownAway)?;
        if self.record.failed().next().is_none() {
            self.record.verdict = Verdict::Passed;
        }
        self.record.total_ms = ms(self.begun.elapsed());
        let notes = record::add(&self.dir, &self.record)?;
        pass(Failpoint::TestRecorded)?;
        self.record.notes.extend(notes);
        Ok(self.record.clone())
    }

    /// Notes how a step went; gives what it made, if it went well.
    ///
    /// # Errors
    /// What says nothing about the snapshot.
    fn step<T>(
        &mut self,
        name: &str,
        result: Result<T, Error>,
        seen: impl Fn(&T) -> String,
    ) -> Result<Option<T>, Error> {
        let check = |passed, seen| Check { name: name.to_owned(), passed, after_ms: None, seen };
        match result {
            Ok(made) => {
                self.record.checks.push(check(true, seen(&made)));
                Ok(Some(made))
            }
            Err(error) if says_nothing(&error) => Err(error),
            Err(error) => {
                self.record.checks.push(check(false, told(&error)));
                Ok(None)
            }
        }
    }
}

/// Whether an error says nothing about the snapshot: the test could not be carried out.
fn says_nothing(error: &Error) -> bool {
    use keyframe_hypervisor::Error as Hypervisor;
    use keyframe_memory::Error as Memory;
    match error {
        Error::Interrupted | Error::Failpoint { .. } | Error::NoSpace { .. } | Error::Host(_) | Error::Io { .. } => {
            true
        }
        Error::Hypervisor(error) => matches!(error, Hypervisor::Cancelled | Hypervisor::Io { .. }),
        Error::Memory { source, .. } => matches!(source, Memory::Cancelled),
        _ => false,
    }
}

/// An error with its causes, in one line.
fn told(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

/// A span in milliseconds, to the microsecond.
fn ms(span: Duration) -> f64 {
    (span.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_in_a_definition_read_back_and_unknown_members_are_refused() {
        #[derive(Debug, PartialEq, serde::Deserialize, Serialize)]
        struct Part {
            probe: Vec<ProbeDefinition>,
        }
        let text = r#"
            [[probe]]
            kind = "agent"
            [[probe]]
            kind = "serial"
            regex = "login: $"
            send = "\n"
            [[probe]]
            kind = "tcp"
            port = 5432
            address = "192.168.1.5"
            [[probe]]
            kind = "command"
            run = ["/usr/bin/pg_isready", "-q"]
            [[probe]]
            kind = "screen"
        "#;
        let part: Part = toml::from_str(text).unwrap();
        assert_eq!(part.probe.len(), 5);
        let again: Part = toml::from_str(&toml::to_string_pretty(&part).unwrap()).unwrap();
        assert_eq!(again, part);
        for (good, bad) in [
            ("kind = \"agent\"", "kind = \"agent\"\nregex = \"x\""),
            ("kind = \"screen\"", "kind = \"screen\"\nport = 1"),
            ("port = 5432", "port = 0"),
            ("port = 5432", "ports = 5432"),
            ("\"192.168.1.5\"", "\"localhost\""),
            ("kind = \"tcp\"", "kind = \"udp\""),
        ] {
            assert!(toml::from_str::<Part>(&text.replace(good, bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_fails_on_the_host_is_no_verdict_on_the_snapshot() {
        let id = SnapshotId::random();
        let damaged = keyframe_memory::Error::DamagedSums { path: "memory.b3".into() };
        assert!(says_nothing(&Error::Interrupted));
        assert!(says_nothing(&Error::Memory { id: id.clone(), source: keyframe_memory::Error::Cancelled }));
        assert!(!says_nothing(&Error::Memory { id: id.clone(), source: damaged }));
        assert!(!says_nothing(&Error::LayerMissing { path: "x".into() }));
    }
}
