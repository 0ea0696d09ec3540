//! Storing a machine's disks, whoever shows them, and the point that says what is in it.

use std::ops::Range;
use std::sync::Arc;

use keyframe_hypervisor::MachineDefinition;
use keyframe_qcow2::Format;
use keyframe_repo::source::{self, Source};
use keyframe_repo::{Point, Repository, Run, Session, WriteOptions};
use keyframe_types::{ByteLen, LayerId};

use crate::context::Context;
use crate::error::Error;
use crate::failpoint::{Failpoint, pass};
use crate::state::head::{Chain, Fingerprint};

use super::BackupRequest;
use super::audit::{Audited, Auditor};
use super::changes::Changes;
use super::point::{ChangedBy, DiskInPoint, INITRD, KERNEL, MachinePoint};
use super::unreadable::Tolerant;
use serde::Serialize;

/// A point that was made.
pub struct Stored<D = MachinePoint> {
    pub point: Point,
    /// What it says is in it.
    pub document: D,
    pub audited: Option<ByteLen>,
    /// What an audit found.
    pub found: Vec<String>,
}

/// The latest point of the machine, and the machine in it.
pub type Previous = (Point, MachinePoint);

/// What a later backup can go by: what is stored is in this file.
pub struct KnownAs {
    pub file: LayerId,
    /// What a frozen layer's file looks like.
    pub fingerprint: Option<Fingerprint>,
    /// What QEMU notes of the file since is noted under this name.
    pub noted_since: Option<String>,
}

/// What a point shall be called, and how it is made.
#[derive(Debug, Clone)]
pub struct Making {
    /// Its history: a machine's name, or a group's.
    pub name: String,
    /// So many percent of what change tracking calls unchanged is read and compared; 0 for none.
    pub audit_percent: u8,
    /// Words to find it by.
    pub tags: Vec<String>,
}

impl Making {
    /// A machine's point.
    pub fn of(request: &BackupRequest) -> Self {
        let name = request.vm.as_str().to_owned();
        Self { name, audit_percent: request.audit_percent, tags: request.tags.clone() }
    }
}

/// A point that is being made.
pub struct Storing<'a> {
    making: Making,
    /// The machine that is being stored, as the point before has it.
    before: Option<&'a MachinePoint>,
    /// What its images' labels begin with.
    prefix: String,
    session: Session<'a>,
    run: Run<'a>,
    auditor: Option<Auditor<'a>>,
    audited: Option<ByteLen>,
    found: Vec<String>,
    disks: Vec<DiskInPoint>,
}

impl<'a> Storing<'a> {
    /// Begins behind the point before.
    ///
    /// # Errors
    /// [`Error::Repository`].
    pub fn begin(
        repository: &'a Arc<Repository>,
        making: Making,
        previous: Option<&'a Point>,
        run: Run<'a>,
    ) -> Result<Self, Error> {
        let auditor = match previous {
            Some(point) if making.audit_percent > 0 => Some(Auditor::new(repository, point, making.audit_percent)?),
            _ => None,
        };
        Ok(Self {
            making,
            before: None,
            prefix: String::new(),
            session: Session::begin(repository, previous.cloned(), WriteOptions::default())?,
            run,
            audited: auditor.as_ref().map(|_| ByteLen::ZERO),
            auditor,
            found: Vec::new(),
            disks: Vec::new(),
        })
    }

    /// What is stored from now on is of a machine that the point before has as `before`; its images' labels begin with `prefix`.
    pub fn machine(&mut self, prefix: String, before: Option<&'a MachinePoint>) {
        (self.prefix, self.before) = (prefix, before);
    }

    /// The machine's disks, when all are stored.
    pub fn disks(&mut self) -> Vec<DiskInPoint> {
        std::mem::take(&mut self.disks)
    }

    /// Stores an image besides the disks.
    ///
    /// # Errors
    /// [`Error::Repository`].
    pub fn image(&mut self, label: &str, source: &dyn Source) -> Result<(), Error> {
        let label = self.label(label);
        Ok(self.session.add_image(&label, source, None, self.run)?)
    }

    fn label(&self, of_machine: &str) -> String {
        format!("{}{of_machine}", self.prefix)
    }

