//! keyframe-types
