//! A page server described by paths, for a process of its own.

use std::path::PathBuf;

use keyframe_vmstate::hot::HotList;
use serde::{Deserialize, Serialize};

use super::{ImagePages, Notice, Observer, PageServerError, PageSource, ServeReport, Stage, resume, serve};
use crate::{Error, ImageStore, MemoryImage};

/// Whether a destination is fresh or paused half-way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Errand {
    /// From the beginning: see [`serve`].
    Serve,
    /// Where another server died: see [`resume`].
    Resume,
}

/// Where a memory image is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ImageAt {
    /// A whole one, in files of its own.
    Files {
        /// Its `memory.mapped`.
        mapped: PathBuf,
        /// Its `memory.b3`.
        sums: PathBuf,
    },
    /// One of a machine's, whole or shared.
    Store {
        /// The machine's images.
        store: ImageStore,
        /// The snapshot's id: 16 hexadecimal digits.
        snapshot: String,
    },
    /// A whole one that somebody serves over NBD.
    Exports {
        /// The socket that shows `memory.mapped`.
        mapped: ExportAt,
        /// The socket that shows `memory.b3`.
        sums: ExportAt,
    },
}

/// An export of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ExportAt {
    /// The server's socket.
    pub socket: PathBuf,
    /// The export's name.
    pub name: String,
}

impl ImageAt {
    fn open(&self) -> Result<MemoryImage, Error> {
        match self {
            Self::Files { mapped, sums } => MemoryImage::open(mapped, sums),
            Self::Store { store, snapshot } => {
                let source = std::io::Error::from(std::io::ErrorKind::InvalidInput);
                let id = snapshot.parse().map_err(|_| Error::io("find the snapshot", snapshot)(source))?;
                store.open(id)
            }
            Self::Exports { mapped, sums } => {
                MemoryImage::open_exports((&mapped.socket, &mapped.name), (&sums.socket, &sums.name))
            }
        }
    }
}

/// What a page server's process has to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ServerConfig {
    /// From the beginning, or where another died.
    pub errand: Errand,
    /// The snapshot's memory.
    pub image: ImageAt,
    /// The snapshot's `memory.hot`; it may be missing.
    pub hot: Option<PathBuf>,
    /// The unix socket on which QEMU listens for the migration.
    pub socket: PathBuf,
}

/// Opens what the config names and serves it until QEMU has it all.
///
/// # Errors
/// [`PageServerError::Image`] and whatever [`serve`] or [`resume`] finds.
pub fn run(config: &ServerConfig, observer: &dyn Observer) -> Result<ServeReport, PageServerError> {
    let stage = match config.errand {
        Errand::Serve => Stage::Opening,
        Errand::Resume => Stage::Serving,
    };
    let image = config.image.open().map_err(|source| PageServerError::Image { stage, source })?;
    let pages = ImagePages::new(image);
    let hot = read_hot(config, &pages, observer);
    match config.errand {
        Errand::Serve => serve(&pages, &config.socket, &hot, observer),
        Errand::Resume => resume(&pages, &config.socket, &hot, observer),
    }
}

/// The hot list is advice: without a good one the plain order has to do.
fn read_hot(config: &ServerConfig, pages: &ImagePages, observer: &dyn Observer) -> HotList {
    let Some(bytes) = config.hot.as_ref().and_then(|path| std::fs::read(path).ok()) else {
        return HotList::default();
    };
    HotList::parse(&bytes, pages.ram()).unwrap_or_else(|_| {
        observer.notice(Notice::HotListIgnored);
        HotList::default()
    })
}
