//! Fuzz targets: one function for each place at which untrusted bytes arrive. Each accepts any
//! bytes, and panics if the code under test violates a rule that must hold for all of them.
//!
//! The programs in `fuzz/` pass these functions to libFuzzer, which needs a nightly compiler and
//! runs without end. `tests/replay.rs` runs them for seconds, with any compiler, on the corpora in
//! `fuzz/corpus` and on some thousand mutations of them. This crate owns no format and no device:
//! it calls everything as its real callers do.

#![allow(clippy::missing_panics_doc, reason = "a panic is how a target says that it found something")]

mod balloon_device;
mod block_device;
mod connection_opening;
mod disk_layers;
mod dns_answer;
mod dns_query;
mod dockerfile;
mod driver;
mod egress_frames;
mod frame_decode;
mod image_archive;
mod image_documents;
mod image_metadata;
mod input;
mod layer_archive;
mod layer_changes;
mod net_device;
mod rng_device;
mod serial_console;
mod snapshot_metadata;
mod state_file;
mod tar_unpack;
mod virtqueue;
mod vsock_device;
mod workspace_changes;

pub use balloon_device::balloon_device;
pub use block_device::block_device;
pub use connection_opening::connection_opening;
pub use disk_layers::disk_layers;
pub use dns_answer::dns_answer;
pub use dns_query::dns_query;
pub use dockerfile::dockerfile;
pub use egress_frames::egress_frames;
pub use frame_decode::frame_decode;
pub use image_archive::image_archive;
pub use image_documents::{image_configuration, image_manifest, image_reference};
pub use image_metadata::image_metadata;
pub use layer_archive::layer_archive;
pub use layer_changes::layer_changes;
pub use net_device::net_device;
pub use rng_device::rng_device;
pub use serial_console::serial_console;
pub use snapshot_metadata::snapshot_metadata;
pub use state_file::{example as state_file_example, state_file};
pub use tar_unpack::tar_unpack;
pub use virtqueue::virtqueue;
pub use vsock_device::vsock_device;
pub use workspace_changes::workspace_changes;

/// A function of this crate. Its program in `fuzz/fuzz_targets` and its corpus in `fuzz/corpus`
/// have the same name.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The name of the function.
    pub name: &'static str,
    /// The function.
    pub run: fn(&[u8]),
}

/// All fuzz targets.
pub const TARGETS: &[Target] = &[
    Target { name: "balloon_device", run: balloon_device },
    Target { name: "block_device", run: block_device },
    Target { name: "connection_opening", run: connection_opening },
    Target { name: "disk_layers", run: disk_layers },
    Target { name: "dns_answer", run: dns_answer },
    Target { name: "dns_query", run: dns_query },
    Target { name: "dockerfile", run: dockerfile },
    Target { name: "egress_frames", run: egress_frames },
    Target { name: "frame_decode", run: frame_decode },
    Target { name: "image_archive", run: image_archive },
    Target { name: "image_configuration", run: image_configuration },
    Target { name: "image_manifest", run: image_manifest },
    Target { name: "image_metadata", run: image_metadata },
    Target { name: "image_reference", run: image_reference },
    Target { name: "layer_archive", run: layer_archive },
    Target { name: "layer_changes", run: layer_changes },
    Target { name: "net_device", run: net_device },
    Target { name: "rng_device", run: rng_device },
    Target { name: "serial_console", run: serial_console },
    Target { name: "snapshot_metadata", run: snapshot_metadata },
    Target { name: "state_file", run: state_file },
    Target { name: "tar_unpack", run: tar_unpack },
    Target { name: "virtqueue", run: virtqueue },
    Target { name: "vsock_device", run: vsock_device },
    Target { name: "workspace_changes", run: workspace_changes },
];
