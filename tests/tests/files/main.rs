//! Files of a sandbox: copies, streams, watches, full disks, volumes.

mod disk_changes;
mod full_disk;
mod transfer;
mod volumes;
mod watching;
mod workspace;
