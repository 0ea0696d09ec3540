//! Header extensions: a list of {type, length, data} after the header.

use crate::backing::BackingName;
use crate::error::{Error, Result};
use crate::units::{ClusterSize, HostOffset};

/// End of the list.
pub(crate) const END: u32 = 0;
/// Format of the backing file.
pub(crate) const BACKING_FORMAT: u32 = 0xe279_2aca;
/// Names of features.
pub(crate) const FEATURE_NAMES: u32 = 0x6803_f857;
const BITMAPS: u32 = 0x2385_2875;
const DATA_FILE: u32 = 0x4441_5441;

/// Type and length, before the data.
pub(crate) const HEAD_BYTES: u64 = 8;
/// Longest format name. Source: `block_int-common.h`, `backing_format[16]` with its zero.
const FORMAT_NAME_MAX: usize = 15;
/// Most bitmaps. Source: `block/qcow2.h`, `QCOW2_MAX_BITMAPS`.
const BITMAPS_MAX: u32 = 65535;
/// Bytes of one entry of the table of feature names.
pub(crate) const FEATURE_ENTRY_BYTES: usize = 48;

/// Bitmaps kept in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bitmaps {
    /// How many.
    pub count: u32,
    /// Where their directory starts.
    pub directory: HostOffset,
    /// Its length.
    pub directory_bytes: u64,
    /// Whether the image was closed properly since they were written.
    pub consistent: bool,
}

/// The extensions that are understood.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Extensions {
    pub backing_format: Option<String>,
    pub data_file: Option<BackingName>,
    pub bitmaps: Option<Bitmaps>,
}

struct Raw<'a> {
    magic: u32,
    at: u64,
    data: &'a [u8],
}

impl Raw<'_> {
    fn bad(&self, rule: &'static str) -> Error {
        Error::Extension { magic: self.magic, at: self.at, rule }
    }

    fn be32(&self, at: usize) -> Option<u32> {
        self.data.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
    }

    fn be64(&self, at: usize) -> Option<u64> {
        self.data.get(at..)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
    }
}

/// The extension at `at`, and where the next one starts. The list ends at its end mark or at `end`.
fn next<'a>(header: &'a [u8], at: u64, end: u64) -> Result<Option<(Raw<'a>, u64)>> {
    if at >= end {
        return Ok(None);
    }
    let area = usize::try_from(at).ok().and_then(|at| header.get(at..)).unwrap_or_default();
    let bad = |magic, rule| Error::Extension { magic, at, rule };
    let Some(([m0, m1, m2, m3, l0, l1, l2, l3], rest)) = area.split_first_chunk() else {
        return Err(bad(END, "is cut off by the end of the file"));
    };
    let magic = u32::from_be_bytes([*m0, *m1, *m2, *m3]);
    if magic == END {
        return Ok(None);
    }
    let len = u32::from_be_bytes([*l0, *l1, *l2, *l3]);
    if end - at < HEAD_BYTES || u64::from(len) > end - at - HEAD_BYTES {
        return Err(bad(magic, "is longer than the extension area"));
    }
    let data = usize::try_from(len).ok().and_then(|len| rest.get(..len));
    let data = data.ok_or_else(|| bad(magic, "is cut off by the end of the file"))?;
    let following = at + HEAD_BYTES + u64::from(len).next_multiple_of(8);
    Ok(Some((Raw { magic, at, data }, following)))
}

impl Extensions {
    /// Reads the list between `at` and `end`, both within the first cluster.
    pub(crate) fn parse(header: &[u8], at: u64, end: u64, cluster: ClusterSize) -> Result<Self> {
        let mut found = Self::default();
        let mut at = at;
        while let Some((raw, following)) = next(header, at, end)? {
            match raw.magic {
                BACKING_FORMAT if found.backing_format.is_none() => {
                    found.backing_format = Some(format_name(&raw)?);
                }
                DATA_FILE if found.data_file.is_none() => {
                    found.data_file = Some(BackingName::from_header(raw.data));
                }
                BITMAPS if found.bitmaps.is_none() => found.bitmaps = Some(bitmaps(&raw, cluster)?),
                BACKING_FORMAT | DATA_FILE | BITMAPS => return Err(raw.bad("appears twice")),
                _ => {}
            }
            at = following;
        }
        Ok(found)
    }
}

/// Where the list ends with its end mark; `None` where it has none.
pub(crate) fn end_of_list(header: &[u8], at: u64, end: u64) -> Result<Option<u64>> {
    let mut at = at;
    while let Some((_, following)) = next(header, at, end)? {
        at = following;
    }
    Ok((at.saturating_add(HEAD_BYTES) <= end).then_some(at + HEAD_BYTES))
}

/// Where the data of an extension stands, its head not counted; `None` where there is no such one.
pub(crate) fn data_of(header: &[u8], magic: u32, at: u64, end: u64) -> Result<Option<std::ops::Range<u64>>> {
    let mut at = at;
    while let Some((raw, following)) = next(header, at, end)? {
        if raw.magic == magic {
            let start = at + HEAD_BYTES;
            return Ok(Some(start..start + raw.data.len() as u64));
        }
        at = following;
    }
    Ok(None)
}

fn format_name(raw: &Raw<'_>) -> Result<String> {
    let name = std::str::from_utf8(raw.data).map_err(|_| raw.bad("format name is not UTF-8"))?;
    if name.len() > FORMAT_NAME_MAX {
        return Err(raw.bad("format name is longer than 15 bytes"));
    }
    Ok(name.to_owned())
}

fn bitmaps(raw: &Raw<'_>, cluster: ClusterSize) -> Result<Bitmaps> {
    let fields = (raw.be32(0), raw.be64(8), raw.be64(16));
    let (Some(count), Some(directory_bytes), Some(directory)) = fields else {
        return Err(raw.bad("is shorter than 24 bytes"));
    };
    if !(1..=BITMAPS_MAX).contains(&count) {
        return Err(raw.bad("number of bitmaps must be 1 to 65535"));
    }
    if !cluster.is_aligned(directory) {
        return Err(raw.bad("bitmap directory does not start at a cluster"));
    }
    Ok(Bitmaps { count, directory: HostOffset::new(directory), directory_bytes, consistent: false })
}

/// Names of incompatible features from the image's own table, bit numbers for the rest.
pub(crate) fn feature_names(header: &[u8], at: u64, end: u64, bits: u64) -> String {
    let mut names: Vec<(u8, String)> = Vec::new();
    let mut at = at;
    while let Ok(Some((raw, following))) = next(header, at, end) {
        if raw.magic == FEATURE_NAMES {
            let (entries, _) = raw.data.as_chunks::<FEATURE_ENTRY_BYTES>();
            names.extend(entries.iter().filter_map(incompatible_name));
        }
        at = following;
    }
    let name = |bit: u8| {
        let named = names.iter().find(|(named, _)| *named == bit);
        named.map_or_else(|| format!("bit {bit}"), |(_, name)| name.clone())
    };
    (0..64).filter(|bit| bits & (1 << bit) != 0).map(name).collect::<Vec<_>>().join(", ")
}

fn incompatible_name(entry: &[u8; FEATURE_ENTRY_BYTES]) -> Option<(u8, String)> {
    let [0, bit, name @ ..] = entry else { return None };
    let end = name.iter().position(|&b| b == 0).unwrap_or(name.len());
    let name = String::from_utf8_lossy(name.get(..end)?);
    Some((*bit, name.chars().filter(|c| !c.is_control()).collect()))
}
