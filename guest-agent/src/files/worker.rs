//! The process that serves one request: its start, what it gives up first, and its end.

use super::channel::Channel;
use super::failure::{Trouble, failure};
use super::operation::{self, Place};
use crate::process::user::User;
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, setrlimit, umask};
use sandboxvm_protocol::agent::files::{FileErrorKind, FileReply, FileRequest};
use sandboxvm_protocol::frame::FrameDecoder;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Descriptor of the connection in the new process. Those below are the agent's console.
const CONNECTION: i32 = 3;

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
    let code = match isolate(&handover) {
        Ok(socket) => {
            answer(Channel::new(socket, handover.decoder, handover.unsent), request);
            0
        }
        // No reply can be sent. The host notices that the connection ends.
        Err(_) => 1,
    };
    // SAFETY: ends the process without running any destructor. Nothing of the agent's is flushed, closed or dropped twice.
    unsafe { libc::_exit(code) }
}

/// Closes everything of the agent except the console and the connection, and makes the connection
/// blocking.
fn isolate(handover: &Handover<'_>) -> Result<OwnedFd, Errno> {
    // SAFETY: only descriptors of this process change, and none of the agent's is used again: it never returns there.
    if unsafe { libc::dup2(handover.socket.as_raw_fd(), CONNECTION) } < 0 {
        return Err(last_error());
    }
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_close_range, CONNECTION + 1, libc::c_uint::MAX, 0) };
    // SAFETY: open, since it was duplicated there, and no other object owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(CONNECTION) };
    fcntl_setfl(&socket, fcntl_getfl(&socket)? - OFlags::NONBLOCK)?;
    // Requests state the exact modes of files.
    umask(Mode::empty());
    let limit = Rlimit { current: Some(LARGEST_DATA), maximum: getrlimit(Resource::Data).maximum };
    // The limit is only a safeguard, so an error does not matter.
    let _ = setrlimit(Resource::Data, limit);
    let _ = rustix::thread::set_name(c"sandboxvm-files");
    Ok(socket)
}

fn answer(mut channel: Channel, request: FileRequest) {
    let served = become_user(&request)
        .and_then(|place| operation::run(&mut channel, &place, request.operation))
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
