//! Files of a sandbox: copies, streams, watches, full disks, volumes, live shares.

mod disk_changes;
mod full_disk;
mod shares;
mod transfer;
mod volumes;
mod watching;
mod workspace;
