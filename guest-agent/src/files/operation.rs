//! Selects the function of a request, and resolves where its paths begin.

use super::channel::Channel;
use super::disk_changes::below_mounts;
use super::disk_changes::pack::{self, Overlay};
use super::failure::Trouble;
use super::mounting::{mounted, share, table, workspace};
use super::watch::Watched;
use super::{archive, change, content, details, inspect, watch};
use crate::share::Relay;
use sandboxvm_protocol::agent::files::{FileOperation, FilePath, FileReply, FileTotals};
use std::os::fd::OwnedFd;

/// The directory at which the paths of a request begin.
#[derive(Debug)]
pub(super) struct Place {
    home: Vec<u8>,
}

impl Place {
    pub(super) fn new(home: Vec<u8>) -> Self {
        Self { home }
    }

    /// Returns an absolute path.
    pub(super) fn absolute(&self, path: &FilePath) -> Vec<u8> {
        match path.as_bytes() {
            path if path.starts_with(b"/") => path.to_vec(),
            path => [&self.home, &b"/"[..], path].concat(),
        }
    }
}

/// Executes a request. Returns the last reply. `upper` is the upper directory of the overlay, if the
/// request needs it. `relay` gets what the process has to do after its last reply, if anything.
pub(super) fn run(
    channel: &mut Channel,
    place: &Place,
    upper: Option<OwnedFd>,
    operation: FileOperation,
    relay: &mut Option<Relay>,
) -> Result<FileReply, Trouble> {
    let at = |path: &FilePath| place.absolute(path);
    match operation {
        FileOperation::Stat { path, follow } => inspect::stat(&at(&path), follow),
        FileOperation::Describe { path } => details::describe(&at(&path)),
        FileOperation::List { path, depth } => inspect::list(channel, &at(&path), depth),
        FileOperation::ListDetails { path, depth } => inspect::list_details(channel, &at(&path), depth),
        FileOperation::Read { path } => content::read(channel, &at(&path)),
        FileOperation::Write { path, mode, parents } => content::write(channel, &at(&path), mode, parents),
        FileOperation::WriteWithMetadata { path, mode, parents, metadata } => {
            content::write_with_metadata(channel, &at(&path), mode, parents, &metadata)
        }
        FileOperation::MakeDirectory { path, mode, must_be_new } => {
            change::make_directory(&at(&path), mode, must_be_new)
        }
        FileOperation::Move { from, to } => change::rename(&at(&from), &at(&to)),
        FileOperation::Remove { path, recursive } => change::remove(&at(&path), recursive),
        FileOperation::SetMode { path, mode, recursive } => change::set_mode(&at(&path), mode, recursive),
        FileOperation::SetOwner { path, owner, recursive } => change::set_owner(&at(&path), &owner, recursive),
        FileOperation::Watch { path, recursive } => watch::watch(channel, &at(&path), recursive, Watched::Changes),
        FileOperation::Observe { path, recursive, details, network } => {
            let path = at(&path);
            if !network {
                mounted::refuse_network(&path)?;
            }
            let watched = if details { Watched::Files } else { Watched::Names };
            watch::watch(channel, &path, recursive, watched)
        }
        FileOperation::Archive { path, name, follow } => archive::pack(channel, &at(&path), name.as_bytes(), follow),
        FileOperation::Extract { path, create, keep_owner } => archive::unpack(channel, &at(&path), create, keep_owner),
        FileOperation::PackChanges => pack::pack(channel, upper, Overlay::Root),
        FileOperation::ExtractBelowMounts => {
            below_mounts::enter()?;
            archive::unpack(channel, b"/", false, true)
        }
        FileOperation::PackWorkspace { lowest } => pack::pack(channel, upper, Overlay::Workspace(lowest)),
        FileOperation::MountWorkspace(request) => workspace::mount_workspace(&request),
        FileOperation::Mount(mounts) => table::mount_all(&mounts),
        FileOperation::MountShare(request) => {
            *relay = share::mount_share(&request)?;
            Ok(FileReply::Done(FileTotals::default()))
        }
    }
}
