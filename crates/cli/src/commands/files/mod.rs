//! `keyframe files`

pub mod diff;
mod list;
pub mod mount;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use keyframe_engine::Error;
use keyframe_engine::backup::members;
use keyframe_engine::files::{FileRef, PointFiles};
use keyframe_files::copy::{self, Copied, Source};
use keyframe_files::{FileSystem, Kind, Node, resolve};
use keyframe_repo::Point;
use keyframe_types::ByteLen;
use serde_json::json;

use super::repository;
use crate::files_args::{FilesArgs, FilesCommand};
use crate::output::Output;
use crate::repo_args::Where;

/// Bytes that are read at once.
const PIECE: usize = 1 << 20;

/// Opens a point's disks.
pub fn open(place: &Where, point: &str) -> Result<(Point, PointFiles), Error> {
    let repository = Arc::new(repository::open(place)?);
    let point = members::find(&repository, point)?;
    let files = PointFiles::open(&repository, &point)?;
    Ok((point, files))
}

/// A file, found.
pub struct Found {
    pub fs: Arc<dyn FileSystem>,
    pub node: Node,
    pub shown: String,
    pub path: Vec<u8>,
}

/// Finds a file, following a link at the end if told.
fn find(files: &PointFiles, named: &OsString, follow: bool) -> Result<Found, Error> {
    let FileRef { volume, path } = FileRef::parse(named)?;
    let fs: Arc<dyn FileSystem> = Arc::new(files.open_volume(volume.as_deref())?);
    let shown = named.to_string_lossy().escape_debug().to_string();
    let node = resolve(&*fs, &path, follow).map_err(|source| Error::InFile { file: shown.clone(), source })?;
    Ok(Found { fs, node, shown, path })
}

/// Carries a command out.
pub fn run(args: FilesArgs, cancel: &AtomicBool, output: &Output) -> Result<u8, Error> {
    let (point, files) = open(&args.place, &args.point)?;
    match args.what {
        FilesCommand::Ls { file: None, .. } => list::volumes(&point, &files, output),
        FilesCommand::Ls { file: Some(file), long } => list::directory(&find(&files, &file, true)?, long, output),
        FilesCommand::Cat { files: named } => cat(&files, &named, cancel),
        FilesCommand::Cp { sources, dest, recursive, force } => {
            let options = copy::Options { recursive, force, owners: rustix::process::geteuid().is_root() };
            cp(&files, &sources, &dest, options, cancel, output)
        }
    }
}

fn cat(files: &PointFiles, named: &[OsString], cancel: &AtomicBool) -> Result<u8, Error> {
    let found = named.iter().map(|file| find(files, file, true)).collect::<Result<Vec<_>, _>>()?;
    let mut out = std::io::stdout().lock();
    let mut buf = vec![0; PIECE];
    for Found { fs, node, shown, .. } in found {
        let in_file = |source| Error::InFile { file: shown.clone(), source };
        let metadata = fs.metadata(node).map_err(in_file)?;
        match metadata.kind {
            Kind::File => {}
            Kind::Directory => return Err(in_file(keyframe_files::Error::IsADirectory)),
            other => {
                return Err(Error::BadRequest { what: format!("{shown} is a {}: it has no bytes", other.as_str()) });
            }
        }
        let mut at = 0;
        loop {
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let read = fs.read_at(node, at, &mut buf).map_err(in_file)?;
            if read == 0 {
                break;
            }
            let written = out.write_all(buf.get(..read).unwrap_or_default());
            written.map_err(|source| Error::Io { action: "write to", path: "standard output".into(), source })?;
            at += read as u64;
        }
    }
    out.flush().map_err(|source| Error::Io { action: "write to", path: "standard output".into(), source })?;
    Ok(0)
}

fn cp(
    files: &PointFiles,
    named: &[OsString],
    dest: &Path,
    options: copy::Options,
    cancel: &AtomicBool,
    output: &Output,
) -> Result<u8, Error> {
    let mut sources = Vec::new();
    for file in named {
        // A link that is named is copied as one with -r, as `cp` does.
        let Found { fs, node, path, .. } = find(files, file, !options.recursive)?;
        let last = path.split(|byte| *byte == b'/').rfind(|name| !name.is_empty()).unwrap_or_default();
        if matches!(last, b"." | b"..") {
            return Err(Error::BadRequest { what: format!("{} has no name of its own", file.to_string_lossy()) });
        }
        sources.push(Source { fs, node, name: last.to_vec() });
    }
    let copied = copy::copy(&sources, dest, options, cancel)?;
    for trouble in &copied.troubles {
        output.note(&format!("not copied: {trouble}"));
    }
    let more = copied.troubles_total - copied.troubles.len() as u64;
    if more > 0 {
        output.note(&format!("not copied: {more} more"));
    }
    output.result("files-copied", &json!({"dest": dest, "copied": copied}), told(&copied, dest));
    if copied.interrupted {
        return Err(Error::Interrupted);
    }
    let any = copied.files + copied.links + copied.hard_links + copied.directories > 0;
    Ok(match copied.troubles_total {
        0 => 0,
        _ if any => 3,
        _ => 1,
    })
}

fn told(copied: &Copied, dest: &Path) -> String {
    let count = |n: u64, one: &str, many: &str| (n > 0).then(|| format!("{n} {}", if n == 1 { one } else { many }));
    let parts = [
        count(copied.files, "file", "files"),
        count(copied.directories, "directory", "directories"),
        count(copied.links, "symbolic link", "symbolic links"),
        count(copied.hard_links, "hard link", "hard links"),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    let what = if parts.is_empty() { "nothing".to_owned() } else { parts.join(", ") };
    let mut text = format!("{what} copied to {}: {}\n", dest.display(), ByteLen::from_bytes(copied.bytes));
    for lost in &copied.lost {
        let _ = writeln!(text, "  note: {lost}");
    }
    text
}

/// A guest's name for a terminal: nothing in it moves a cursor or ends a line.
pub fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name)
        .chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
        .collect()
}

/// A guest's name for scripts: text, and where it is none its bytes, too.
pub fn scripted(name: &[u8]) -> serde_json::Value {
    match std::str::from_utf8(name) {
        Ok(text) => json!(text),
        Err(_) => json!({"lossy": String::from_utf8_lossy(name), "bytes": name}),
    }
}
