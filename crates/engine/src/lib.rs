//! keyframe-engine
