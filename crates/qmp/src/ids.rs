//! Names that we give to things inside QEMU, each kind its own type.
//!
//! Source: `util/id.c` (`id_wellformed`), `include/block/block_int-common.h` (`node_name[32]`).

/// Longest node name, in bytes (QEMU keeps 32 with the terminating zero).
pub const NODE_NAME_MAX: usize = 31;
/// Longest other identifier that this crate gives, in bytes. QEMU has no limit of its own.
pub const ID_MAX: usize = 127;

const ID_RULE: &str = "starts with a letter, then letters, digits, '-', '.', '_'; at most 127 bytes";
const NODE_RULE: &str = "starts with a letter, then letters, digits, '-', '.', '_'; at most 31 bytes";

fn wellformed(id: &str) -> bool {
    id.starts_with(|c: char| c.is_ascii_alphabetic())
        && id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'))
}

fn check_id(id: &str) -> Result<(), &'static str> {
    if wellformed(id) && id.len() <= ID_MAX { Ok(()) } else { Err(ID_RULE) }
}

fn check_node(name: &str) -> Result<(), &'static str> {
    if wellformed(name) && name.len() <= NODE_NAME_MAX { Ok(()) } else { Err(NODE_RULE) }
}

name_type!(
    /// A node of the block graph. Source: `qapi/block-core.json`, `node-name`.
    NodeName, "node name", check_node
);
name_type!(
    /// A device (`-device …,id=`). Source: `qapi/qdev.json`.
    DeviceId, "device id", check_id
);
name_type!(
    /// A background job. Source: `qapi/job.json`.
    JobId, "job id", check_id
);
name_type!(
    /// An object (`-object …,id=`) or network backend. Source: `qapi/qom.json`, `qapi/net.json`.
    ObjectId, "object id", check_id
);
name_type!(
    /// A file descriptor that the monitor keeps. Source: `qapi/misc.json`, `getfd`.
    FdName, "file descriptor name", check_id
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names_follow_qemus_rule() {
        for good in ["d0", "disk-0.layer_1", "a", &"x".repeat(31)] {
            assert_eq!(NodeName::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "0d", "-d", "d 0", "d/0", "é", "#block1", &"x".repeat(32)] {
            assert!(NodeName::new(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_name_that_qemu_made_up_can_be_read() {
        let name: NodeName = serde_json::from_str("\"#block123\"").unwrap();
        assert_eq!(name.as_str(), "#block123");
    }
}
