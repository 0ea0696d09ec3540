//! keyframe-hypervisor
