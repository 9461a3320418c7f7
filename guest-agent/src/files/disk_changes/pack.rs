//! Packs the changes of an overlay: the upper directory of the root, or of a workspace, as the layer
//! of a container image. It only reads, and only below that directory; no path of the guest is
//! resolved. Processes may change files meanwhile, as with any archive.

use super::boot_traces::is_boot_trace;
use crate::files::archive::{of_wire, pack_trouble};
use crate::files::channel::{Channel, DataWriter};
use crate::files::failure::{Trouble, failure, refused};
use crate::files::mounting::workspace::upper_beside_root;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat, openat2, syncfs};
use rustix::process::geteuid;
use sandboxvm_archive::{Candidate, Writer, pack_layer};
use sandboxvm_protocol::agent::files::{FileErrorKind, FileReply};
use sandboxvm_protocol::machine::SlotNumber;
use std::os::fd::{AsFd, OwnedFd};

/// Whose changes.
#[derive(Debug, Clone, Copy)]
pub(in crate::files) enum Overlay {
    /// Of the root.
    Root,
    /// Of the workspace with this lowest slot.
    Workspace(SlotNumber),
}

pub(in crate::files) fn pack(
    channel: &mut Channel,
    upper: Option<OwnedFd>,
    overlay: Overlay,
) -> Result<FileReply, Trouble> {
    if !geteuid().is_root() {
        // Others cannot read the attributes that the overlay has set.
        let message = "cannot pack the changes of the disk: only root may do that".to_owned();
        return Err(failure(FileErrorKind::PermissionDenied, None, message));
    }
    let Some(upper) = upper else {
        let message = "cannot pack the changes of the disk: the root of this agent is not its overlay".to_owned();
        return Err(failure(FileErrorKind::BadRequest, None, message));
    };
    let fail = |step| move |errno| refused(step, b"/", errno);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let upper = match overlay {
        Overlay::Root => openat(&upper, ".", flags, Mode::empty()).map_err(fail("open the changes of the disk"))?,
        Overlay::Workspace(lowest) => {
            // Only the agent writes there, but root of the guest can mount the disk too.
            let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
            openat2(&upper, upper_beside_root(lowest), flags, Mode::empty(), resolve)
                .map_err(fail("open the changes of the workspace"))?
        }
    };
    channel.reply(&FileReply::Begun(None))?;
    syncfs(&upper).map_err(fail("write the changes to the disk"))?;
    let is_left_out = |file: Candidate<'_>| match overlay {
        Overlay::Root => is_boot_trace(file),
        Overlay::Workspace(_) => Ok(false),
    };
    let mut writer = Writer::new(DataWriter::new(channel));
    let totals = pack_layer(&mut writer, upper.as_fd(), &is_left_out).map_err(|error| pack_trouble(error, b"/"))?;
    writer.finish().map_err(|_| Trouble::Gone)?;
    Ok(FileReply::Done(of_wire(totals)))
}
