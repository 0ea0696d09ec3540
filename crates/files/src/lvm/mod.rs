//! Logical volumes of LVM2 that lie in one piece after the other.
//!
//! Physical volumes may be on several disks; of all copies of a group's metadata the newest counts. Source: LVM2,
//! lib/format_text/layout.h.

mod text;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::bytes::Fields as _;
use crate::disk::{Disk, Piece, Pieced, read_vec};
use crate::error::{Error, Result, damaged, unsupported};

use text::{Section, Value};

const SECTOR: u64 = 512;
/// A text longer than this is nobody's.
const TEXT_MOST: u64 = 16 << 20;
/// Areas of a physical volume that are looked at.
const AREAS_MOST: usize = 8;
/// Pieces of a volume that are looked at.
const SEGMENTS_MOST: u64 = 100_000;

/// A physical volume.
pub(crate) struct Physical {
    disk: Arc<dyn Disk>,
    /// Its identity, without dashes.
    id: String,
    /// What its metadata areas say; those that are damaged or empty are left out.
    texts: Vec<Section>,
}

/// A logical volume, or why it cannot be read.
pub(crate) struct Logical {
    /// `GROUP/VOLUME`.
    pub name: String,
    /// Its bytes.
    pub disk: Result<Arc<dyn Disk>>,
}

/// Whether this may be a physical volume: its label is in one of the first four sectors.
pub(crate) fn is_there(start: &[u8]) -> bool {
    start.chunks(SECTOR as usize).take(4).any(|sector| sector.starts_with(b"LABELONE"))
}

impl Physical {
    pub(crate) fn open(disk: Arc<dyn Disk>) -> Result<Self> {
        let start = read_vec(&*disk, 0, 4 * SECTOR as usize)?;
        let label = start.chunks(SECTOR as usize).find(|sector| sector.starts_with(b"LABELONE"));
        let label = label.ok_or_else(|| damaged("there is no LVM label"))?;
        let header = label.from(label.le32(20)? as usize)?;
        let id = String::from_utf8_lossy(header.part(0, 32)?).into_owned();
        // Two lists of places, each up to one that is nowhere: data, then metadata.
        let (mut at, mut lists) = (40, [Vec::new(), Vec::new()]);
        for list in &mut lists {
            while list.len() < AREAS_MOST {
                let (offset, len) = (header.le64(at)?, header.le64(at + 8)?);
                at += 16;
                if offset == 0 {
                    break;
                }
                list.push((offset, len));
            }
        }
        let texts =
            lists[1].iter().filter_map(|(offset, _)| metadata(&*disk, *offset).transpose()).collect::<Result<_>>()?;
        Ok(Self { disk, id, texts })
    }
}

/// The text in a metadata area; none if the area is not in use or is damaged: another copy may be whole.
fn metadata(disk: &dyn Disk, area: u64) -> Result<Option<Section>> {
    let header = match read_vec(disk, area, SECTOR as usize) {
        Ok(header) => header,
        Err(Error::Damaged { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    if header.part(4, 16)? != b" LVM2 x[5A%r0N*>" {
        return Ok(None);
    }
    let (start, size) = (header.le64(24)?, header.le64(32)?);
    let (offset, len) = (header.le64(40)?, header.le64(48)?);
    if offset < SECTOR || offset >= size || len == 0 || len > TEXT_MOST.min(size) || start.checked_add(size).is_none() {
        return Ok(None);
    }
    // The area is a ring: what does not fit before its end goes on behind its header.
    let first = len.min(size - offset);
    let pieces = [(start + offset, first), (start + SECTOR, len - first)];
    let mut bytes = Vec::new();
    for (at, len) in pieces {
        match read_vec(disk, at, len as usize) {
            Ok(part) => bytes.extend(part),
            Err(Error::Damaged { .. }) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    if crc(&bytes) != header.le32(56)? {
        return Ok(None);
    }
    Ok(text::parse(&String::from_utf8_lossy(&bytes)).ok())
}

/// LVM's checksum: CRC-32 with a beginning of its own, and not inverted at the end.
fn crc(bytes: &[u8]) -> u32 {
    let mut crc = 0xf597_a6cf_u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
        }
    }
    crc
}

/// All logical volumes that people see, of all groups.
pub(crate) fn volumes(physical: &[Physical]) -> Vec<Logical> {
    let mut groups: BTreeMap<String, (u64, &str, &Section)> = BTreeMap::new();
    for (name, group) in physical.iter().flat_map(|volume| &volume.texts).flat_map(Section::sections) {
        let (Ok(id), Ok(version)) = (group.text("id"), group.number("seqno")) else { continue };
        let newest = groups.entry(id.to_owned()).or_insert((version, name, group));
        if version > newest.0 {
            *newest = (version, name, group);
        }
    }
    let mut all = Vec::new();
    for (_, name, group) in groups.values() {
        for (volume, section) in group.section("logical_volumes").into_iter().flat_map(Section::sections) {
            if section.list("status").contains(&Value::Text("VISIBLE".into())) {
                all.push(Logical { name: format!("{name}/{volume}"), disk: open(physical, group, section) });
            }
        }
    }
    all
}

fn open(physical: &[Physical], group: &Section, volume: &Section) -> Result<Arc<dyn Disk>> {
    let extent =
        group.number("extent_size")?.checked_mul(SECTOR).ok_or_else(|| damaged("LVM's extents are too large"))?;
    let count = volume.number("segment_count")?.min(SEGMENTS_MOST);
    let mut pieces = Vec::new();
    let mut next = 0;
    for n in 1..=count {
        let segment = volume.section(&format!("segment{n}")).ok_or_else(|| damaged("a volume lacks a segment"))?;
        let kind = segment.text("type")?;
        if kind != "striped" || segment.number("stripe_count")? != 1 {
            return Err(unsupported(format!("a logical volume of type {kind} that is not in one piece")));
        }
        if segment.number("start_extent")? != next {
            return Err(damaged("a volume's segments are out of order"));
        }
        let [Value::Text(name), Value::Number(first)] = segment.list("stripes") else {
            return Err(damaged("a segment of a volume says not where it is"));
        };
        let extents = segment.number("extent_count")?;
        next = next.checked_add(extents).ok_or_else(|| damaged("a volume is longer than any disk"))?;
        let known = group.section("physical_volumes").and_then(|all| all.section(name));
        let known = known.ok_or_else(|| damaged(format!("the physical volume {name} is not in its group")))?;
        let id = known.text("id")?.replace('-', "");
        let on = physical.iter().find(|physical| physical.id == id);
        let on =
            on.ok_or_else(|| unsupported(format!("the physical volume {name} is on none of the point's disks")))?;
        let start = first.checked_mul(extent).zip(known.number("pe_start")?.checked_mul(SECTOR));
        let start = start.and_then(|(start, base)| start.checked_add(base));
        let piece =
            start.zip(extents.checked_mul(extent)).ok_or_else(|| damaged("a segment lies behind every disk"))?;
        pieces.push(Piece { disk: Arc::clone(&on.disk), start: piece.0, len: piece.1 });
    }
    Ok(Arc::new(Pieced::new(pieces)?))
}
