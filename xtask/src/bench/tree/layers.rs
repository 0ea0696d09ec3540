//! The files of a chain, as `qemu-img` sees them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerOnDisk {
    /// Where it is.
    pub path: PathBuf,
    /// Room that it takes.
    pub bytes: u64,
}

/// A layer and all that it stands on, the layer first.
///
/// # Errors
/// When `qemu-img` cannot read them.
pub fn below(top: &Path) -> Result<Vec<LayerOnDisk>> {
    let mut command = Command::new("qemu-img");
    let output = command.args(["info", "-U", "--backing-chain", "--output=json"]).arg(top).output();
    let output = output.context("cannot run qemu-img")?;
    if !output.status.success() {
        bail!("qemu-img cannot read {}: {}", top.display(), String::from_utf8_lossy(&output.stderr));
    }
    parse(&serde_json::from_slice(&output.stdout).context("qemu-img does not write JSON")?)
}

fn parse(chain: &Value) -> Result<Vec<LayerOnDisk>> {
    let layer = |value: &Value| {
        let path = value.get("filename")?.as_str()?.into();
        Some(LayerOnDisk { path, bytes: value.get("actual-size")?.as_u64()? })
    };
    let layers = chain.as_array().into_iter().flatten().map(|value| layer(value).context("a layer without a size"));
    layers.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_chain_is_read_in_order() {
        let chain = json!([{ "filename": "/b", "actual-size": 7 }, { "filename": "/a", "actual-size": 9 }]);
        let expected = [("/b", 7), ("/a", 9)].map(|(path, bytes)| LayerOnDisk { path: path.into(), bytes });
        assert_eq!(parse(&chain).unwrap(), expected);
        assert!(parse(&json!([{ "filename": "/b" }])).is_err());
    }
}
