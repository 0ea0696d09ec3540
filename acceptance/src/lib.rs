//! Acceptance
