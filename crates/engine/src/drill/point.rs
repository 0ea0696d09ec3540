//! Does a point really come back? It is restored into a home of its own, brought up in isolation, asked whether it works, and
//! thrown away; what was seen stays as evidence.
//!
//! ```text
//!   scratch home ─▶ restore ─▶ disks compared ─▶ running state goes on ─▶ cold start ─▶ thrown away ─▶ document, page ─▶ entry
//! ```
//! A point that does not come back is no error but a verdict; what keeps the drill from being carried out (no room, a
//! repository that cannot be reached) is an error and no verdict.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyframe_hypervisor::ProbeDefinition;
use keyframe_repo::index::Hooks;
use keyframe_repo::{ImageReader, Point, Repository};
use keyframe_types::{ByteLen, DiskId, InstanceId, SnapshotName, SnapshotSelector, Timestamp, VmName};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::backup::MachinePoint;
use crate::context::Context;
use crate::drill::record::{TestRecord, Verdict};
use crate::drill::together::Together;
use crate::drill::{self, TestReport, TestRequest, ms, told};
use crate::error::{Error, IoContext as _};
use crate::evidence::{self, Ledger};
use crate::machine::{Machine, kill_strays};
use crate::restore::machine as restoring;
use crate::snapshot::{self, SnapshotRequest};
use crate::state::durable;
use crate::state::home::Home;
use crate::state::lock::Lock;
use crate::state::manifest::Consistency;

/// The document's form.
const SCHEMA: &str = "keyframe.drill/1";
/// How long another drill may take to find its place.
const MAKING_PATIENCE: Duration = Duration::from_secs(60);
/// What is compared at once.
const PIECE_BYTES: usize = 4 << 20;
/// How much of the end of a console is on the page.
const SERIAL_SHOWN: usize = 8 << 10;

/// Which ways of coming back are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ways {
    /// Its running state goes on, where the point has one, and it starts from its disks.
    All,
    /// Only its running state.
    Resume,
    /// Only from its disks.
    Cold,
}

/// How to drill.
#[derive(Debug, Clone)]
pub struct DrillRequest {
    /// Which ways.
    pub ways: Ways,
    /// How long all probes of one way may take together.
    pub within: Duration,
    /// Probes besides those that the machine's definition declares.
    pub probes: Vec<ProbeDefinition>,
}

/// A disk that was restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrilledDisk {
    /// Which.
    pub disk: DiskId,
    /// Its size.
    pub bytes: ByteLen,
    /// BLAKE3 of what was restored, which is what the repository has; `None` where it is not.
    pub blake3: Option<String>,
}

/// What a drill came to: the document that is evidence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DrillRecord {
    schema: String,
    /// The point: its name, `@` and its id.
    pub point: String,
    /// When the state in it was.
    pub state_of: Timestamp,
    /// What the point promises.
    pub consistency: Consistency,
    /// When the drill began.
    pub started: Timestamp,
    /// On which host.
    pub host: String,
    /// By which Keyframe.
    pub keyframe: String,
    /// How it ended.
    pub verdict: Verdict,
    /// From the drill's beginning until everything was restored, in milliseconds.
    pub restored_ms: Option<f64>,
    /// Why it could not be restored.
    pub trouble: Option<String>,
    /// Its disks.
    pub disks: Vec<DrilledDisk>,
    /// How its running state went on.
    pub resume: Option<TestRecord>,
    /// How it started from its disks.
    pub cold: Option<TestRecord>,
    /// The machines of its group that were up at the same time, on one network with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub together_with: Vec<VmName>,
    /// The whole drill, in milliseconds.
    pub total_ms: f64,
    /// What a person should know.
    pub notes: Vec<String>,
    /// Bytes of its disks that could not be read when the point was made, and are zeros.
    pub unreadable_bytes: ByteLen,
    /// BLAKE3 of the files beside this document, in hexadecimal, by their names.
    pub files: BTreeMap<String, String>,
}

/// A drill and where its evidence lies.
#[derive(Debug, Serialize)]
pub struct DrillReport {
    /// The document.
    #[serde(flatten)]
    pub record: DrillRecord,
    /// Its entry in the log.
    pub entry: evidence::Entry,
    /// The directory with the document, the page, pictures and consoles.
    pub evidence: PathBuf,
}

