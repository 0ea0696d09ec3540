//! `keyframe files POINT ls`

use keyframe_engine::Error;
use keyframe_engine::files::PointFiles;
use keyframe_files::{Content, DirEntry, FileSystem as _, Kind, Metadata, Time, VolumeInfo};
use keyframe_repo::Point;
use keyframe_types::ByteLen;
use serde_json::{Value, json};

use super::{Found, scripted, shown};
use crate::output::{Output, table};

/// What is on the point's disks.
pub fn volumes(point: &Point, files: &PointFiles, output: &Output) -> Result<u8, Error> {
    let heads = ["VOLUME", "SIZE", "CONTENT", "LABEL", "NOTES"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    let mut documents = Vec::new();
    for volume in &files.volumes {
        let (row, document) = volume_row(files, volume);
        rows.push(row);
        documents.push(document);
    }
    output.result("volumes", &json!({"point": point.id, "volumes": documents}), table(&rows));
    Ok(0)
}

fn volume_row(files: &PointFiles, volume: &VolumeInfo) -> (Vec<String>, Value) {
    let mut notes = volume.notes.clone();
    let about = volume.content.is_file_system().then(|| files.open_volume(Some(&volume.name)).map(|fs| fs.about()));
    let about = match about {
        Some(Ok(about)) => Some(about),
        Some(Err(Error::InVolume { source, .. })) => {
            notes.push(source.to_string());
            None
        }
        Some(Err(error)) => {
            notes.push(error.to_string());
            None
        }
        None => None,
    };
    let content = about.as_ref().map_or_else(|| volume.content.as_str().to_owned(), |about| about.kind.clone());
    let label = about.as_ref().map(|about| about.label.clone()).filter(|label| !label.is_empty());
    let label = label.unwrap_or_else(|| volume.title.clone());
    if let Some(about) = &about {
        notes.extend(about.notes.iter().cloned());
        notes.extend(about.lacks.iter().cloned());
    }
    let text = |text: &str| shown(text.as_bytes());
    let row = vec![
        text(&volume.name),
        ByteLen::from_bytes(volume.bytes).to_string(),
        if matches!(volume.content, Content::Table(_)) { format!("partitions ({content})") } else { content.clone() },
        text(&label),
        text(&notes.join("; ")),
    ];
    let document = json!({
        "volume": volume.name,
        "bytes": volume.bytes,
        "content": content,
        "file_system": about.is_some(),
        "label": label,
        "partition_name": volume.title,
        "uuid": about.map(|about| about.uuid),
        "notes": notes,
    });
    (row, document)
}

/// A directory's names, or one file.
pub fn directory(found: &Found, long: bool, output: &Output) -> Result<u8, Error> {
    let Found { fs, node, shown: place, path } = found;
    let in_file = |source| Error::InFile { file: place.clone(), source };
    let top = fs.metadata(*node).map_err(in_file)?;
    let mut entries = Vec::new();
    if top.kind == Kind::Directory {
        let listed = fs.read_dir(*node, &mut |entry| {
            entries.push(entry);
            Ok(())
        });
        listed.map_err(in_file)?;
    } else {
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default().to_vec();
        entries.push(DirEntry { name, node: *node });
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let (mut rows, mut plain, mut documents, mut status) = (Vec::new(), String::new(), Vec::new(), 0);
    for entry in &entries {
        if !long && !output.is_json() {
            plain.push_str(&shown(&entry.name));
            plain.push('\n');
            continue;
        }
        // One that is damaged does not hide the others.
        let known = fs.metadata(entry.node);
        let target = match &known {
            Ok(metadata) if metadata.kind == Kind::Link => fs.read_link(entry.node).ok(),
            _ => None,
        };
        if let Err(error) = &known {
            output.note(&format!("{}: {error}", shown(&entry.name)));
            status = 3;
        }
        rows.push(row(&entry.name, known.as_ref().ok(), target.as_deref()));
        documents.push(document(&entry.name, known.ok(), target.as_deref()));
    }
    let text = if long { table(&rows) } else { plain };
    output.result("files", &json!({"place": place, "entries": documents}), text);
    Ok(status)
}

fn row(name: &[u8], metadata: Option<&Metadata>, target: Option<&[u8]>) -> Vec<String> {
    let Some(metadata) = metadata else {
        return ["?", "?", "?", "?", "?"].into_iter().map(str::to_owned).chain([shown(name)]).collect();
    };
    let owner = metadata.owner.map_or_else(|| "-".to_owned(), |owner| format!("{}:{}", owner.uid, owner.gid));
    let size = match metadata.device {
        Some((major, minor)) => format!("{major}, {minor}"),
        None => metadata.size.to_string(),
    };
    let arrow = target.map(|target| format!(" -> {}", shown(target))).unwrap_or_default();
    vec![
        permissions(metadata),
        metadata.links.to_string(),
        owner,
        size,
        metadata.modified.map_or_else(|| "-".to_owned(), time),
        format!("{}{arrow}", shown(name)),
    ]
}

/// As `ls -l` writes it.
fn permissions(metadata: &Metadata) -> String {
    let mode = metadata.mode;
    let mut text = String::from(metadata.kind.letter());
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift & 7;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// An instant in UTC; one that no calendar has as a number.
fn time(time: Time) -> String {
    match jiff::Timestamp::from_second(time.seconds) {
        Ok(at) => at.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
        Err(_) => format!("@{}", time.seconds),
    }
}

fn document(name: &[u8], metadata: Option<Metadata>, target: Option<&[u8]>) -> Value {
    let Some(metadata) = metadata else { return json!({"name": scripted(name), "damaged": true}) };
    let at = |time: Option<Time>| time.map(|time| json!({"seconds": time.seconds, "nanos": time.nanos}));
    json!({
        "name": scripted(name),
        "kind": metadata.kind.as_str(),
        "bytes": metadata.size,
        "mode": format!("{:04o}", metadata.mode),
        "uid": metadata.owner.map(|owner| owner.uid),
        "gid": metadata.owner.map(|owner| owner.gid),
        "links": metadata.links,
        "modified": at(metadata.modified),
        "changed": at(metadata.changed),
        "accessed": at(metadata.accessed),
        "target": target.map(scripted),
        "device": metadata.device,
    })
}