    /// Stores a disk; of one of which it is known what changed, that.
    ///
    /// # Errors
    /// [`Error::Repository`], [`Error::Interrupted`].
    pub fn disk(
        &mut self,
        chain: &Chain,
        source: &dyn Source,
        changes: Option<Changes>,
        known_as: KnownAs,
    ) -> Result<(), Error> {
        // One that was resized behind our back: who notes writes does not note that.
        let changes = changes.filter(|_| source.bytes() == chain.top().map_or(0, |top| top.virtual_bytes.bytes()));
        let changes = match changes {
            Some(changes) => self.audit(chain, source, changes)?,
            None => None,
        };
        let extents = changes.as_ref().map(|changes| changes.extents.as_slice());
        let unreadable = self.tolerantly(chain, source, extents)?;
        let is_known = self.before.is_some_and(|point| point.disk(&chain.disk).is_some());
        self.disks.push(DiskInPoint {
            disk: chain.disk.clone(),
            bytes: ByteLen::from_bytes(source.bytes()),
            changed_by: match changes {
                Some(changes) => changes.by,
                None if is_known => ChangedBy::Compare,
                None => ChangedBy::Full,
            },
            file: known_as.file,
            fingerprint: known_as.fingerprint,
            noted_since: known_as.noted_since,
            unreadable,
        });
        Ok(())
    }

    fn tolerantly(
        &mut self,
        chain: &Chain,
        source: &dyn Source,
        extents: Option<&[Range<u64>]>,
    ) -> Result<Vec<Range<u64>>, Error> {
        let tolerant = Tolerant::new(source);
        self.session.add_image(&self.label(chain.disk.as_str()), &tolerant, extents, self.run)?;
        Ok(tolerant.unreadable())
    }

    /// Looks whether what is said to be unchanged is; gives what may be relied on.
    fn audit(&mut self, chain: &Chain, source: &dyn Source, changes: Changes) -> Result<Option<Changes>, Error> {
        let Some(auditor) = &self.auditor else { return Ok(Some(changes)) };
        let by = changes.by.as_str();
        let found = match auditor.audit(&self.label(chain.disk.as_str()), source, &changes.extents, self.run) {
            Ok(found) => found,
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            Err(error) => {
                let disk = &chain.disk;
                self.found.push(format!("{disk} could not be audited, and was compared: {}", error.told()));
                Audited { read: ByteLen::ZERO, differs_at: None, failed: true }
            }
        };
        self.audited = self.audited.map(|bytes| bytes + found.read);
        if let Some(at) = found.differs_at {
            self.found.push(format!(
                "the audit found that {by} changed at byte {at} of {} and did not say so: all of that disk was compared, and \
                 the point is right. Points since the last comparison of it may not be: make sure that nothing but \
                 Keyframe and its QEMU writes to its layers, and report it",
                chain.disk
            ));
        }
        Ok(Some(changes).filter(|_| !found.failed && found.differs_at.is_none()))
    }

    /// Stores the kernel that QEMU loads itself, where the machine has one.
    ///
    /// # Errors
    /// [`Error::Repository`].
    pub fn kernel(&mut self, definition: &MachineDefinition) -> Result<(), Error> {
        let Some(kernel) = &definition.kernel else { return Ok(()) };
        self.image(KERNEL, &*source::open(&kernel.kernel, Some(Format::Raw))?)?;
        if let Some(initrd) = &kernel.initrd {
            self.image(INITRD, &*source::open(initrd, Some(Format::Raw))?)?;
        }
        Ok(())
    }

    /// Makes the point: the commit. `document` says what is in it.
    ///
    /// # Errors
    /// [`Error::Repository`]: there is no point then.
    pub fn commit<D: Serialize>(self, ctx: &Context<'_>, document: D, stored: Failpoint) -> Result<Stored<D>, Error> {
        let extra = serde_json::to_value(&document).map_err(|source| Error::Encode { source })?;
        pass(stored)?;
        ctx.progress.step("finishing the point");
        let point = self.session.commit(&self.making.name, self.making.tags, extra)?;
        Ok(Stored { point, document, audited: self.audited, found: self.found })
    }
}
