//! A file as the parsers of [`keyframe_vmstate`] want to read it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use keyframe_vmstate::{self as vmstate, mapped::ReadAt};

use crate::Error;

/// A file and its length when it was opened. Path and file stay together for messages.
#[derive(Debug)]
pub(crate) struct Source {
    pub file: File,
    pub path: PathBuf,
    pub bytes: u64,
}

impl Source {
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        Self::new(file, path)
    }

    pub fn new(file: File, path: &Path) -> Result<Self, Error> {
        let bytes = file.metadata().map_err(Error::io("examine", path))?.len();
        Ok(Self { file, path: path.to_owned(), bytes })
    }

    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        self.file.read_exact_at(buf, offset).map_err(Error::io("read", &self.path))
    }

    /// Adds the path to what a parser says.
    pub fn named(&self, fault: Fault) -> Error {
        let path = self.path.clone();
        match fault {
            Fault::Io(source) => Error::Io { action: "read", path, source },
            Fault::Format(source) => Error::Format { path, source },
        }
    }

    pub fn wrong(&self, source: vmstate::Error) -> Error {
        Error::Format { path: self.path.clone(), source }
    }
}

/// What a parser that reads a file runs into.
#[derive(Debug)]
pub(crate) enum Fault {
    Io(io::Error),
    Format(vmstate::Error),
}

impl From<vmstate::Error> for Fault {
    fn from(error: vmstate::Error) -> Self {
        Self::Format(error)
    }
}

impl ReadAt for Source {
    type Error = Fault;

    fn byte_len(&self) -> u64 {
        self.bytes
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Fault> {
        self.file.read_exact_at(buf, offset).map_err(Fault::Io)
    }
}
