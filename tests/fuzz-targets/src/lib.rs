//! What is done with bytes from anybody, one function per place where such bytes come in. Each takes any bytes at all, and
//! panics when something is broken that must hold whatever they are.
//!
//! The programs in `fuzz/` hand these functions to libFuzzer, which needs a nightly compiler and runs for as long as it is
//! let; `tests/replay.rs` runs them on the corpora in `fuzz/corpus` and on some thousand mutations of those, in seconds,
//! with any compiler. Owns no format and no device: everything here is called as its own callers call it.

#![allow(clippy::missing_panics_doc, reason = "a panic is how a target says that it found something")]

mod balloon_device;
mod block_device;
mod disk_layers;
mod driver;
mod frame_decode;
mod image_metadata;
mod input;
mod rng_device;
mod serial_console;
mod snapshot_metadata;
mod state_file;
mod tar_unpack;
mod virtqueue;
mod vsock_device;

pub use balloon_device::balloon_device;
pub use block_device::block_device;
pub use disk_layers::disk_layers;
pub use frame_decode::frame_decode;
pub use image_metadata::image_metadata;
pub use rng_device::rng_device;
pub use serial_console::serial_console;
pub use snapshot_metadata::snapshot_metadata;
pub use state_file::{example as state_file_example, state_file};
pub use tar_unpack::tar_unpack;
pub use virtqueue::virtqueue;
pub use vsock_device::vsock_device;

/// A function of this crate, by the name of its program in `fuzz/fuzz_targets` and its corpus in `fuzz/corpus`.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// What to do with some bytes.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "balloon_device", run: balloon_device },
    Target { name: "block_device", run: block_device },
    Target { name: "disk_layers", run: disk_layers },
    Target { name: "frame_decode", run: frame_decode },
    Target { name: "image_metadata", run: image_metadata },
    Target { name: "rng_device", run: rng_device },
    Target { name: "serial_console", run: serial_console },
    Target { name: "snapshot_metadata", run: snapshot_metadata },
    Target { name: "state_file", run: state_file },
    Target { name: "tar_unpack", run: tar_unpack },
    Target { name: "virtqueue", run: virtqueue },
    Target { name: "vsock_device", run: vsock_device },
];
