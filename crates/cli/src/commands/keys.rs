//! `keyframe repo key`

use std::env;

use keyframe_repo::{Error, Rights, SlotInfo, Unlock};
use serde_json::json;

use super::repository::{self, Ctx};
use crate::output::table;
use crate::repo_args::KeyCommand;

/// Carries a command out.
pub fn run(ctx: &Ctx<'_>, command: KeyCommand) -> Result<u8, Error> {
    match command {
        KeyCommand::Add { place, new_key_file, age_recipient, rights, label } => {
            let repository = repository::open(&place)?;
            let (unlock, made) = match (&new_key_file, &age_recipient) {
                (_, Some(recipient)) => (Unlock::AgeRecipient(recipient.parse()?), false),
                (Some(path), None) => Unlock::from_file_or_new(path)?,
                (None, None) => (Unlock::Passphrase(new_passphrase()?), false),
            };
            let slot = repository.add_key(&unlock, Rights::from(rights), &label)?;
            let made = if made { ", in a new file: keep a copy elsewhere" } else { "" };
            let text = format!("added key {} ({}, {}){made}\n", slot.id.short(), slot.kind, slot.rights.as_str());
            ctx.output.result("repo-key-added", &slot, text);
        }
        KeyCommand::List { place } => {
            let slots = repository::open(&place)?.key_slots()?;
            let mut rows = vec![["ID", "KIND", "RIGHTS", "CREATED", "LABEL", "RECIPIENT"].map(str::to_owned).to_vec()];
            rows.extend(slots.iter().map(row));
            ctx.output.result("repo-keys", &json!({ "keys": slots }), table(&rows));
        }
        KeyCommand::Remove { place, id } => {
            let slot = repository::open(&place)?.remove_key(&id)?;
            let text = format!(
                "removed key {}: who opened the repository with it before still knows what it holds\n",
                slot.id.short()
            );
            ctx.output.result("repo-key-removed", &slot, text);
        }
    }
    Ok(0)
}

fn row(slot: &SlotInfo) -> Vec<String> {
    let words = [slot.id.short(), slot.kind.to_owned(), slot.rights.as_str().to_owned(), slot.created.to_string()];
    words.into_iter().chain([slot.label.clone(), slot.recipient.clone().unwrap_or_default()]).collect()
}

fn new_passphrase() -> Result<zeroize::Zeroizing<String>, Error> {
    match env::var("KEYFRAME_NEW_PASSPHRASE") {
        Ok(text) if !text.is_empty() => Ok(text.into()),
        Ok(_) => Err(repository::usage("KEYFRAME_NEW_PASSPHRASE is empty")),
        Err(_) => repository::asked_passphrase("New passphrase: "),
    }
}
