//! NTFS 3, with what is resident, in runs, or told of in attribute lists; not what it compressed or encrypted.

mod dir;
mod record;
mod runs;

use std::sync::Arc;

use crate::bytes::{Fields as _, utf16};
use crate::disk::{Disk, behind_end, read_vec};
use crate::error::{Error, Result, damaged, unsupported};
use crate::fs::{About, DirEntry, FileSystem, Kind, Metadata, Node, TARGET_MOST, Time, Xattr, lookup_without_case};

use record::{ATTRIBUTE_LIST, Attribute, Record, Value};
use runs::Runs;

const VOLUME: u64 = 3;
const ROOT: u64 = 5;
/// Files of NTFS' own have numbers below this.
const OWN: u64 = 16;
const STANDARD: u32 = 0x10;
const VOLUME_NAME: u32 = 0x60;
const VOLUME_INFO: u32 = 0x70;
const DATA: u32 = 0x80;
const REPARSE: u32 = 0xc0;
/// An attribute that is read whole: lists, bitmaps, reparse points.
const WHOLE_MOST: u64 = 8 << 20;

/// A file system.
pub struct Ntfs {
    disk: Arc<dyn Disk>,
    cluster_bytes: u64,
    record_bytes: usize,
    table: Stream,
    label: String,
    serial: u64,
    dirty: bool,
}

/// The bytes of an attribute.
enum Stream {
    Here(Vec<u8>),
    Clusters { runs: Runs, size: u64, written: u64 },
}

/// What a reparse point makes of a file.
enum Reparse {
    Link(Vec<u8>),
    /// Its bytes are elsewhere, or in another form.
    Other(u32),
}

/// A size as a number of clusters, or below zero as a power of two.
fn size_of(raw: u8, cluster_bytes: u64) -> Result<usize> {
    let bytes = match raw.cast_signed() {
        clusters @ 1.. => u64::from(clusters.unsigned_abs()) * cluster_bytes,
        power => 1u64.checked_shl(u32::from(power.unsigned_abs())).unwrap_or(0),
    };
    let fits = bytes.is_power_of_two() && (512..=65536).contains(&bytes);
    if fits { Ok(bytes as usize) } else { Err(damaged("the sizes of NTFS' records")) }
}

