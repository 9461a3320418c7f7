//! The one event loop of the VMM: queue notifications, device descriptors, control connections, the machine's end.
//! Runs on the main thread; everything it calls is non-blocking and bounded, so that no device, guest or peer can
//! starve another. Called by `main`, returns when the machine is over.

mod forking;
mod halted;
mod serving;
mod writing;

use crate::{
    control::ControlConnection,
    descriptors::ReceivedFds,
    devices::{board::lock, virtio::vsock::VsockOptions},
    disks::{Disks, MergedLayers},
    fork::ForkedChild,
    log,
    machine::Machine,
    memory,
    snapshot::{format, released::ReleasedPages, tracking::WriteTracking, writer::Baseline},
    spare_descriptor::SpareDescriptor,
    status::StatusFile,
};
use forking::Forked;
use halted::HaltWatch;
use rustix::{
    event::epoll::{self, EventData, EventFlags},
    io::Errno,
};
use sandboxvm_protocol::vmm::{
    ControlReply, ControlRequest, ExitReason, JailPart, Phase, ResetReport, ResetRequest, VmStatus, VmmEvent,
};
use std::{
    collections::HashMap,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    sync::Arc,
    time::Instant,
};
use writing::Work;

/// Control connections beyond this are closed at once.
const MAX_CONNECTIONS: usize = 64;
/// Events taken from the kernel at a time.
const BATCH: usize = 32;

/// Why the loop cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum EventLoopError {
    /// epoll.
    #[error("event loop: {0}")]
    Epoll(#[from] Errno),
    /// A descriptor's settings.
    #[error("event loop: {0}")]
    Io(#[from] io::Error),
}

/// What a descriptor in the epoll set belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    News,
    Listener,
    Connection(u32),
    Queue { device: u16, queue: u16 },
    Device(u16),
    Writer,
}

impl Source {
    fn data(self) -> EventData {
        EventData::new_u64(match self {
            Self::News => 0,
            Self::Listener => 1 << 32,
            Self::Connection(id) => 2 << 32 | u64::from(id),
            Self::Queue { device, queue } => 3 << 32 | u64::from(device) << 16 | u64::from(queue),
            Self::Device(device) => 4 << 32 | u64::from(device),
            Self::Writer => 5 << 32,
        })
    }

    fn from_data(data: EventData) -> Option<Self> {
        let [b0, b1, b2, b3, kind, ..] = data.u64().to_le_bytes();
        let low = u16::from_le_bytes([b0, b1]);
        let high = u16::from_le_bytes([b2, b3]);
        Some(match kind {
            0 => Self::News,
            1 => Self::Listener,
            2 => Self::Connection(u32::from(high) << 16 | u32::from(low)),
            3 => Self::Queue { device: high, queue: low },
            4 => Self::Device(low),
            5 => Self::Writer,
            _ => return None,
        })
    }
}

/// The launch channel's place among the connections.
const LAUNCHER: u32 = 0;

/// What a loop is made of.
#[derive(Debug)]
pub struct Parts {
    /// The machine.
    pub machine: Machine,
    /// The launch channel.
    pub launcher: ControlConnection,
    /// Control socket.
    pub listener: UnixListener,
    /// Status file.
    pub status: StatusFile,
    /// Parts of the confinement that this host does not give.
    pub missing: Vec<JailPart>,
    /// Disks.
    pub disks: Disks,
    /// The snapshot the machine began from.
    pub origin: Option<Baseline>,
    /// The snapshot that the next one is compared with.
    pub baseline: Baseline,
    /// What the guest gave back since that snapshot.
    pub released: Arc<ReleasedPages>,
    /// Its vsock device's.
    pub vsock: VsockOptions,
    /// Bytes of console log kept.
    pub console_limit: u64,
    /// End with the launcher.
    pub tie_to_launcher: bool,
}

/// How a loop ended.
#[derive(Debug)]
pub enum Outcome {
    /// The machine is over.
    Ended(ExitReason),
    /// This is a new process: a copy of the machine, still to be built.
    Forked(Box<ForkedChild>),
}

