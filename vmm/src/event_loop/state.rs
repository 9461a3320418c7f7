//! The event loop as data, and its connections. The modules beside this one add what it does.

use super::{halt_watch::HaltWatch, source::Source, work::Work};
use crate::{
    channel::{control::ControlConnection, spare_descriptor::SpareDescriptor},
    devices::{set::DeviceSet, virtio::block::MergedLayers},
    machine::{Machine, context::MachineContext},
    snapshot::{tracking::WriteTracking, writer::Baseline},
    status::StatusFile,
};
use rustix::{
    event::epoll::{self, EventFlags},
    io::Errno,
};
use sandboxvm_protocol::vmm::{ControlReply, ExitReason, JailPart, Phase};
use std::{
    collections::HashMap,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, OwnedFd},
        unix::net::UnixListener,
    },
    time::Instant,
};

/// Why the event loop cannot continue.
#[derive(Debug, thiserror::Error)]
pub enum EventLoopError {
    /// epoll.
    #[error("event loop: {0}")]
    Epoll(#[from] Errno),
    /// A descriptor's settings.
    #[error("event loop: {0}")]
    Io(#[from] io::Error),
}

/// The launch channel's place among the connections.
pub(super) const LAUNCHER: u32 = 0;

/// A machine with its files, ready for its event loop.
#[derive(Debug)]
pub struct MachineSetup {
    /// The machine.
    pub machine: Machine,
    /// The host's side of its devices.
    pub devices: DeviceSet,
    /// Control socket.
    pub control: UnixListener,
    /// The snapshot the machine began from.
    pub origin: Option<Baseline>,
    /// The snapshot that the next one is compared with.
    pub baseline: Baseline,
    /// Whether the machine ends with its launch channel.
    pub tie_to_launcher: bool,
}

impl MachineSetup {
    /// Returns what the machine keeps, and what its forks continue with.
    pub(super) fn context(&self) -> &MachineContext {
        self.machine.context()
    }
}

/// Where the machine's phase and end are reported.
#[derive(Debug)]
pub struct Reporter {
    /// The launch channel.
    pub launcher: ControlConnection,
    /// Status file.
    pub status: StatusFile,
    /// Parts of the confinement that this host does not give.
    pub missing: Vec<JailPart>,
}

/// The event loop of one machine. Its methods are where its work is: see the module.
#[derive(Debug)]
pub struct EventLoop {
    pub(super) epoll: OwnedFd,
    pub(super) setup: MachineSetup,
    pub(super) reporter: Reporter,
    pub(super) connections: HashMap<u32, ControlConnection>,
    pub(super) next_connection: u32,
    /// To turn control connections away with.
    pub(super) spare: SpareDescriptor,
    pub(super) told: Option<Phase>,
    /// What is being written beside the machine, and the connection that asked for it.
    pub(super) writing: Option<(Work, u32)>,
    /// Layers that were merged and are not used yet, and the connection that may have them used.
    pub(super) merged: Option<(MergedLayers, u32)>,
    /// What was written since the snapshot in `setup.baseline`; unknown where there is none.
    pub(super) tracking: Option<WriteTracking>,
    pub(super) halt_watch: HaltWatch,
    /// Descriptors of devices that became readable while the machine was paused.
    pub(super) unwatched: Vec<Source>,
}

impl EventLoop {
    /// Returns the connection `id`; the launch channel is one of them.
    pub(super) fn connection(&mut self, id: u32) -> Option<&mut ControlConnection> {
        if id == LAUNCHER { Some(&mut self.reporter.launcher) } else { self.connections.get_mut(&id) }
    }

    pub(super) fn reply(&mut self, id: u32, reply: ControlReply) {
        if self.connection(id).is_some_and(|connection| connection.reply(reply).is_err()) {
            self.hang_up(id);
        }
    }

    /// Closes a connection that is over.
    pub(super) fn hang_up(&mut self, id: u32) {
        self.give_up_merge(id);
        // No other connection may use the files.
        self.merged.take_if(|(_, by)| *by == id);
        if id != LAUNCHER {
            // Dropping the connection closes it, which takes it out of the epoll set.
            self.connections.remove(&id);
        } else if self.setup.tie_to_launcher {
            self.setup.machine.shared().end(ExitReason::LauncherGone);
        } else {
            // Otherwise epoll would report the end of the stream again and again.
            let _ = epoll::delete(&self.epoll, self.reporter.launcher.fd());
        }
    }

    pub(super) fn await_writable(&mut self, id: u32) {
        let Some(connection) = self.connection(id) else { return };
        let mut interest = EventFlags::IN;
        if connection.has_unsent() {
            interest |= EventFlags::OUT;
        }
        let fd = connection.fd().as_raw_fd();
        // SAFETY: the descriptor belongs to the connection, which is not dropped before this returns.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        if epoll::modify(&self.epoll, fd, Source::Connection(id).data(), interest).is_err() {
            self.hang_up(id);
        }
    }
}

pub(super) fn nanoseconds_since(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
