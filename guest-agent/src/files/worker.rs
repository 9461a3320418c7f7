//! The process that serves one request: its start, what it gives up first, and its end.

use super::channel::Channel;
use super::failure::{Trouble, failure};
use super::operation::{self, Place};
use crate::process::user::User;
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, setrlimit, umask};
use sandboxvm_protocol::agent::files::{FileErrorKind, FileOperation, FileReply, FileRequest};
use sandboxvm_protocol::frame::FrameDecoder;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

/// Descriptor of the connection in the new process. Those below are the agent's console.
const CONNECTION: i32 = 3;

/// Descriptor of the overlay's upper directory in a process that needs it.
const UPPER: i32 = 4;

/// Maximum size of the process's data, which includes that of the agent at the fork. It is far more
/// than a request needs.
const LARGEST_DATA: u64 = 256 << 20;

/// A connection, and its data that are still in the agent.
#[derive(Debug)]
pub(crate) struct Handover<'a> {
    /// The socket.
    pub(crate) socket: BorrowedFd<'a>,
    /// Bytes behind the request.
    pub(crate) decoder: FrameDecoder,
    /// Bytes that have to be sent before anything else.
    pub(crate) unsent: Vec<u8>,
    /// The upper directory of the overlay that is the root. The process gets it only for a request to
    /// pack it.
    pub(crate) upper: Option<BorrowedFd<'a>>,
    /// The process whose mounts the paths are meant in, if not the agent's.
    pub(crate) init: Option<BorrowedFd<'a>>,
}

/// Starts a process that serves `request` and then ends. The caller must have a single thread.
pub(crate) fn start(handover: Handover<'_>, request: FileRequest) -> Result<Pid, Errno> {
    // SAFETY: there is one thread, so the child's copy of memory is whole: no lock is held by a thread it lacks.
    let pid = unsafe { libc::fork() };
    match pid {
        0 => serve(handover, request),
        pid => match Pid::from_raw(pid) {
            Some(pid) if pid.as_raw_pid() > 0 => Ok(pid),
            _ => Err(last_error()),
        },
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::AGAIN)
}

/// Runs the new process until its end.
fn serve(handover: Handover<'_>, request: FileRequest) -> ! {
    let packs = matches!(request.operation, FileOperation::PackChanges | FileOperation::PackWorkspace { .. });
    let upper = if packs { handover.upper } else { None };
    let entered = match handover.init {
        Some(init) if is_about_paths(&request.operation) => enter_mounts(init),
        _ => Ok(()),
    };
    let code = match isolate(handover.socket, upper) {
        Ok((socket, upper)) => {
            answer(Channel::new(socket, handover.decoder, handover.unsent), upper, request, entered);
            0
        }
        // No reply can be sent. The host notices that the connection ends.
        Err(_) => 1,
    };
    // SAFETY: ends the process without running any destructor. Nothing of the agent's is flushed, closed or dropped twice.
    unsafe { libc::_exit(code) }
}

/// Returns true for an operation on paths as programs see them. The others are about the machine's disks,
/// whose devices an init system does not have.
fn is_about_paths(operation: &FileOperation) -> bool {
    !matches!(
        operation,
        FileOperation::PackChanges
            | FileOperation::PackWorkspace { .. }
            | FileOperation::MountWorkspace(_)
            | FileOperation::Mount(_)
            | FileOperation::MountShare(_)
            | FileOperation::ExtractBelowMounts
    )
}

/// Enters the mounts of the init. If it has ended, its mounts are gone, and those of the machine are
/// meant.
fn enter_mounts(init: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: no memory involved.
    match unsafe { libc::setns(init.as_raw_fd(), libc::CLONE_NEWNS) } {
        0 => Ok(()),
        _ => match last_error() {
            Errno::SRCH => Ok(()),
            error => Err(error),
        },
    }
}

