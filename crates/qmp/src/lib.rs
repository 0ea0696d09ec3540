//! keyframe-qmp
