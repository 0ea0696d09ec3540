//! `keyframe repo`

use std::sync::atomic::AtomicBool;

use keyframe_repo::index::Hooks;
use keyframe_repo::pack::Content;
use keyframe_repo::{Error, Parameters, PruneOptions, Repository, Unlock};
use keyframe_types::ByteLen;
use serde_json::json;

use super::repository::{self, Ctx, Reading, carry_out};
use super::{keys, upkeep};
use crate::output::{Output, table};
use crate::progress::Terminal;
use crate::repo_args::{RepoCommand, Where};

/// Carries a command out.
pub fn run(command: RepoCommand, progress: &Terminal, cancel: &AtomicBool, output: &Output) -> u8 {
    carry_out(progress, cancel, output, |ctx| match command {
        RepoCommand::Init { place, no_encryption, parity, level, alone } => {
            init(ctx, &place, no_encryption, Parameters { parity_percent: parity, level }, alone)
        }
        RepoCommand::Info { place } => info(ctx, &place),
        RepoCommand::Forget { place, keep, name, tag, dry_run } => {
            upkeep::forget(ctx, &place, &keep.into(), (name.as_deref(), tag.as_deref()), dry_run)
        }
        RepoCommand::Prune { place, waste, grace, dry_run } => {
            upkeep::prune(ctx, &place, PruneOptions { waste_percent: waste, grace, dry_run })
        }
        RepoCommand::Check { place } => upkeep::check(ctx, &place),
        RepoCommand::Verify { place, scope } => upkeep::verify(ctx, &place, &scope),
        RepoCommand::Repair { place } => upkeep::repair(ctx, &place),
        RepoCommand::Key(command) => keys::run(ctx, command),
    })
}

fn init(ctx: &Ctx<'_>, place: &Where, no_encryption: bool, parameters: Parameters, alone: bool) -> Result<u8, Error> {
    let store = repository::store(place, true, Reading::Store)?;
    let (unlock, new_key_file) = match &place.access.key_file {
        _ if no_encryption => (Unlock::Nothing, false),
        Some(path) => Unlock::from_file_or_new(path)?,
        None => (Unlock::Passphrase(repository::passphrase("New passphrase: ")?), false),
    };
    let make = if alone { Repository::init_alone } else { Repository::init };
    let repository = make(store, &unlock, parameters)?;
    let mut text = format!("made repository {} in {}\n", repository.config().repository.short(), place.repo);
    if new_key_file {
        let path = place.access.key_file.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        text.push_str(&format!("its key is in {path}: keep a copy elsewhere, without it nothing can be read\n"));
    }
    if no_encryption {
        ctx.run
            .progress
            .note("this repository is NOT encrypted: whoever has the storage can read and forge everything");
    }
    let document = json!({
        "repository": repository.config().repository,
        "encrypted": repository.config().encrypted,
        "new_key_file": new_key_file,
    });
    ctx.output.result("repo-made", &document, text);
    Ok(0)
}

fn info(ctx: &Ctx<'_>, place: &Where) -> Result<u8, Error> {
    let repository = repository::open(place)?;
    let index = repository.index(Hooks::Skip)?;
    let (points, damaged) = repository.points()?;
    let packs = index.packs();
    let stored: u64 = packs.iter().map(|pack| pack.layout.object_len).sum();
    let unique = index.pages() * keyframe_repo::ids::PAGE_BYTES as u64;
    let logical: u64 = points.iter().flat_map(|point| &point.images).map(|image| image.bytes).sum();
    let nodes = packs.iter().filter(|pack| pack.content == Content::Nodes).count();
    let size = |bytes| ByteLen::from_bytes(bytes).to_string();
    let config = repository.config();
    let rows = [
        ("repository", config.repository.to_string()),
        ("made", config.created.to_string()),
        ("encrypted", if config.encrypted { "yes".to_owned() } else { "NO".to_owned() }),
        ("this key may", repository.keys().rights().as_str().to_owned()),
        ("parity", format!("{} %", repository.parity_percent())),
        ("points", points.len().to_string()),
        ("images, holes included", size(logical)),
        ("different pages", size(unique)),
        ("packs", format!("{} of data, {nodes} of structure, {}", packs.len() - nodes, size(stored))),
    ];
    let rows: Vec<Vec<String>> = rows.map(|(name, value)| vec![name.to_owned(), value]).to_vec();
    let document = json!({
        "repository": config.repository,
        "created": config.created,
        "encrypted": config.encrypted,
        "rights": repository.keys().rights().as_str(),
        "parity_percent": repository.parity_percent(),
        "points": points.len(),
        "damaged_points": damaged.iter().map(|(id, _)| id).collect::<Vec<_>>(),
        "logical_bytes": logical,
        "unique_bytes": unique,
        "packs": packs.len(),
        "stored_bytes": stored,
    });
    ctx.output.result("repo-info", &document, table(&rows));
    Ok(if damaged.is_empty() { 0 } else { 3 })
}
