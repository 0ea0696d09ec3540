//! `keyframe mount`

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use keyframe_engine::Error;
use keyframe_files::FileSystem;
use keyframe_files::mount::{Mounted, serve};
use serde_json::json;

use super::{open, shown};
use crate::files_args::MountArgs;
use crate::output::Output;

/// Carries it out.
pub fn run(args: &MountArgs, cancel: &AtomicBool, output: &Output) -> Result<u8, Error> {
    if !Path::new("/dev/fuse").exists() {
        let what = "this host has no /dev/fuse (load the module fuse, or give the container the device): \
            `keyframe files` needs none"
            .to_owned();
        return Err(Error::BadRequest { what });
    }
    let is_empty = std::fs::read_dir(&args.dir).map(|mut entries| entries.next().is_none());
    if !is_empty.map_err(|source| Error::Io { action: "look into", path: args.dir.clone(), source })? {
        return Err(Error::BadRequest { what: format!("{} is not empty", args.dir.display()) });
    }
    let (point, files) = open(&args.place, &args.point)?;
    let mut volumes = Vec::new();
    for (_, volume) in files.file_systems() {
        // One that cannot be read does not keep the others away.
        match files.open_volume(Some(&volume.name)) {
            Ok(fs) => {
                let about = fs.about();
                for note in about.lacks.iter().chain(&about.notes) {
                    output.note(&format!("{}: {}", volume.name, shown(note.as_bytes())));
                }
                volumes.push(Mounted { name: volume.name.replace('/', "-"), fs: Arc::new(fs) });
            }
            Err(Error::InVolume { volume, source }) => output.note(&format!("{volume} is left out: {source}")),
            Err(error) => return Err(error),
        }
    }
    if volumes.is_empty() {
        return Err(Error::BadRequest { what: "no file system that can be read is on the point's disks".to_owned() });
    }
    let names: Vec<String> = volumes.iter().map(|volume| volume.name.clone()).collect();
    let text = format!(
        "{}@{} is in {}: {}\nCtrl-C, or `umount {}`, ends it\n",
        point.name,
        point.id.short(),
        args.dir.display(),
        names.join(", "),
        args.dir.display()
    );
    let document = json!({"point": point.id, "dir": args.dir, "volumes": names});
    let served = serve(volumes, &args.dir, cancel, || output.result("mounted", &document, text));
    served.map_err(|source| Error::Io { action: "mount on", path: args.dir.clone(), source })?;
    Ok(0)
}
