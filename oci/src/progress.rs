//! What a caller is notified of while an image is transferred. Callers print; this crate does not.

use crate::digest::Digest;

/// A step of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The image was found. Its layers follow.
    Resolved {
        /// Digest of its manifest.
        digest: Digest,
        /// Number of blobs: its layers and its configuration.
        blobs: usize,
        /// Size of them in bytes.
        bytes: u64,
    },
    /// A blob is there already, on the receiving side.
    Exists {
        /// The blob.
        blob: Digest,
        /// Its size in bytes.
        size: u64,
    },
    /// More of a blob was transferred.
    Transferred {
        /// The blob.
        blob: Digest,
        /// Number of bytes since the previous event of the blob. A transfer that starts again from
        /// the blob's first byte counts its bytes again.
        bytes: u64,
    },
    /// A blob was transferred and verified.
    Done {
        /// The blob.
        blob: Digest,
    },
    /// A connection broke, and the transfer is tried again.
    Retrying {
        /// The blob.
        blob: Digest,
        /// Offset in bytes at which it continues.
        offset: u64,
    },
}

/// Receives the steps of a transfer. Closures implement it.
pub trait Progress: Send + Sync {
    /// Receives one step. Must not block.
    fn notify(&self, event: Event);
}

impl<F: Fn(Event) + Send + Sync> Progress for F {
    fn notify(&self, event: Event) {
        self(event);
    }
}

/// Ignores every step.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn notify(&self, _: Event) {}
}
