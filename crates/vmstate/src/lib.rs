//! keyframe-vmstate
