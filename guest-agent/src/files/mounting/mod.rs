//! Mounts what a sandbox has beside its root. Each request can be repeated: what is mounted already is not
//! touched.
//!
//! ```text
//! table      volumes and file systems in memory        workspace  an overlay of EROFS images
//! share      a live share                              mounted    the list of mounts; network file systems
//! ```

pub(super) mod mounted;
pub(super) mod share;
pub(super) mod table;
pub(super) mod workspace;
