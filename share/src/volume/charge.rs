//! What a file counts for. At least what it takes on the disk, whatever the file system of the host is.

/// What a name counts for in bytes, and the unit of sizes.
pub(super) const PAGE: u64 = 4096;

/// Returns what a file of this size counts for, with one name.
pub(super) fn charge(size: u64) -> u64 {
    pages(size).saturating_add(PAGE)
}

/// Returns what the content of a file of this size counts for.
pub(super) fn pages(size: u64) -> u64 {
    size.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX)
}