/// Drills a point.
///
/// # Errors
/// Whatever keeps it from being carried out; there is no verdict then, and nothing of it is left.
pub fn drill(
    ctx: &Context<'_>,
    repository: &Arc<Repository>,
    point: &Point,
    request: &DrillRequest,
) -> Result<DrillReport, Error> {
    let machine = MachinePoint::of(point)?;
    if request.ways == Ways::Resume && machine.snapshot.memory.is_none() {
        let what = format!("{}@{} has no running state to go on with", point.name, point.id.short());
        return Err(Error::BadRequest { what });
    }
    drill_in(ctx, repository, point, request, Company::default())
}

/// What a machine is up together with, on each of the ways.
#[derive(Debug, Default)]
pub(crate) struct Company {
    pub(crate) resume: Option<Together>,
    pub(crate) cold: Option<Together>,
    /// The others.
    pub(crate) with: Vec<VmName>,
}

/// [`drill`], together with the machines of a group.
pub(crate) fn drill_in(
    ctx: &Context<'_>,
    repository: &Arc<Repository>,
    point: &Point,
    request: &DrillRequest,
    company: Company,
) -> Result<DrillReport, Error> {
    let begun = Instant::now();
    let machine = MachinePoint::of(point)?;
    let scratch = Scratch::make(ctx.home)?;
    let ledger = Ledger::of(ctx.home);
    let started = Timestamp::now();
    let record = DrillRecord {
        schema: SCHEMA.to_owned(),
        point: format!("{}@{}", point.name, point.id),
        state_of: machine.snapshot.created,
        consistency: machine.snapshot.consistency,
        started,
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        keyframe: machine_version(),
        verdict: Verdict::Failed,
        restored_ms: None,
        trouble: None,
        disks: Vec::new(),
        resume: None,
        cold: None,
        together_with: company.with.clone(),
        total_ms: 0.0,
        notes: Vec::new(),
        unreadable_bytes: machine.unreadable_bytes(),
        files: BTreeMap::new(),
    };
    let inner = Context { home: &scratch.home, ..*ctx };
    let mut drilling = Drilling { ctx: &inner, repository, point, request, begun, record, seen: Vec::new() };
    drilling.carry_out(&machine, company)?;
    let Drilling { mut record, seen, .. } = drilling;
    scratch.throw_away()?;
    record.total_ms = ms(begun.elapsed());
    keep(&ledger, record, &seen)
}

fn machine_version() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}

/// Writes document, page and what was seen, and then the entry that names them.
fn keep(ledger: &Ledger, mut record: DrillRecord, seen: &[Seen]) -> Result<DrillReport, Error> {
    let dir = ledger.place(record.started)?;
    for seen in seen {
        for (name, bytes) in seen.picture.iter().chain(&seen.serial) {
            durable::replace(&dir.join(name), bytes)?;
            record.files.insert(name.clone(), blake3::hash(bytes).to_hex().to_string());
        }
    }
    let texts: Vec<Option<String>> = seen.iter().map(Seen::end_of_serial).collect();
    let shown = seen.iter().zip(&texts).map(|(seen, text)| evidence::Seen {
        how: seen.how.title(),
        record: &seen.record,
        picture: seen.picture.as_ref().map(|(_, bytes)| bytes.as_slice()),
        serial: text.as_deref(),
    });
    let page = evidence::page(&record, &shown.collect::<Vec<_>>());
    durable::replace(&dir.join("drill.html"), page.as_bytes())?;
    record.files.insert("drill.html".to_owned(), blake3::hash(page.as_bytes()).to_hex().to_string());
    let document = dir.join("drill.json");
    let bytes = serde_json::to_vec_pretty(&record).map_err(|source| Error::Encode { source })?;
    durable::replace(&document, &bytes)?;
    let entry = ledger.add(&record.point, record.verdict, &document)?;
    Ok(DrillReport { record, entry, evidence: dir })
}

/// One way of coming back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Resume,
    Cold,
}

impl Way {
    fn title(self) -> &'static str {
        match self {
            Self::Resume => "Its running state goes on",
            Self::Cold => "It starts from its disks",
        }
    }

    fn stem(self) -> &'static str {
        match self {
            Self::Resume => "resume",
            Self::Cold => "cold",
        }
    }
}

/// What was seen on one way, with the names and bytes of its files.
struct Seen {
    how: Way,
    record: TestRecord,
    picture: Option<(String, Vec<u8>)>,
    serial: Option<(String, Vec<u8>)>,
}

