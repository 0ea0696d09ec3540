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

/// A point that was made.
pub struct Stored {
    pub point: Point,
    pub machine: MachinePoint,
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

/// A point that is being made.
pub struct Storing<'a> {
    request: &'a BackupRequest,
    before: Option<&'a MachinePoint>,
    pub session: Session<'a>,
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
        request: &'a BackupRequest,
        previous: Option<&'a Previous>,
        run: Run<'a>,
    ) -> Result<Self, Error> {
        let auditor = match previous {
            Some((point, _)) if request.audit_percent > 0 => {
                Some(Auditor::new(repository, point, request.audit_percent)?)
            }
            _ => None,
        };
        let (point, before) = previous.map(|(point, machine)| (point.clone(), machine)).unzip();
        Ok(Self {
            request,
            before,
            session: Session::begin(repository, point, WriteOptions::default())?,
            run,
            audited: auditor.as_ref().map(|_| ByteLen::ZERO),
            auditor,
            found: Vec::new(),
            disks: Vec::new(),
        })
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
        let unreadable = self.image(chain, source, extents)?;
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

    fn image(
        &mut self,
        chain: &Chain,
        source: &dyn Source,
        extents: Option<&[Range<u64>]>,
    ) -> Result<Vec<Range<u64>>, Error> {
        let tolerant = Tolerant::new(source);
        self.session.add_image(chain.disk.as_str(), &tolerant, extents, self.run)?;
        Ok(tolerant.unreadable())
    }

    /// Looks whether what is said to be unchanged is; gives what may be relied on.
    fn audit(&mut self, chain: &Chain, source: &dyn Source, changes: Changes) -> Result<Option<Changes>, Error> {
        let Some(auditor) = &self.auditor else { return Ok(Some(changes)) };
        let by = changes.by.as_str();
        let found = match auditor.audit(chain.disk.as_str(), source, &changes.extents, self.run) {
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
        self.session.add_image(KERNEL, &*source::open(&kernel.kernel, Some(Format::Raw))?, None, self.run)?;
        if let Some(initrd) = &kernel.initrd {
            self.session.add_image(INITRD, &*source::open(initrd, Some(Format::Raw))?, None, self.run)?;
        }
        Ok(())
    }

    /// Makes the point: the commit.
    ///
    /// # Errors
    /// [`Error::Repository`]: there is no point then.
    pub fn commit(
        self,
        ctx: &Context<'_>,
        document: impl FnOnce(Vec<DiskInPoint>) -> MachinePoint,
        stored: Failpoint,
    ) -> Result<Stored, Error> {
        let machine = document(self.disks);
        let extra = serde_json::to_value(&machine).map_err(|source| Error::Encode { source })?;
        pass(stored)?;
        ctx.progress.step("finishing the point");
        let point = self.session.commit(self.request.vm.as_str(), self.request.tags.clone(), extra)?;
        Ok(Stored { point, machine, audited: self.audited, found: self.found })
    }
}