impl Ntfs {
    /// Opens it.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn open(disk: Arc<dyn Disk>) -> Result<Self> {
        let boot = read_vec(&*disk, 0, 512)?;
        let sector = u64::from(boot.le16(11)?);
        let per_cluster = match boot.u8(13)? {
            power @ 0xf4.. => 1u64 << (256 - u16::from(power)),
            count => u64::from(count),
        };
        let cluster_bytes = sector * per_cluster;
        if !cluster_bytes.is_power_of_two() || !(512..=2 << 20).contains(&cluster_bytes) {
            return Err(damaged("the size of NTFS' clusters"));
        }
        let record_bytes = size_of(boot.u8(64)?, cluster_bytes)?;
        let table_at = boot.le64(48)?.checked_mul(cluster_bytes).ok_or_else(behind_end)?;
        let mut fs = Self {
            table: Stream::Here(read_vec(&*disk, table_at, record_bytes)?),
            disk,
            cluster_bytes,
            record_bytes,
            label: String::new(),
            serial: boot.le64(72)?,
            dirty: false,
        };
        // Where the table is is in its own first record; with that, where the rest of that is.
        let first = fs.record(0)?.attributes()?;
        let data = first.into_iter().find(|attribute| attribute.kind == DATA && attribute.name.is_empty());
        let Some(Value::Runs { runs, size, written, .. }) = data.map(|data| data.value) else {
            return Err(damaged("NTFS' table of files is nowhere"));
        };
        fs.table = Stream::Clusters { runs, size, written };
        fs.table = fs.stream(0, DATA, "")?.ok_or_else(|| damaged("NTFS' table of files is nowhere"))?;
        if let Some(name) = fs.whole(VOLUME, VOLUME_NAME, "")? {
            fs.label = utf16(&name);
        }
        if let Some(info) = fs.whole(VOLUME, VOLUME_INFO, "")? {
            fs.dirty = info.le16(10)? & 1 != 0;
        }
        Ok(fs)
    }

    fn record(&self, number: u64) -> Result<Record> {
        let mut raw = vec![0; self.record_bytes];
        let at = number.checked_mul(self.record_bytes as u64).ok_or_else(behind_end)?;
        if self.read_stream(&self.table, at, &mut raw)? < self.record_bytes {
            return Err(damaged(format!("NTFS file {number} does not exist")));
        }
        Record::parse(raw)
    }

    /// All parts of the attributes of a file, those in other records, too.
    fn attributes(&self, number: u64) -> Result<Vec<Attribute>> {
        let mut all = self.record(number)?.attributes()?;
        let Some(list) = all.iter().position(|attribute| attribute.kind == ATTRIBUTE_LIST) else { return Ok(all) };
        let list = match all.swap_remove(list).value {
            Value::Here(bytes) => bytes,
            Value::Runs { runs, size, written, .. } => self.read_whole(&Stream::Clusters { runs, size, written })?,
        };
        let mut others = Vec::new();
        let mut at = 0;
        while at + 26 <= list.len() {
            let len = usize::from(list.le16(at + 4)?);
            let other = record::number(list.le64(at + 16)?);
            if other != number && !others.contains(&other) {
                others.push(other);
            }
            if len < 26 || others.len() > 4096 {
                return Err(damaged("an NTFS attribute list"));
            }
            at += len;
        }
        for other in others {
            all.extend(self.record(other)?.attributes()?);
        }
        Ok(all)
    }

    /// The bytes of an attribute, put together of its parts.
    fn stream(&self, number: u64, kind: u32, name: &str) -> Result<Option<Stream>> {
        let mut parts = Vec::new();
        for attribute in self.attributes(number)? {
            if (attribute.kind, attribute.name.as_str()) != (kind, name) {
                continue;
            }
            attribute.refuse_changed()?;
            match attribute.value {
                Value::Here(bytes) => return Ok(Some(Stream::Here(bytes))),
                Value::Runs { first, runs, size, written } => parts.push((first, runs, size, written)),
            }
        }
        parts.sort_by_key(|(first, ..)| *first);
        let mut all = Runs::default();
        let sizes = parts.first().map(|(_, _, size, written)| (*size, *written));
        for (first, runs, ..) in parts {
            if first != all.clusters() {
                return Err(damaged(format!("a part of NTFS file {number} is missing")));
            }
            all.extend(runs)?;
        }
        Ok(sizes.map(|(size, written)| Stream::Clusters { runs: all, size, written }))
    }

    fn whole(&self, number: u64, kind: u32, name: &str) -> Result<Option<Vec<u8>>> {
        self.stream(number, kind, name)?.map(|stream| self.read_whole(&stream)).transpose()
    }

    fn read_whole(&self, stream: &Stream) -> Result<Vec<u8>> {
        let size = stream.size();
        if size > WHOLE_MOST {
            return Err(damaged("an NTFS attribute is too long"));
        }
        let mut bytes = vec![0; size as usize];
        self.read_stream(stream, 0, &mut bytes)?;
        Ok(bytes)
    }

    fn read_stream(&self, stream: &Stream, at: u64, into: &mut [u8]) -> Result<usize> {
        let len = usize::try_from(stream.size().saturating_sub(at)).unwrap_or(usize::MAX).min(into.len());
        let into = into.get_mut(..len).unwrap_or_default();
        let (runs, written) = match stream {
            Stream::Here(bytes) => {
                into.copy_from_slice(bytes.part(usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len()), len)?);
                return Ok(len);
            }
            Stream::Clusters { runs, written, .. } => (runs, *written),
        };
        into.fill(0);
        let (end, mut start) = ((at + len as u64).min(written), 0u64);
        for run in &runs.0 {
            let stop = run.count.checked_mul(self.cluster_bytes).and_then(|bytes| start.checked_add(bytes));
            let stop = stop.ok_or_else(behind_end)?;
            let (from, to) = (start.max(at), stop.min(end));
            if let (Some(cluster), true) = (run.at, from < to) {
                let place = cluster.checked_mul(self.cluster_bytes).and_then(|place| place.checked_add(from - start));
                let target = into.get_mut((from - at) as usize..(to - at) as usize).ok_or_else(behind_end)?;
                self.disk.read_at(place.ok_or_else(behind_end)?, target)?;
            }
            start = stop;
            if start >= end {
                return Ok(len);
            }
        }
        Err(damaged("an NTFS file is longer than its clusters"))
    }

    fn reparse(&self, number: u64) -> Result<Option<Reparse>> {
        let Some(raw) = self.whole(number, REPARSE, "")? else { return Ok(None) };
        let raw = raw.as_slice();
        let names_at = match raw.le32(0)? {
            0xa000_000c => 20,
            0xa000_0003 => 16,
            // Linux' own, under Windows.
            0xa000_001d => return Ok(Some(Reparse::Link(raw.from(12)?.to_vec()))),
            other => return Ok(Some(Reparse::Other(other))),
        };
        let name = |at: usize| -> Result<String> {
            let (start, len) = (usize::from(raw.le16(at)?), usize::from(raw.le16(at + 2)?));
            Ok(utf16(raw.part(names_at + start, len)?))
        };
        // The name for people, else the one for the system.
        let name = Some(name(12)?).filter(|name| !name.is_empty()).map_or_else(|| name(8), Ok)?;
        Ok(Some(Reparse::Link(name.replace('\\', "/").into_bytes())))
    }
}

impl Stream {
    fn size(&self) -> u64 {
        match self {
            Self::Here(bytes) => bytes.len() as u64,
            Self::Clusters { size, .. } => *size,
        }
    }
}