/// Closes everything of the agent except the console, the connection and `upper`, and makes the
/// connection blocking.
fn isolate(socket: BorrowedFd<'_>, upper: Option<BorrowedFd<'_>>) -> Result<(OwnedFd, Option<OwnedFd>), Errno> {
    // It may have the number that the connection gets.
    let upper = upper.map(|upper| fcntl_dupfd_cloexec(upper, UPPER + 1)).transpose()?;
    // SAFETY: only descriptors of this process change, and none of the agent's is used again: it never returns there.
    if unsafe { libc::dup2(socket.as_raw_fd(), CONNECTION) } < 0 {
        return Err(last_error());
    }
    let upper = match upper {
        Some(upper) => {
            // SAFETY: as above. The connection has its new number already.
            if unsafe { libc::dup2(upper.into_raw_fd(), UPPER) } < 0 {
                return Err(last_error());
            }
            // SAFETY: open, since it was duplicated there, and no other object owns it.
            Some(unsafe { OwnedFd::from_raw_fd(UPPER) })
        }
        None => None,
    };
    let first_closed = if upper.is_some() { UPPER + 1 } else { CONNECTION + 1 };
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_close_range, first_closed, libc::c_uint::MAX, 0) };
    // SAFETY: open, since it was duplicated there, and no other object owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(CONNECTION) };
    fcntl_setfl(&socket, fcntl_getfl(&socket)? - OFlags::NONBLOCK)?;
    // Requests state the exact modes of files.
    umask(Mode::empty());
    let limit = Rlimit { current: Some(LARGEST_DATA), maximum: getrlimit(Resource::Data).maximum };
    // The limit is only a safeguard, so an error does not matter.
    let _ = setrlimit(Resource::Data, limit);
    let _ = rustix::thread::set_name(c"sandboxvm-files");
    Ok((socket, upper))
}

fn answer(mut channel: Channel, upper: Option<OwnedFd>, request: FileRequest, entered: Result<(), Errno>) {
    let failed =
        |errno| failure(FileErrorKind::Other, None, format!("cannot enter the mounts of the init system: {errno}"));
    let mut relay = None;
    let served = entered
        .map_err(failed)
        .and_then(|()| become_user(&request))
        .and_then(|place| operation::run(&mut channel, &place, upper, request.operation, &mut relay))
        .or_else(|trouble| match trouble {
            Trouble::Failed(failure) => Ok(FileReply::Failed(*failure)),
            Trouble::Gone => Err(()),
        });
    let Ok(last) = served else { return };
    if channel.reply(&last).is_ok() && matches!(last, FileReply::Failed(_)) {
        // The host may still be sending. It must be able to read the failure before the connection
        // is closed.
        channel.drain();
    }
    if let Some(relay) = relay {
        drop(channel);
        relay.run();
    }
}

/// Changes to the user of the request. Returns the directory at which its paths begin.
fn become_user(request: &FileRequest) -> Result<Place, Trouble> {
    let Some(wanted) = &request.user else { return Ok(Place::new(User::root().home)) };
    let user =
        User::find(wanted.as_bytes()).map_err(|error| failure(FileErrorKind::NoSuchUser, None, error.to_string()))?;
    if let Some(ids) = &user.ids {
        change_to(ids.uid, ids.gid, &ids.groups).map_err(|errno| {
            failure(FileErrorKind::PermissionDenied, None, format!("cannot become the user: {errno}"))
        })?;
    }
    Ok(Place::new(user.home))
}

/// Changes user and groups by raw system calls, for the reasons that [`crate::process`] states.
fn change_to(uid: u32, gid: u32, groups: &[u32]) -> Result<(), Errno> {
    // SAFETY: length and pointer are of one slice of 32-bit IDs, which the call only reads.
    let set_groups = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    // SAFETY: no memory involved.
    let set_gid = if set_groups == 0 { unsafe { libc::syscall(libc::SYS_setgid, gid) } } else { -1 };
    // SAFETY: no memory involved.
    let set_uid = if set_gid == 0 { unsafe { libc::syscall(libc::SYS_setuid, uid) } } else { -1 };
    if set_uid == 0 { Ok(()) } else { Err(last_error()) }
}
