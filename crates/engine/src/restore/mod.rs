//! A machine, or one of its disks, back from a point.
//!
//! | module | what |
//! |---|---|
//! | [`machine`] | a machine of its own |
//! | [`group`] | all machines of a group, on a network of their own |
//! | [`file`] | one disk as a file |
//! | [`in_place`] | the disks of the machine itself, by what differs |
//!
//! Everything is compared with its fingerprints as it is read, written sparse, and durable before it has its name. A restore that
//! fails, or is killed, leaves no machine and no file.

pub mod file;
pub mod group;
pub mod in_place;
pub mod machine;

use keyframe_repo::{Point, StoredImage};

use crate::error::Error;

/// An image of a point.
pub(crate) fn image<'p>(point: &'p Point, label: &str) -> Result<&'p StoredImage, Error> {
    point.images.iter().find(|image| image.label == label).ok_or_else(|| Error::NoMachineInPoint {
        point: format!("{}@{}", point.name, point.id.short()),
        reason: format!("its image {label} is missing"),
    })
}
