//! Fuzz targets: one function for each place at which untrusted bytes arrive. Each accepts any
//! bytes, and panics if the code under test violates a rule that must hold for all of them.
//!
//! The programs in `fuzz/` pass these functions to libFuzzer, which needs a nightly compiler and
//! runs without end. `tests/replay.rs` runs them for seconds, with any compiler, on the corpora in
//! `fuzz/corpus` and on some thousand mutations of them. This crate owns no format and no device:
//! it calls everything as its real callers do.

#![allow(clippy::missing_panics_doc, reason = "a panic is how a target says that it found something")]

mod devices;
mod frame_decode;
mod images;
mod input;
mod network;
mod share_requests;
mod snapshots;
mod tar_unpack;
mod workspace_changes;

pub use devices::{balloon_device, block_device, net_device, rng_device, serial_console, virtqueue, vsock_device};
pub use frame_decode::frame_decode;
pub use images::{
    dockerfile, image_archive, image_configuration, image_manifest, image_metadata, image_reference, layer_archive,
    layer_changes,
};
pub use network::{connection_opening, dns_answer, dns_query, egress_frames};
pub use share_requests::share_requests;
pub use snapshots::{disk_layers, snapshot_metadata, state_file, state_file_example};
pub use tar_unpack::tar_unpack;
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
    Target { name: "share_requests", run: share_requests },
    Target { name: "snapshot_metadata", run: snapshot_metadata },
    Target { name: "state_file", run: state_file },
    Target { name: "tar_unpack", run: tar_unpack },
    Target { name: "virtqueue", run: virtqueue },
    Target { name: "vsock_device", run: vsock_device },
    Target { name: "workspace_changes", run: workspace_changes },
];
