//! Files of a sandbox: copies, streams, watches, and full disks.

mod disk_changes;
mod full_disk;
mod transfer;
mod watching;
mod workspace;
