//! Packs the changes of the disk: the upper directory of the overlay that is the root, as the layer
//! of a container image. It only reads, and only below that directory; no path of the guest is
//! resolved. Processes may change files meanwhile, as with any archive.

use super::archive::{of_wire, pack_trouble};
use super::boot_traces::is_boot_trace;
use super::channel::{Channel, DataWriter};
use super::failure::{Trouble, failure, refused};
use rustix::fs::{Mode, OFlags, openat, syncfs};
use rustix::process::geteuid;
use sandboxvm_archive::{Writer, pack_layer};
use sandboxvm_protocol::agent::files::{FileErrorKind, FileReply};
use std::os::fd::{AsFd, OwnedFd};

pub(super) fn pack(channel: &mut Channel, upper: Option<OwnedFd>) -> Result<FileReply, Trouble> {
    if !geteuid().is_root() {
        // Others cannot read the attributes that the overlay has set.
        let message = "cannot pack the changes of the disk: only root may do that".to_owned();
        return Err(failure(FileErrorKind::PermissionDenied, None, message));
    }
    let Some(upper) = upper else {
        let message = "cannot pack the changes of the disk: the root of this agent is not its overlay".to_owned();
        return Err(failure(FileErrorKind::BadRequest, None, message));
    };
    channel.reply(&FileReply::Begun(None))?;
    let fail = |step| move |errno| refused(step, b"/", errno);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let upper = openat(&upper, ".", flags, Mode::empty()).map_err(fail("open the changes of the disk"))?;
    syncfs(&upper).map_err(fail("write the changes to the disk"))?;
    let mut writer = Writer::new(DataWriter::new(channel));
    let totals = pack_layer(&mut writer, upper.as_fd(), &is_boot_trace).map_err(|error| pack_trouble(error, b"/"))?;
    writer.finish().map_err(|_| Trouble::Gone)?;
    Ok(FileReply::Done(of_wire(totals)))
}
