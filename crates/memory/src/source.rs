//! A file as the parsers of [`keyframe_vmstate`] want to read it, or bytes that are elsewhere.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use keyframe_vmstate::{self as vmstate, mapped::ReadAt};
use rustix::io::Errno;

use crate::Error;
use crate::export::ExportReader;

/// A file and its length when it was opened. Path and file stay together for messages.
#[derive(Debug)]
pub(crate) struct Source {
    content: Content,
    pub path: PathBuf,
    pub bytes: u64,
}

/// Where bytes are.
#[derive(Debug)]
enum Content {
    File(File),
    Export(ExportReader),
    /// What was read of an export at once: many small reads would each go there and back.
    Bytes(Vec<u8>),
}

impl Source {
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        Self::new(file, path)
    }

    pub fn new(file: File, path: &Path) -> Result<Self, Error> {
        let bytes = file.metadata().map_err(Error::io("examine", path))?.len();
        Ok(Self::of_length(file, path, bytes))
    }

    /// A file of which only so many bytes count.
    pub fn of_length(file: File, path: &Path, bytes: u64) -> Self {
        Self { content: Content::File(file), path: path.to_owned(), bytes }
    }

    /// An export, read as it is needed.
    pub fn export(socket: &Path, name: &str) -> Result<Self, Error> {
        let export = ExportReader::open(socket, name).map_err(Error::io("read from", socket))?;
        Ok(Self { bytes: export.bytes(), content: Content::Export(export), path: socket.to_owned() })
    }

    /// An export of at most so many bytes, all of it read now.
    pub fn whole_export(socket: &Path, name: &str, most: u64) -> Result<Self, Error> {
        let export = Self::export(socket, name)?;
        if export.bytes > most {
            return Err(Error::io("read all of", socket)(io::ErrorKind::FileTooLarge.into()));
        }
        let mut content = vec![0; export.bytes as usize];
        export.read_at(&mut content, 0)?;
        Ok(Self { content: Content::Bytes(content), ..export })
    }

    /// The file itself, for what only files can do.
    pub fn file(&self) -> Result<&File, Error> {
        match &self.content {
            Content::File(file) => Ok(file),
            Content::Export(_) | Content::Bytes(_) => {
                Err(Error::io("use as a file", &self.path)(Errno::OPNOTSUPP.into()))
            }
        }
    }

    /// Whether it is read from a server.
    pub fn is_export(&self) -> bool {
        matches!(self.content, Content::Export(_))
    }

    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        self.fill(buf, offset).map_err(Error::io("read", &self.path))
    }

    fn fill(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        match &self.content {
            Content::File(file) => file.read_exact_at(buf, offset),
            Content::Export(export) => export.read_at(buf, offset),
            Content::Bytes(bytes) => {
                let start = usize::try_from(offset).ok();
                let part = start.and_then(|start| bytes.get(start..start.checked_add(buf.len())?));
                buf.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
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
        self.fill(buf, offset).map_err(Fault::Io)
    }
}
