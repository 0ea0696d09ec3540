//! What was promised and what was measured, for an auditor.
