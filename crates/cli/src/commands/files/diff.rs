//! `keyframe diff`

use std::sync::atomic::{AtomicBool, Ordering};

use keyframe_engine::Error;
use keyframe_engine::files::{PointFiles, same_disks};
use keyframe_files::diff::{Change, Difference, diff};
use keyframe_files::{FileSystem, Kind};
use keyframe_types::ByteLen;
use serde_json::{Value, json};

use super::{open, scripted, shown};
use crate::files_args::DiffArgs;
use crate::output::Output;

/// Carries it out.
pub fn run(args: &DiffArgs, cancel: &AtomicBool, output: &Output) -> Result<u8, Error> {
    let (older, before) = open(&args.place, &args.before)?;
    let (newer, after) = open(&args.place, &args.after)?;
    let same = same_disks(&older, &newer)?;
    let mut told = Told { output, documents: Vec::new(), changes: 0, unknown: 0 };
    for name in volumes(&before, &after, args.volume.as_deref())? {
        // A logical volume may be on any of the disks: it is the same only where all are.
        let disk = name.split(':').next().unwrap_or(&name);
        let unchanged = same.disks.iter().any(|same| same == disk) || same.all;
        if unchanged {
            continue;
        }
        let sides = [&before, &after].map(|point| has(point, &name).then(|| point.open_volume(Some(&name))));
        let [old, new] = sides.map(Option::transpose);
        let (old, new) = (old?, new?);
        let (old, new) = (old.as_ref().map(|fs| fs as &dyn FileSystem), new.as_ref().map(|fs| fs as &dyn FileSystem));
        let done = diff(old, new, &mut |difference| {
            if cancel.load(Ordering::Relaxed) {
                return Err(keyframe_files::Error::NotFound);
            }
            told.tell(&name, &difference);
            Ok(())
        });
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        done.map_err(|source| Error::InVolume { volume: name.clone(), source })?;
    }
    let Told { documents, changes, unknown, .. } = told;
    let document = json!({"before": older.id, "after": newer.id, "same_disks": same.disks, "changes": documents});
    let text = if changes + unknown == 0 { "no file differs\n" } else { "" };
    output.result("diff", &document, text);
    Ok(if unknown == 0 { 0 } else { 3 })
}

fn has(point: &PointFiles, name: &str) -> bool {
    point.file_systems().any(|(_, volume)| volume.name == name)
}

/// The volumes that either has, or the one that was asked for.
fn volumes(before: &PointFiles, after: &PointFiles, wanted: Option<&str>) -> Result<Vec<String>, Error> {
    let mut names: Vec<String> =
        [before, after].iter().flat_map(|point| point.file_systems()).map(|(_, volume)| volume.name.clone()).collect();
    names.sort();
    names.dedup();
    match wanted {
        None => Ok(names),
        Some(wanted) if names.iter().any(|name| name == wanted) => Ok(vec![wanted.to_owned()]),
        Some(wanted) => Err(Error::BadRequest {
            what: format!("neither point has a file system on {wanted}; there are {}", names.join(", ")),
        }),
    }
}

struct Told<'a> {
    output: &'a Output,
    documents: Vec<Value>,
    changes: u64,
    unknown: u64,
}

impl Told<'_> {
    fn tell(&mut self, volume: &str, difference: &Difference) {
        let Difference { path, kind, change, sizes } = difference;
        match change {
            Change::Unknown { .. } => self.unknown += 1,
            _ => self.changes += 1,
        }
        if self.output.is_json() {
            self.documents.push(json!({
                "volume": volume,
                "path": scripted(path),
                "kind": kind.map(Kind::as_str),
                "what": change,
                "bytes_before": sizes.0,
                "bytes_after": sizes.1,
            }));
            return;
        }
        let size = |bytes: Option<u64>| bytes.map(|bytes| ByteLen::from_bytes(bytes).to_string()).unwrap_or_default();
        let (sign, more) = match change {
            Change::Added => ('+', size(sizes.1)),
            Change::Removed => ('-', size(sizes.0)),
            Change::Changed { what } => ('~', what.join(", ")),
            Change::Unknown { reason } => ('?', reason.clone()),
        };
        let slash = if *kind == Some(Kind::Directory) { "/" } else { "" };
        self.output.line(&format!("{sign} {volume}:{}{slash}  ({})", shown(path), shown(more.as_bytes())));
    }
}