impl Seen {
    fn of(how: Way, report: &TestReport) -> Self {
        let file = |name: &Option<String>, ending: &str| {
            let path = report.evidence.as_ref()?.join(name.as_ref()?);
            std::fs::read(path).ok().map(|bytes| (format!("{}.{ending}", how.stem()), bytes))
        };
        let (picture, serial) = (file(&report.record.screenshot, "png"), file(&report.record.serial, "serial.log"));
        let mut record = report.record.clone();
        record.screenshot = picture.as_ref().map(|(name, _)| name.clone());
        record.serial = serial.as_ref().map(|(name, _)| name.clone());
        Self { how, record, picture, serial }
    }

    fn end_of_serial(&self) -> Option<String> {
        let (_, bytes) = self.serial.as_ref()?;
        let from = bytes.len().saturating_sub(SERIAL_SHOWN);
        Some(String::from_utf8_lossy(bytes.get(from..).unwrap_or_default()).into_owned())
    }
}

struct Drilling<'a> {
    /// In the scratch home.
    ctx: &'a Context<'a>,
    repository: &'a Arc<Repository>,
    point: &'a Point,
    request: &'a DrillRequest,
    begun: Instant,
    record: DrillRecord,
    seen: Vec<Seen>,
}

impl Drilling<'_> {
    fn carry_out(&mut self, machine: &MachinePoint, company: Company) -> Result<(), Error> {
        let name = machine.snapshot.definition.name.clone();
        let restored = match restoring::restore(self.ctx, self.repository, self.point, &name) {
            Ok(restored) => restored,
            Err(error) if says_nothing(&error) => return Err(error),
            Err(error) => {
                self.record.trouble = Some(told(&error));
                return Ok(());
            }
        };
        self.record.restored_ms = Some(ms(self.begun.elapsed()));
        self.record.notes.extend(restored.notes);
        self.compare(&name)?;
        let Company { resume, cold, .. } = company;
        match (&restored.snapshot, self.request.ways) {
            (Some(snapshot), Ways::All | Ways::Resume) => {
                self.record.resume = Some(self.test(Way::Resume, (&name, snapshot), resume)?);
            }
            // The others do not wait for it.
            _ => drop(resume),
        }
        if self.request.ways != Ways::Resume {
            let snapshot = self.freeze_disks(&name)?;
            self.record.cold = Some(self.test(Way::Cold, (&name, &snapshot), cold)?);
        }
        let ways = self.record.resume.iter().chain(&self.record.cold);
        let all_right = self.record.disks.iter().all(|disk| disk.blake3.is_some());
        if all_right && ways.clone().count() > 0 && ways.into_iter().all(|way| way.verdict == Verdict::Passed) {
            self.record.verdict = Verdict::Passed;
        }
        Ok(())
    }

    /// Reads what was restored again, and compares it with the repository.
    fn compare(&mut self, name: &VmName) -> Result<(), Error> {
        let machine = Machine::open(self.ctx.home, name)?;
        let index = Arc::new(self.repository.index(Hooks::Skip)?);
        for chain in machine.head.chains() {
            // Of a point with memory the lowest layer is what was restored.
            let Some(layer) = chain.layers.last() else { continue };
            let label = chain.disk.as_str();
            let Some(image) = self.point.images.iter().find(|image| image.label == label) else { continue };
            self.ctx.progress.step(&format!("comparing {label}"));
            let stored = ImageReader::new(Arc::clone(self.repository), Arc::clone(&index), image.clone(), 64 << 20)?;
            let blake3 = self.same(&self.ctx.home.absolute(&layer.path), &stored)?;
            let bytes = ByteLen::from_bytes(image.bytes);
            self.record.disks.push(DrilledDisk { disk: chain.disk.clone(), bytes, blake3 });
        }
        Ok(())
    }

    /// BLAKE3 of a file that is the same as an image.
    fn same(&self, path: &Path, stored: &ImageReader) -> Result<Option<String>, Error> {
        use std::os::unix::fs::FileExt as _;
        let file = File::open(path).or_io("open", path)?;
        if file.metadata().or_io("look at", path)?.len() != stored.bytes() {
            return Ok(None);
        }
        let (mut restored, mut there) = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
        let mut hasher = blake3::Hasher::new();
        for at in (0..stored.bytes()).step_by(PIECE_BYTES) {
            self.ctx.check()?;
            let len = usize::try_from(stored.bytes() - at).unwrap_or(usize::MAX).min(PIECE_BYTES);
            let (Some(restored), Some(there)) = (restored.get_mut(..len), there.get_mut(..len)) else { continue };
            file.read_exact_at(restored, at).or_io("read", path)?;
            stored.read_at(at, there)?;
            if restored != there {
                return Ok(None);
            }
            hasher.update(restored);
        }
        Ok(Some(hasher.finalize().to_hex().to_string()))
    }

    /// A snapshot of the restored machine's disks: what it starts from.
    fn freeze_disks(&self, name: &VmName) -> Result<SnapshotName, Error> {
        let bad = |error: keyframe_types::NameError| Error::BadRequest { what: error.to_string() };
        let snapshot = SnapshotName::new(format!("drill-{}", InstanceId::random().short())).map_err(bad)?;
        let request =
            SnapshotRequest { name: Some(snapshot.clone()), disk_only: true, ..SnapshotRequest::of(name.clone()) };
        snapshot::take(self.ctx, &request)?;
        Ok(snapshot)
    }

    fn test(
        &mut self,
        way: Way,
        (vm, snapshot): (&VmName, &SnapshotName),
        together: Option<Together>,
    ) -> Result<TestRecord, Error> {
        self.ctx.progress.note(match way {
            Way::Resume => "going on with its running state",
            Way::Cold => "starting it from its disks",
        });
        let selector: SnapshotSelector = snapshot
            .as_str()
            .parse()
            .map_err(|error: keyframe_types::RefError| Error::BadRequest { what: error.to_string() })?;
        let request = TestRequest {
            vm: vm.clone(),
            snapshot: selector,
            within: self.request.within,
            probes: self.request.probes.clone(),
        };
        let report = drill::test_in(self.ctx, &request, together)?;
        let seen = Seen::of(way, &report);
        let record = seen.record.clone();
        self.seen.push(seen);
        Ok(record)
    }
}