/// See the module.
#[derive(Debug)]
pub struct EventLoop {
    epoll: OwnedFd,
    parts: Parts,
    connections: HashMap<u32, ControlConnection>,
    next_connection: u32,
    /// To turn control connections away with.
    spare: SpareDescriptor,
    told: Option<Phase>,
    /// What is being written beside the machine, and the connection that asked for it.
    writing: Option<(Work, u32)>,
    /// Layers that were merged and are not used yet, and the connection that may have them used.
    merged: Option<(MergedLayers, u32)>,
    /// What was written since the snapshot in `parts.baseline`; unknown where there is none.
    tracking: Option<WriteTracking>,
    halt_watch: HaltWatch,
    /// Descriptors of devices that became readable while the machine was paused.
    unwatched: Vec<Source>,
}

/// Sent to whoever asks for something that a writer at work forbids.
const BEING_WRITTEN: &str = "a snapshot of this sandbox is being written, or its disk layers are being merged; \
                             try again when that is done";

impl EventLoop {
    /// A loop for these parts.
    ///
    /// # Errors
    /// When the epoll set cannot be made.
    pub fn new(parts: Parts) -> Result<Self, EventLoopError> {
        parts.listener.set_nonblocking(true)?;
        // Children (snapshot writers, forks) are reaped by the kernel.
        // SAFETY: SIG_IGN is a valid disposition, and no code of this process waits for children.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let add = |fd: BorrowedFd<'_>, source: Source| epoll::add(&epoll, fd, source.data(), EventFlags::IN);
        let machine = &parts.machine;
        add(machine.shared().news().as_fd_of_eventfd(), Source::News)?;
        add(parts.listener.as_fd(), Source::Listener)?;
        add(parts.launcher.fd(), Source::Connection(LAUNCHER))?;
        for (device, queues) in (0u16..).zip(machine.queue_events()) {
            for (queue, event) in (0u16..).zip(queues) {
                add(event.as_fd_of_eventfd(), Source::Queue { device, queue })?;
            }
        }
        for (device, transport) in (0u16..).zip(machine.board().virtio()) {
            if let Some(fd) = lock(transport).host_fd() {
                add(fd, Source::Device(device))?;
            }
        }
        machine.shared().mark_built();
        Ok(Self {
            epoll,
            parts,
            connections: HashMap::new(),
            next_connection: LAUNCHER + 1,
            spare: SpareDescriptor::take(),
            told: None,
            writing: None,
            merged: None,
            tracking: None,
            halt_watch: HaltWatch::default(),
            unwatched: Vec::new(),
        })
    }

    /// Lets the machine run.
    pub fn start(&self) {
        self.parts.machine.resume();
    }

    /// Serves until the machine is over; all vCPUs have left the guest by then. Returns early in a forked child.
    pub fn run(mut self) -> Outcome {
        let reason = loop {
            self.tell_phase();
            if let Some(reason) = self.parts.machine.shared().reason() {
                break reason;
            }
            match self.turn() {
                Ok(None) => {}
                Ok(Some(child)) => {
                    // Nothing of the parent's may be dropped here: its descriptors are closed, its threads do not exist.
                    std::mem::forget(self);
                    return Outcome::Forked(child);
                }
                Err(error) => self.parts.machine.shared().end(ExitReason::HostFailure { message: error.to_string() }),
            }
        };
        self.parts.machine.end();
        self.write_status(Phase::Ended);
        self.broadcast(&VmmEvent::Ended(reason.clone()));
        Outcome::Ended(reason)
    }

