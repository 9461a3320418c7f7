//! What a sandbox's disk, or its workspace, has and the image or the slots below it lack: as a layer of
//! a container image, and back onto a disk.
//!
//! ```text
//! pack          the changes as a layer       boot_traces  what the agent itself changed, which is left out
//! below_mounts  the disk without mounts, for a layer that is unpacked onto it
//! ```

pub(super) mod below_mounts;
mod boot_traces;
pub(super) mod pack;
