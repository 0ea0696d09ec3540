//! Listing a machine that has very many snapshots, as a person waits for it: the command, from its start to its end.

use std::time::Instant;

use anyhow::Result;
use keyframe_acceptance::Home;
use keyframe_acceptance::guests::SmallGuest;
use serde_json::{Value, json};

use super::MEMORY;
use crate::bench::samples::Samples;
use crate::say;

/// How often the list is asked for.
const TIMES: u32 = 9;

/// What it came to.
pub struct ListFigures {
    /// Snapshots that there are.
    pub snapshots: u32,
    /// The whole command, as a table.
    pub table: Samples,
    /// The whole command, as JSON.
    pub json: Samples,
}

/// Takes that many snapshots of a machine that is off, one layer deeper each, and lists them.
///
/// # Errors
/// When a command fails.
pub fn measure(home: &Home, guest: &SmallGuest, snapshots: u32) -> Result<ListFigures> {
    let disk = home.empty_disk("listed.qcow2", "64M")?;
    let mut words: Vec<std::ffi::OsString> = vec!["vm".into(), "create".into(), "listed".into()];
    words.extend(["--memory".into(), MEMORY.into(), "--disk".into(), disk.clone().into()]);
    words.extend(["--kernel".into(), guest.kernel.clone().into(), "--initrd".into(), guest.initrd.clone().into()]);
    home.run(words)?.succeeded()?;
    say::note(format_args!("taking {snapshots} snapshots"));
    for number in 0..snapshots {
        home.run(["snapshot", "listed", "--name", &format!("s{number}"), "--note", "one of very many"])?.succeeded()?;
    }
    let (mut table, mut json) = (Samples::default(), Samples::default());
    for _ in 0..TIMES {
        for (further, samples) in [(&[][..], &mut table), (&["--json"][..], &mut json)] {
            let begun = Instant::now();
            home.run(["snapshots", "listed"].iter().chain(further))?.succeeded()?;
            samples.push(begun.elapsed());
        }
    }
    home.run(["vm", "remove", "listed"])?.succeeded()?;
    std::fs::remove_file(&disk)?;
    Ok(ListFigures { snapshots, table, json })
}

impl ListFigures {
    /// For the JSON document.
    pub fn to_json(&self) -> Value {
        json!({ "snapshots": self.snapshots, "table": self.table.to_json(), "json": self.json.to_json() })
    }
}
