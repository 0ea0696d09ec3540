//! `keyframe image`

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use keyframe_qcow2::Format;
use keyframe_repo::index::Hooks;
use keyframe_repo::{
    Error, Existing, Point, Session, UnfinishedFile, WriteOptions, restore_qcow2, restore_raw, source,
};
use keyframe_types::ByteLen;
use serde_json::json;

use super::repository::{self, Ctx, carry_out, usage};
use crate::output::{Output, table};
use crate::progress::Terminal;
use crate::repo_args::{ImageCommand, Where};

/// What the only image of such a point is called.
const LABEL: &str = "image";

/// Carries a command out.
pub fn run(command: ImageCommand, progress: &Terminal, cancel: &AtomicBool, output: &Output) -> u8 {
    carry_out(progress, cancel, output, |ctx| match command {
        ImageCommand::Put { place, name, file, tags, format, changes } => {
            let source = source::open(&file, format.map(Into::into))?;
            put(ctx, &place, &name, &*source, tags, changes.as_deref())
        }
        ImageCommand::Get { place, point, file, format, force } => {
            get(ctx, &place, &point, &file, format.map(Into::into), force)
        }
        ImageCommand::List { place, name } => list(ctx, &place, name.as_deref()),
    })
}

fn put(
    ctx: &Ctx<'_>,
    place: &Where,
    name: &str,
    source: &dyn source::Source,
    tags: Vec<String>,
    changes: Option<&Path>,
) -> Result<u8, Error> {
    let repository = repository::open(place)?;
    let changes = changes.map(read_changes).transpose()?;
    let previous = match repository.find_point(name) {
        Ok(point) => Some(point),
        Err(Error::NoPoint { .. }) => None,
        Err(error) => return Err(error),
    };
    let mut session = Session::begin(&repository, previous, WriteOptions::default())?;
    session.add_image(LABEL, source, changes.as_deref(), ctx.run)?;
    let point = session.commit(name, tags, serde_json::Value::Null)?;
    ctx.output.result("image-stored", &document(&point), stored(&point));
    Ok(0)
}

/// Lines of offset and length.
fn read_changes(path: &Path) -> Result<Vec<Range<u64>>, Error> {
    let trouble = |source| Error::Io { action: "read", path: path.to_owned(), source };
    let text = fs::read_to_string(path).map_err(trouble)?;
    let extent = |line: &str| -> Option<Range<u64>> {
        let (offset, len) = line.trim().split_once(char::is_whitespace)?;
        let (offset, len): (u64, u64) = (offset.parse().ok()?, len.trim().parse().ok()?);
        Some(offset..offset.checked_add(len)?)
    };
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let bad = |n: usize| usage(&format!("line {} of {} is not OFFSET LENGTH in bytes", n + 1, path.display()));
    lines.map(|(n, line)| extent(line).ok_or_else(|| bad(n))).collect()
}

fn document(point: &Point) -> serde_json::Value {
    json!({
        "id": point.id,
        "name": point.name,
        "tags": point.tags,
        "created": point.created,
        "host": point.host,
        "bytes": point.images.iter().map(|image| image.bytes).sum::<u64>(),
        "totals": point.totals,
    })
}

fn size(bytes: u64) -> String {
    ByteLen::from_bytes(bytes).to_string()
}

fn stored(point: &Point) -> String {
    let totals = point.totals;
    #[allow(clippy::cast_precision_loss)] // shown with three digits
    let (scanned, new, stored) = (totals.scanned_bytes as f64, totals.new_bytes as f64, totals.stored_bytes as f64);
    let speed = scanned / 1e6 / totals.seconds.max(1e-3);
    // A point's own record is small, and says nothing beside little that is new.
    let part = if stored <= new { format!(", {:.0} % of what was new", 100.0 * stored / new) } else { String::new() };
    let rows = [
        ("  image", size(totals.logical_bytes)),
        ("  read and not zero", format!("{}, {speed:.0} MB/s", size(totals.scanned_bytes))),
        ("  new", size(totals.new_bytes)),
        ("  stored", format!("{}{part}", size(totals.stored_bytes))),
        ("  time", format!("{:.1} s", totals.seconds)),
    ];
    let rows: Vec<Vec<String>> = rows.map(|(name, value)| vec![name.to_owned(), value]).to_vec();
    format!("{}@{}\n{}", point.name, point.id.short(), table(&rows))
}

fn get(
    ctx: &Ctx<'_>,
    place: &Where,
    point: &str,
    file: &Path,
    format: Option<Format>,
    force: bool,
) -> Result<u8, Error> {
    let begun = Instant::now();
    let named_qcow2 = file.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("qcow2"));
    let format = format.unwrap_or(if named_qcow2 { Format::Qcow2 } else { Format::Raw });
    let existing = if force { Existing::Replace } else { Existing::Keep };
    let target = UnfinishedFile::create(file, existing)?;
    let repository = repository::open(place)?;
    let point = repository.find_point(point)?;
    let [image] = point.images.as_slice() else {
        return Err(usage("this point is a machine's: `keyframe restore` brings it back"));
    };
    let index = repository.index(Hooks::Skip)?;
    ctx.run.progress.step("writing");
    let restore = match format {
        Format::Raw => restore_raw,
        Format::Qcow2 => restore_qcow2,
    };
    let report = restore(&repository, &index, image, target.file(), file, ctx.run)?;
    target.done()?;
    let seconds = begun.elapsed().as_secs_f64();
    let text = format!(
        "{}@{} is in {} ({format}): {}, of which {} are not zero, in {seconds:.1} s\n",
        point.name,
        point.id.short(),
        file.display(),
        size(report.logical_bytes),
        size(report.written_bytes)
    );
    let document = json!({"id": point.id, "name": point.name, "file": file, "format": format.to_string(), "report": report, "seconds": seconds});
    ctx.output.result("image-restored", &document, text);
    Ok(0)
}

fn list(ctx: &Ctx<'_>, place: &Where, name: Option<&str>) -> Result<u8, Error> {
    let repository = repository::open(place)?;
    let (mut points, damaged) = repository.points()?;
    points.retain(|point| name.is_none_or(|name| point.name == name));
    let mut rows = vec![["NAME", "ID", "CREATED", "SIZE", "NEW", "TAGS"].map(str::to_owned).to_vec()];
    rows.extend(points.iter().map(|point| {
        let bytes = point.images.iter().map(|image| image.bytes).sum();
        let tags = point.tags.join(",");
        vec![
            point.name.clone(),
            point.id.short(),
            point.created.to_string(),
            size(bytes),
            size(point.totals.new_bytes),
            tags,
        ]
    }));
    let mut text = if points.is_empty() { "nothing is stored\n".to_owned() } else { table(&rows) };
    for (id, error) in &damaged {
        text.push_str(&format!("damaged: {id}: {error}\n"));
    }
    let document = json!({
        "images": points.iter().map(document).collect::<Vec<_>>(),
        "damaged": damaged.iter().map(|(id, error)| json!({"id": id, "reason": error.to_string()})).collect::<Vec<_>>(),
    });
    ctx.output.result("images", &document, text);
    Ok(if damaged.is_empty() { 0 } else { 3 })
}
