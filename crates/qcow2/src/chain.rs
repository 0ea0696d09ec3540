//! The files that an image hangs on, from the top down.
//!
//! Names are followed as QEMU does; only plain files and block devices are: a name with a protocol
//! (`nbd:`, `json:`) is an error that says so. A cycle is found by the files' identities (device and
//! inode), so that different spellings of one path do not hide it.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::backing::{BackingName, Format};
use crate::error::{Error, Result, io};
use crate::header::Header;
use crate::probe::probe_source;
use crate::source::{ReadAt, open_file};
use crate::units::VirtualSize;

/// Most files in a chain. QEMU itself gets slow long before.
pub const DEPTH_MAX: usize = 1000;

/// One file of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Its path: the one asked for, or the backing name resolved against the directory of the file
    /// above.
    pub path: PathBuf,
    /// Size of the disk as this file knows it. A backing file may be smaller or larger than its overlay.
    pub virtual_size: VirtualSize,
    /// What it is.
    pub content: Content,
}

/// What a file of a chain is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A qcow2 image, with its header.
    Qcow2(Box<Header>),
    /// Raw; it ends the chain.
    Raw,
}

impl Layer {
    /// Its format.
    #[must_use]
    pub fn format(&self) -> Format {
        match self.content {
            Content::Qcow2(_) => Format::Qcow2,
            Content::Raw => Format::Raw,
        }
    }
}

/// The chain of an image whose format is known, the image itself first.
///
/// Where a header does not tell the format of its backing file, it is probed, as QEMU would; see
/// [`mod@crate::probe`] for why that is no good habit.
///
/// # Errors
/// [`Error::ChainCycle`], [`Error::ChainTooLong`], [`Error::BackingName`], [`Error::ForeignFormat`], and
/// what [`Header::read`] says, all within [`Error::Image`] naming the file that is wrong.
pub fn chain(path: &Path, format: Format) -> Result<Vec<Layer>> {
    let mut layers: Vec<Layer> = Vec::new();
    let mut seen = HashSet::new();
    let mut next = Some((path.to_owned(), Some(format)));
    while let Some((path, format)) = next {
        if layers.len() >= DEPTH_MAX {
            return Err(Error::ChainTooLong { limit: DEPTH_MAX }.of_image(path));
        }
        let step = open(&path, format, &mut seen).map_err(|error| error.of_image(&path))?;
        next = below(&step).map_err(|error| error.of_image(&path))?;
        layers.push(step);
    }
    Ok(layers)
}

fn open(path: &Path, format: Option<Format>, seen: &mut HashSet<(u64, u64)>) -> Result<Layer> {
    let file = open_file(path)?;
    let metadata = file.metadata().map_err(io("read its metadata"))?;
    if !seen.insert((metadata.dev(), metadata.ino())) {
        return Err(Error::ChainCycle { path: path.to_owned() });
    }
    let format = format.map_or_else(|| probe_source(&file), Ok)?;
    let (virtual_size, content) = match format {
        Format::Qcow2 => {
            let header = Header::read(&file)?;
            (header.virtual_size(), Content::Qcow2(Box::new(header)))
        }
        Format::Raw => {
            let len = file.byte_len().map_err(io("read the length of the file"))?;
            (VirtualSize::covering(keyframe_types::ByteLen::from_bytes(len))?, Content::Raw)
        }
    };
    Ok(Layer { path: path.to_owned(), virtual_size, content })
}

/// The file below a layer and its format, if the header tells.
fn below(layer: &Layer) -> Result<Option<(PathBuf, Option<Format>)>> {
    let Content::Qcow2(header) = &layer.content else { return Ok(None) };
    let Some(name) = header.backing() else { return Ok(None) };
    let format = header.backing_format().map(|format| known(name, format)).transpose()?;
    Ok(Some((name.resolve(&layer.path)?, format)))
}

fn known(name: &BackingName, format: &str) -> Result<Format> {
    Format::by_name(format).ok_or_else(|| Error::BackingFormat { name: name.to_string(), format: format.to_owned() })
}