/// Whether an error of restoring says nothing about the point.
fn says_nothing(error: &Error) -> bool {
    match error {
        Error::Repository(error) => !error.is_damage(),
        other => drill::says_nothing(other) || matches!(other, Error::OtherHost { .. } | Error::Hypervisor(_)),
    }
}

/// A home for one drill. When it is dropped, all that is in it goes.
struct Scratch {
    home: Home,
    root: PathBuf,
    /// Holds the lock.
    _held: File,
}

impl Scratch {
    /// Makes one, and removes those of drills that were killed.
    fn make(home: &Home) -> Result<Self, Error> {
        let all = home.root().join("drills");
        durable::create_private_dir(&all)?;
        // One at a time: what another is about to lock is not taken for left behind.
        let _making = Lock::wait(&home.root().join("drills.lock"), "making room for a drill", MAKING_PATIENCE)?;
        for entry in std::fs::read_dir(&all).or_io("list", &all)? {
            let path = entry.or_io("list", &all)?.path();
            if let Ok(held) = File::open(&path)
                && rustix::fs::flock(&held, FlockOperation::NonBlockingLockExclusive).is_ok()
            {
                clear(&path)?;
            }
        }
        let root = all.join(InstanceId::random().short());
        // Locked before it has its name, or another drill would take it for one that was left behind.
        let making = all.join(format!(".{}", InstanceId::random().short()));
        durable::create_private_dir(&making)?;
        let held = File::open(&making).or_io("open", &making)?;
        rustix::fs::flock(&held, FlockOperation::NonBlockingLockExclusive)
            .map_err(std::io::Error::from)
            .or_io("lock", &making)?;
        std::fs::rename(&making, &root).or_io("rename", &making)?;
        Ok(Self { home: Home::open(&root)?, root, _held: held })
    }

    fn throw_away(self) -> Result<(), Error> {
        clear(&self.root)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed now is found by the next drill.
        let _ = clear(&self.root);
    }
}

fn clear(root: &Path) -> Result<(), Error> {
    if root.join("vms").is_dir() {
        let home = Home::open(root)?;
        for name in home.machine_names()? {
            let dir = home.vm(&name);
            drill::tidy(&dir)?;
            kill_strays(&dir, &[])?;
        }
    }
    durable::remove_dir(root)
}