/// Windows counts tenths of microseconds since 1601.
fn time(raw: u64) -> Time {
    let (seconds, rest) = (raw / 10_000_000, raw % 10_000_000);
    Time::new(seconds.cast_signed() - 11_644_473_600, rest as u32 * 100)
}

impl FileSystem for Ntfs {
    fn about(&self) -> About {
        let mut notes = Vec::new();
        if self.dirty {
            notes.push(
                "it was in use: what its log alone has is not read, so the newest names may be missing".to_owned(),
            );
        }
        About {
            kind: "ntfs".to_owned(),
            label: self.label.clone(),
            uuid: format!("{:016X}", self.serial),
            lacks: vec!["of NTFS no owners, permissions and further streams are known".to_owned()],
            notes,
        }
    }

    fn root(&self) -> Node {
        Node::new(ROOT)
    }

    fn read_dir(&self, dir: Node, each: &mut dyn FnMut(DirEntry) -> Result<()>) -> Result<()> {
        if !self.record(dir.number)?.is_directory()? {
            return Err(Error::NotADirectory);
        }
        self.list(dir.number, &mut |number, name| {
            if number < OWN || name == "." {
                Ok(())
            } else {
                each(DirEntry { name: name.into_bytes(), node: Node::new(number) })
            }
        })
    }

    fn lookup(&self, dir: Node, name: &[u8]) -> Result<Node> {
        // For most programs its names have none.
        lookup_without_case(self, dir, name)
    }

    fn metadata(&self, node: Node) -> Result<Metadata> {
        let record = self.record(node.number)?;
        let standard = self.whole(node.number, STANDARD, "")?.ok_or_else(|| damaged("an NTFS file without times"))?;
        let standard = standard.as_slice();
        let reparse = self.reparse(node.number)?;
        let (kind, mode) = match (&reparse, record.is_directory()?) {
            (Some(Reparse::Link(_)), _) => (Kind::Link, 0o777),
            (_, true) => (Kind::Directory, 0o755),
            _ => (Kind::File, 0o644),
        };
        let read_only = standard.le32(32)? & 1 != 0 && kind == Kind::File;
        let size = match (kind, &reparse) {
            (Kind::Link, Some(Reparse::Link(target))) => target.len() as u64,
            (Kind::File, _) => self.data_size(node.number)?,
            _ => 0,
        };
        Ok(Metadata {
            kind,
            size,
            mode: if read_only { mode & !0o222 } else { mode },
            owner: None,
            modified: Some(time(standard.le64(8)?)),
            changed: Some(time(standard.le64(16)?)),
            accessed: Some(time(standard.le64(24)?)),
            links: self.names(node.number)?.max(1).min(record.links()?.max(1)),
            device: None,
        })
    }

    fn read_at(&self, node: Node, at: u64, into: &mut [u8]) -> Result<usize> {
        if self.record(node.number)?.is_directory()? {
            return Err(Error::IsADirectory);
        }
        if let Some(Reparse::Other(tag)) = self.reparse(node.number)? {
            return Err(unsupported(format!(
                "a file whose bytes Windows keeps elsewhere or compressed (reparse point {tag:#x})"
            )));
        }
        match self.stream(node.number, DATA, "")? {
            Some(stream) => self.read_stream(&stream, at, into),
            None => Ok(0),
        }
    }

    fn read_link(&self, node: Node) -> Result<Vec<u8>> {
        match self.reparse(node.number)? {
            Some(Reparse::Link(target)) if target.len() as u64 <= TARGET_MOST => Ok(target),
            Some(Reparse::Link(_)) => Err(damaged("a symbolic link's target is too long")),
            _ => Err(Error::NotALink),
        }
    }

    fn xattrs(&self, _node: Node) -> Result<Vec<Xattr>> {
        Ok(Vec::new())
    }
}

impl Ntfs {
    /// A file's size, whether or not its bytes can be read.
    fn data_size(&self, number: u64) -> Result<u64> {
        let attributes = self.attributes(number)?;
        let data = attributes.into_iter().filter(|attribute| attribute.kind == DATA && attribute.name.is_empty());
        Ok(data
            .map(|data| match data.value {
                Value::Here(bytes) => bytes.len() as u64,
                Value::Runs { size, .. } => size,
            })
            .max()
            .unwrap_or(0))
    }

    /// How many names a file has besides short ones for DOS.
    fn names(&self, number: u64) -> Result<u32> {
        const FILE_NAME: u32 = 0x30;
        let attributes = self.attributes(number)?;
        let is_name = |attribute: &Attribute| {
            let Value::Here(name) = &attribute.value else { return false };
            attribute.kind == FILE_NAME && name.u8(65).is_ok_and(|space| space != dir::DOS)
        };
        Ok(attributes.iter().filter(|attribute| is_name(attribute)).count() as u32)
    }
}
