//! Devices, network backends and objects.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Empty, command};
use crate::ids::{DeviceId, ObjectId};

/// Options of something that QEMU makes: a driver or type, an id, and whatever else it takes.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Properties(Map<String, Value>);

impl Properties {
    fn of(kind: (&str, &str), id: &str) -> Self {
        let mut map = Map::new();
        map.insert(kind.0.to_owned(), kind.1.into());
        map.insert("id".to_owned(), id.into());
        Self(map)
    }

    fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.insert(name.to_owned(), value.into());
        self
    }
}

macro_rules! maker {
    ($(#[$meta:meta])* $type:ident, $name:literal, $key:literal, $id:ty) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Serialize)]
        #[serde(transparent)]
        pub struct $type(Properties);
        command!($type, $name -> Empty);

        impl $type {
            /// One of this kind, under this id.
            #[must_use]
            pub fn new(kind: &str, id: &$id) -> Self {
                Self(Properties::of(($key, kind), id.as_str()))
            }

            /// With one more property.
            #[must_use]
            pub fn with(self, name: &str, value: impl Into<Value>) -> Self {
                Self(self.0.with(name, value))
            }
        }
    };
}

maker!(
    /// Plugs a device in; `kind` is the driver. Source: `qapi/qdev.json`, `device_add`.
    DeviceAdd, "device_add", "driver", DeviceId
);
maker!(
    /// Adds a network backend; `kind` is its type. Source: `qapi/net.json`, `netdev_add`.
    NetdevAdd, "netdev_add", "type", ObjectId
);
maker!(
    /// Adds an object; `kind` is its type. Source: `qapi/qom.json`, `object-add`.
    ObjectAdd, "object-add", "qom-type", ObjectId
);

/// Asks the guest to let go of a device; it is gone at the DEVICE_DELETED event, which a guest can
/// withhold. Source: `qapi/qdev.json`, `device_del`.
#[derive(Debug, Clone, Serialize)]
pub struct DeviceDel {
    /// Which.
    pub id: DeviceId,
}
command!(DeviceDel, "device_del" -> Empty);

/// Source: `qapi/net.json`, `netdev_del`.
#[derive(Debug, Clone, Serialize)]
pub struct NetdevDel {
    /// Which.
    pub id: ObjectId,
}
command!(NetdevDel, "netdev_del" -> Empty);

/// Source: `qapi/qom.json`, `object-del`.
#[derive(Debug, Clone, Serialize)]
pub struct ObjectDel {
    /// Which.
    pub id: ObjectId,
}
command!(ObjectDel, "object-del" -> Empty);

/// State of a network link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// The cable is in.
    Up,
    /// The cable is out.
    Down,
}

/// Pulls or plugs a network cable. Source: `qapi/net.json`, `set_link`.
#[derive(Debug, Clone, Serialize)]
pub struct SetLink {
    name: DeviceId,
    up: bool,
}
command!(SetLink, "set_link" -> Empty);

impl SetLink {
    /// The link of this device.
    #[must_use]
    pub fn new(name: DeviceId, link: Link) -> Self {
        Self { name, up: link == Link::Up }
    }
}

/// Tells switches where the machine is now. Source: `qapi/net.json`, `AnnounceParameters`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AnnounceSelf {
    /// Pause before the second packet.
    #[serde(rename = "initial")]
    pub initial_ms: u32,
    /// Longest pause.
    #[serde(rename = "max")]
    pub max_ms: u32,
    /// Packets.
    pub rounds: u32,
    /// By how much a pause is longer than the one before.
    #[serde(rename = "step")]
    pub step_ms: u32,
}
command!(AnnounceSelf, "announce-self" -> Empty);

impl Default for AnnounceSelf {
    /// QEMU's own values after a migration. Source: `migration/options.c`, `DEFAULT_MIGRATE_ANNOUNCE_*`.
    fn default() -> Self {
        Self { initial_ms: 50, max_ms: 550, rounds: 5, step_ms: 100 }
    }
}

/// Reads a property of an object. Source: `qapi/qom.json`, `qom-get`.
#[derive(Debug, Clone, Serialize)]
pub struct QomGet {
    /// The object.
    pub path: String,
    /// The property.
    pub property: String,
}
command!(QomGet, "qom-get" -> Value);

/// Lists an object's properties. Source: `qapi/qom.json`, `qom-list`.
#[derive(Debug, Clone, Serialize)]
pub struct QomList {
    /// The object.
    pub path: String,
}
command!(QomList, "qom-list" -> Vec<QomProperty>);

/// Source: `qapi/qom.json`, `ObjectPropertyInfo`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct QomProperty {
    /// Its name.
    pub name: String,
    /// Its type, as QEMU writes it (`child<…>`, `str`, …).
    #[serde(rename = "type")]
    pub kind: String,
}
