//! Which kernel modules a guest needs, and in which order they can be loaded.
//!
//! An unpacked kernel package has no `modules.dep` (its installation would make that), so each module is asked
//! itself: the `depends=` entry of its `.modinfo` section.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The modules of one kernel, by name with underscores.
pub struct ModuleTree {
    files: BTreeMap<String, PathBuf>,
    builtin: Vec<String>,
}

impl ModuleTree {
    /// Looks through `lib/modules/RELEASE`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(dir: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        collect(&dir.join("kernel"), &mut files)?;
        let list = dir.join("modules.builtin");
        let text = fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
        Ok(Self { files, builtin: text.lines().filter_map(|line| module_name(Path::new(line))).collect() })
    }

    /// Files to load, each after what it depends on. Names that are built into the kernel need none.
    ///
    /// # Errors
    /// When a name is unknown, or a file cannot be read.
    pub fn in_load_order(&self, wanted: &[&str]) -> Result<Vec<PathBuf>> {
        let mut order = Vec::new();
        for name in wanted {
            self.visit(name, &mut order)?;
        }
        Ok(order)
    }

    fn visit(&self, name: &str, order: &mut Vec<PathBuf>) -> Result<()> {
        let Some(file) = self.files.get(name) else {
            if self.builtin.iter().any(|builtin| builtin == name) {
                return Ok(());
            }
            bail!("this kernel has no module {name}");
        };
        if order.contains(file) {
            return Ok(());
        }
        let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        for dependency in depends(&bytes) {
            self.visit(&dependency, order)?;
        }
        order.push(file.clone());
        Ok(())
    }
}

fn collect(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if let Some(name) = module_name(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

fn module_name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.strip_suffix(".ko")?.replace('-', "_"))
}

/// The names after `depends=` in a module's `.modinfo`, where entries end with a zero byte.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value).into_owned();
    names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> (tempfile::TempDir, ModuleTree) {
        let dir = tempfile::tempdir().unwrap();
        let module = |path: &str, depends: &str| {
            let file = dir.path().join("kernel").join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, format!("ELF\0license=GPL\0depends={depends}\0name=x\0")).unwrap();
        };
        module("net/virtio-net.ko", "virtio,net_failover");
        module("net/net_failover.ko", "failover");
        module("net/failover.ko", "");
        module("virtio/virtio.ko", "");
        fs::write(dir.path().join("modules.builtin"), "kernel/fs/ext4/ext4.ko\n").unwrap();
        let tree = ModuleTree::open(dir.path()).unwrap();
        (dir, tree)
    }

    #[test]
    fn what_a_module_needs_comes_first_and_once() {
        let (_dir, tree) = tree();
        let order = tree.in_load_order(&["virtio_net", "virtio", "ext4"]).unwrap();
        let names: Vec<_> = order.iter().filter_map(|path| module_name(path)).collect();
        assert_eq!(names, ["virtio", "failover", "net_failover", "virtio_net"]);
    }

    #[test]
    fn an_unknown_module_is_an_error() {
        let (_dir, tree) = tree();
        assert!(tree.in_load_order(&["nope"]).unwrap_err().to_string().contains("nope"));
    }

    #[test]
    fn a_module_without_the_entry_depends_on_nothing() {
        assert!(depends(b"\x7fELF").is_empty());
        assert!(depends(b"\0depends=\0").is_empty());
    }
}
