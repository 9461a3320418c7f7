//! Restore and fork.