    /// Waits for something and serves it. A child that this made is returned in the child's process.
    fn turn(&mut self) -> Result<Option<Box<ForkedChild>>, EventLoopError> {
        let mut events = Vec::with_capacity(BATCH);
        let patience = self.patience().map(halted::timespec);
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), patience.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        self.look_for_halt();
        for event in events {
            match Source::from_data(event.data) {
                Some(Source::News) => {
                    self.parts.machine.shared().drain_news();
                    self.parts.machine.examine_interruption();
                    #[cfg(feature = "escape-drills")]
                    crate::drills::do_what_is_due();
                }
                Some(Source::Listener) => self.accept()?,
                Some(Source::Connection(id)) => {
                    if let Some(child) = self.serve(id) {
                        return Ok(Some(child));
                    }
                }
                Some(source @ (Source::Queue { .. } | Source::Device(_))) => self.serve_device(source)?,
                Some(Source::Writer) => self.advance_writing(),
                None => {}
            }
        }
        Ok(None)
    }

    fn accept(&mut self) -> Result<(), EventLoopError> {
        // A peer that gave up, or that there is no descriptor for, does not end the machine.
        let Some(stream) = self.spare.accept(&self.parts.listener) else { return Ok(()) };
        if self.connections.len() >= MAX_CONNECTIONS {
            return Ok(());
        }
        self.add_connection(stream)
    }

    fn add_connection(&mut self, stream: UnixStream) -> Result<(), EventLoopError> {
        let connection = ControlConnection::new(stream, false)?;
        let id = self.next_connection;
        // 2^32 connections later an ID could only meet one that is still open after all of them.
        self.next_connection = self.next_connection.checked_add(1).unwrap_or(LAUNCHER + 1);
        epoll::add(&self.epoll, connection.fd(), Source::Connection(id).data(), EventFlags::IN)?;
        self.connections.insert(id, connection);
        Ok(())
    }

    /// The connection `id`; the launch channel is one of them.
    fn connection(&mut self, id: u32) -> Option<&mut ControlConnection> {
        if id == LAUNCHER { Some(&mut self.parts.launcher) } else { self.connections.get_mut(&id) }
    }

    fn serve(&mut self, id: u32) -> Option<Box<ForkedChild>> {
        let received = match self.connection(id) {
            Some(connection) => connection.flush().and_then(|()| connection.receive()),
            None => return None,
        };
        match received {
            Ok(requests) => {
                for (request, fds) in requests {
                    if let ControlRequest::Fork(request) = request {
                        match self.fork(&request, fds) {
                            Forked::Child(child) => return Some(child),
                            Forked::Parent(reply) => self.reply(id, reply),
                        }
                    } else if let Some(reply) = self.carry_out(id, &request, fds) {
                        // Whoever has the answer finds the status file saying the same.
                        self.tell_phase();
                        self.reply(id, reply);
                    }
                }
                self.await_writable(id);
            }
            Err(_) => self.hang_up(id),
        }
        None
    }

    fn reply(&mut self, id: u32, reply: ControlReply) {
        if self.connection(id).is_some_and(|connection| connection.reply(reply).is_err()) {
            self.hang_up(id);
        }
    }

    /// The connection is over.
    fn hang_up(&mut self, id: u32) {
        self.give_up_merge(id);
        // Nobody else knows of the files.
        self.merged.take_if(|(_, by)| *by == id);
        if id != LAUNCHER {
            // Dropping the connection closes it, which takes it out of the epoll set.
            self.connections.remove(&id);
        } else if self.parts.tie_to_launcher {
            self.parts.machine.shared().end(ExitReason::LauncherGone);
        } else {
            // Whatever fails here, an end of stream would be reported for ever.
            let _ = epoll::delete(&self.epoll, self.parts.launcher.fd());
        }
    }

    fn await_writable(&mut self, id: u32) {
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

    /// `None` when the answer comes later.
    fn carry_out(&mut self, id: u32, request: &ControlRequest, fds: ReceivedFds) -> Option<ControlReply> {
        let shared = Arc::clone(self.parts.machine.shared());
        match request {
            ControlRequest::Start | ControlRequest::Resume => {
                if let Err(error) = self.resume() {
                    shared.end(ExitReason::HostFailure { message: error.to_string() });
                    return Some(failed(error));
                }
            }
            ControlRequest::Pause if shared.phase() == Phase::Created => {
                return Some(failed("the machine was not started yet; start it first"));
            }
            ControlRequest::Pause => self.parts.machine.pause(),
            ControlRequest::Stop => shared.end(ExitReason::Stopped),
            ControlRequest::Stats => return Some(ControlReply::Stats(Box::new(shared.stats()))),
            ControlRequest::Timeline => return Some(ControlReply::Timeline(shared.timeline())),
            ControlRequest::LimitOutput(rate) => self.parts.vsock.output_limit.set(*rate),
            ControlRequest::LimitDisk(limits) => self.parts.disks.pace().limit(*limits),
            ControlRequest::Untie => self.parts.tie_to_launcher = false,
            ControlRequest::Watch => {
                let phase = shared.phase();
                self.reply(id, ControlReply::Done);
                if let Some(connection) = self.connection(id) {
                    connection.watch();
                    // A connection that failed is noticed at its next event.
                    let _ = connection.event(&VmmEvent::Phase(phase));
                }
                return None;
            }
            ControlRequest::Snapshot(request) => return self.snapshot(id, request, fds).err().map(failed),
            ControlRequest::Reset(request) => {
                return Some(self.reset(request, fds).map_or_else(failed, ControlReply::Reset));
            }
            ControlRequest::MergeLayers(request) => return self.merge_layers(id, request, fds).err().map(failed),
            ControlRequest::UseMerged => {
                if let Err(message) = self.use_merged(id) {
                    return Some(failed(message));
                }
            }
            // Taken out by `serve`.
            ControlRequest::Fork(_) => return None,
        }
        self.tell_phase();
        Some(ControlReply::Done)
    }

    fn reset(&mut self, request: &ResetRequest, mut fds: ReceivedFds) -> Result<ResetReport, String> {
        if self.writing.is_some() {
            return Err(BEING_WRITTEN.into());
        }
        let parts = &mut self.parts;
        let origin = parts.origin.as_ref().ok_or("this machine did not begin from a snapshot")?;
        let state_file = File::from(fds.take(request.state, "the state file").map_err(|error| error.to_string())?);
        let saved = format::read(&state_file).map_err(|error| error.to_string())?;
        if saved.memory != origin.map {
            return Err("this is not the snapshot that the machine began from".into());
        }
        parts.machine.check(&saved.machine).map_err(|error| error.to_string())?;
        // All that can fail for want of room is done while the machine is still what it was.
        let disks = parts.disks.prepare_switch(&request.disks, &mut fds).map_err(|error| error.to_string())?;
        self.tracking = None;
        // It runs afterwards, whether it did before or not: a reset machine begins anew.
        let stopping = Instant::now();
        parts.machine.pause();
        let result = (|| {
            memory::forget_writes(parts.machine.memory()).map_err(|error| error.to_string())?;
            parts.disks.switch(disks);
            parts.machine.reset_to(&saved.machine).map_err(|error| error.to_string())
        })();
        match result {
            Ok(()) => {
                parts.baseline = origin.clone();
                // All of memory is as the origin has it.
                let _ = parts.released.take();
                self.resume().map_err(|error| {
                    let message = error.to_string();
                    self.parts.machine.shared().end(ExitReason::HostFailure { message: message.clone() });
                    message
                })?;
                Ok(ResetReport { pause_ns: nanoseconds_since(stopping) })
            }
            Err(message) => {
                // Half of the machine is of another time than the rest.
                parts.machine.shared().end(ExitReason::HostFailure { message: format!("reset failed: {message}") });
                Err(message)
            }
        }
    }

    /// Writes the status file and tells watchers when the phase is a new one. The end is told by [`EventLoop::run`].
    fn tell_phase(&mut self) {
        let phase = self.parts.machine.shared().phase();
        if phase == Phase::Ended || self.told == Some(phase) {
            return;
        }
        self.told = Some(phase);
        self.write_status(phase);
        self.broadcast(&VmmEvent::Phase(phase));
    }

    fn write_status(&self, phase: Phase) {
        let shared = self.parts.machine.shared();
        let status = VmStatus {
            pid: std::process::id(),
            phase,
            host_mode: shared.host_mode,
            reason: shared.reason(),
            missing: self.parts.missing.clone(),
            // Before the agent listens, the kernel may not have come so far.
            clocks_jump: !matches!(phase, Phase::Created | Phase::Booting)
                && !self.parts.machine.leaves_out_standstill(),
        };
        if let Err(error) = self.parts.status.write(&status) {
            log::line(format_args!("cannot write the status file: {error}"));
        }
    }

    fn broadcast(&mut self, event: &VmmEvent) {
        // A launcher that is gone is noticed as such when its channel is served.
        let _ = self.parts.launcher.event(event);
        self.connections.retain(|_, connection| connection.event(event).is_ok());
    }
}

fn failed(message: impl ToString) -> ControlReply {
    ControlReply::Failed { message: message.to_string() }
}

fn nanoseconds_since(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// vmm-sys-util's EventFd does not implement AsFd.
trait AsFdOfEventFd {
    fn as_fd_of_eventfd(&self) -> BorrowedFd<'_>;
}

impl AsFdOfEventFd for vmm_sys_util::eventfd::EventFd {
    fn as_fd_of_eventfd(&self) -> BorrowedFd<'_> {
        // SAFETY: the EventFd owns an open descriptor for at least as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(self)) }
    }
}
