//! Bitmaps that QEMU keeps in layers' files ([`keyframe_hypervisor::tracking`]), while no process has the layers open.
//!
//! They are in active layers only, and are relied on only where nobody but the machine's own process has written to the file: it
//! noted what it wrote. Letting them go costs a comparison at the next live backup, and nothing else.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use keyframe_hypervisor::{LayerFormat, instance, tracking};
use keyframe_qcow2::Header;
use serde::Deserialize;
use serde_json::json;

use crate::error::{Error, IoContext as _};
use crate::machine::Machine;
use crate::state::head::{Fingerprint, Layer};
use crate::state::home::Home;

/// Lets go of those that somebody may have written past: the file was written to when the machine's last process had closed it
/// already, or nobody knows when that was.
///
/// # Errors
/// As [`drop_ours`].
pub fn drop_doubtful(home: &Home, machine: &Machine) -> Result<(), Error> {
    let closed_ns = instance::closed_disks(&machine.dir.run());
    for chain in machine.head.chains() {
        let top = chain.top()?;
        // QEMU tells better that a file is not there.
        let Ok(found) = Fingerprint::of(&home.absolute(&top.path)) else { continue };
        if closed_ns.is_none_or(|closed_ns| found.modified_ns > closed_ns) {
            drop_ours(home, top)?;
        }
    }
    Ok(())
}

/// Lets go of all of ours in a layer's file, before it is frozen or given back to its owner.
///
/// # Errors
/// [`Error::Layer`] when its header cannot be read, [`Error::Io`] when `qemu-img` fails.
pub fn drop_ours(home: &Home, layer: &Layer) -> Result<(), Error> {
    let path = home.absolute(&layer.path);
    if layer.format != LayerFormat::Qcow2 || !has_bitmaps(&path)? {
        return Ok(());
    }
    // Only this file: what it stands on need not be there.
    let node = json!({
        "driver": "qcow2",
        "backing": null,
        "file": {"driver": "file", "filename": path.to_string_lossy()},
    });
    let image = format!("json:{node}");
    for name in names(&path, &image)?.iter().filter(|name| tracking::is_ours(name)) {
        qemu_img(&path, &["bitmap", "--remove", &image, name])?;
    }
    Ok(())
}

fn has_bitmaps(path: &Path) -> Result<bool, Error> {
    let file = File::open(path).or_io("open", path)?;
    let header = Header::read(&file).map_err(|source| Error::Layer { path: path.to_owned(), source })?;
    // Those that the header does not vouch for QEMU takes for none.
    Ok(header.bitmaps().is_some_and(|bitmaps| bitmaps.consistent))
}

/// What `qemu-img info` says, as far as it is about bitmaps.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    format_specific: FormatSpecific,
}

#[derive(Deserialize)]
struct FormatSpecific {
    data: Qcow2Info,
}

#[derive(Deserialize)]
struct Qcow2Info {
    #[serde(default)]
    bitmaps: Vec<BitmapInfo>,
}

#[derive(Deserialize)]
struct BitmapInfo {
    name: String,
}

fn names(path: &Path, image: &str) -> Result<Vec<String>, Error> {
    // A frozen layer that QEMU has open is looked at, too; none of ours is in it.
    let output = qemu_img(path, &["info", "-U", "--output=json", image])?;
    let info: Info = serde_json::from_slice(&output)
        .map_err(std::io::Error::other)
        .or_io("understand what qemu-img says of", path)?;
    Ok(info.format_specific.data.bitmaps.into_iter().map(|bitmap| bitmap.name).collect())
}

fn qemu_img(path: &Path, arguments: &[&str]) -> Result<Vec<u8>, Error> {
    let output = Command::new("qemu-img").args(arguments).output().or_io("run qemu-img on", path)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(std::io::Error::other(said)).or_io("let go of bitmaps in", path);
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use keyframe_types::{ByteLen, LayerId, VmName};

    use crate::state::head::FileOrigin;

    use super::*;

    fn run(tool: &str, arguments: &[&str]) -> String {
        let output = Command::new(tool).args(arguments).output().unwrap_or_else(|error| panic!("{tool}: {error}"));
        assert!(output.status.success(), "{tool} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[test]
    fn ours_go_and_nothing_else_changes() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::open(root.path()).unwrap();
        let below = root.path().join("below.qcow2").display().to_string();
        // A name that would mean something else where options are parsed.
        let top: PathBuf = root.path().join("a,b=\"c.qcow2");
        let text = top.display().to_string();
        run("qemu-img", &["create", "-q", "-f", "qcow2", &below, "8M"]);
        run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &below, &text, "8M"]);
        let id = LayerId::random();
        let layer = Layer {
            vm: VmName::new("db").unwrap(),
            file: id.clone(),
            id,
            path: top.clone(),
            format: LayerFormat::Qcow2,
            origin: FileOrigin::Made,
            virtual_bytes: ByteLen::from_mib(8),
            frozen: None,
        };
        let before = std::fs::read(&top).unwrap();
        drop_ours(&home, &layer).unwrap();
        assert_eq!(std::fs::read(&top).unwrap(), before, "there was nothing to let go of");
        for name in ["theirs", "keyframe-a-1.file", "keyframe-b-2.file"] {
            run("qemu-img", &["bitmap", "--add", "-f", "qcow2", &text, name]);
        }
        // Other layers are not needed.
        std::fs::remove_file(&below).unwrap();
        drop_ours(&home, &layer).unwrap();
        let told = run("qemu-img", &["info", "-f", "qcow2", "--output=json", &text]);
        assert!(told.contains("theirs") && told.contains("below.qcow2") && !told.contains("keyframe-"), "{told}");
        let after = std::fs::read(&top).unwrap();
        drop_ours(&home, &layer).unwrap();
        assert_eq!(std::fs::read(&top).unwrap(), after, "what is not ours is nobody's business");
        run("qemu-img", &["create", "-q", "-f", "qcow2", &below, "8M"]);
        run("qemu-img", &["check", "-q", "-f", "qcow2", &text]);
    }
}
