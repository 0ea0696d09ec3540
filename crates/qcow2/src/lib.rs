//! keyframe-qcow2
