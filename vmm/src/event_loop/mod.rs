//! The one event loop of the VMM: queue notifications, device descriptors, control connections, the machine's end.
//! Runs on the main thread; everything it calls is non-blocking and bounded, so that no device, guest or peer can
//! starve another. [`EventLoop::run`] returns when the machine is over.
//!
//! ```text
//! state      the loop as data, and its connections
//! source     what a descriptor belongs to
//! serving    devices, and letting a paused machine run again
//! writing    requests answered once a process forked off the VMM has written files (work: what it writes)
//! forking    live fork
//! resetting  reset in place
//! refusal    why a request was not carried out, with its kind
//! halted     a guest that can never run again (halt_watch: when to look)
//! ```

mod forking;
mod halt_watch;
mod halted;
mod refusal;
mod resetting;
mod serving;
mod source;
mod state;
mod work;
mod writing;

pub use state::{EventLoop, EventLoopError, MachineSetup, Reporter};

use crate::{
    channel::{control::ControlConnection, descriptors::ReceivedFds, spare_descriptor::SpareDescriptor},
    devices::{board::lock, kind::Limit},
    fork::ForkedChild,
    log,
    machine::drill_hooks,
};
use forking::Forked;
use halt_watch::HaltWatch;
use refusal::RequestError;
use rustix::{
    event::epoll::{self, EventFlags},
    io::Errno,
};
use sandboxvm_protocol::vmm::{ControlReply, ControlRequest, ExitReason, Phase, VmStatus, VmmEvent, WIRE};
use source::{AsFdOfEventFd, Source};
use state::LAUNCHER;
use std::{
    collections::HashMap,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
};

/// Maximum number of control connections; one more is closed as soon as it is accepted.
const MAX_CONNECTIONS: usize = 64;
/// Events taken from the kernel at a time.
const BATCH: usize = 32;

/// How a loop ended.
#[derive(Debug)]
pub enum Outcome {
    /// The machine is over.
    Ended(ExitReason),
    /// This is a new process: a copy of the machine, still to be built.
    Forked(Box<ForkedChild>),
}

impl EventLoop {
    /// Returns a loop for this machine.
    ///
    /// # Errors
    /// When the epoll set cannot be made.
    pub fn new(setup: MachineSetup, reporter: Reporter) -> Result<Self, EventLoopError> {
        setup.control.set_nonblocking(true)?;
        // Children (snapshot writers, forks) are reaped by the kernel.
        // SAFETY: SIG_IGN is a valid disposition, and no code of this process waits for children.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let add = |fd: BorrowedFd<'_>, source: Source| epoll::add(&epoll, fd, source.data(), EventFlags::IN);
        let machine = &setup.machine;
        add(machine.shared().news().as_fd_of_eventfd(), Source::News)?;
        add(setup.control.as_fd(), Source::Listener)?;
        add(reporter.launcher.fd(), Source::Connection(LAUNCHER))?;
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
            setup,
            reporter,
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
        self.setup.machine.resume();
    }

    /// Serves until the machine is over; all vCPUs have left the guest by then. Returns early in a forked child.
    pub fn run(mut self) -> Outcome {
        let reason = loop {
            self.tell_phase();
            if let Some(reason) = self.setup.machine.shared().reason() {
                break reason;
            }
            match self.turn() {
                Ok(None) => {}
                Ok(Some(child)) => {
                    // Nothing of the parent's may be dropped here: its descriptors are closed, its threads do not exist.
                    std::mem::forget(self);
                    return Outcome::Forked(child);
                }
                Err(error) => self.setup.machine.shared().end(ExitReason::HostFailure { message: error.to_string() }),
            }
        };
        self.setup.machine.end();
        self.write_status(Phase::Ended);
        self.broadcast(&VmmEvent::Ended(reason.clone()));
        Outcome::Ended(reason)
    }

    /// Waits for something and serves it. A child that this made is returned in the child's process.
    fn turn(&mut self) -> Result<Option<Box<ForkedChild>>, EventLoopError> {
        let mut events = Vec::with_capacity(BATCH);
        let patience = self.patience().map(halt_watch::timespec);
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), patience.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        self.look_for_halt();
        for event in events {
            match Source::from_data(event.data) {
                Some(Source::News) => {
                    self.setup.machine.shared().drain_news();
                    self.setup.machine.examine_interruption();
                    drill_hooks::do_what_is_due();
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
        let Some(stream) = self.spare.accept(&self.setup.control) else { return Ok(()) };
        if self.connections.len() >= MAX_CONNECTIONS {
            return Ok(());
        }
        self.add_connection(stream)
    }

    fn add_connection(&mut self, stream: UnixStream) -> Result<(), EventLoopError> {
        let connection = ControlConnection::new(stream, false, WIRE.oldest)?;
        let id = self.next_connection;
        // 2^32 connections later an ID could only meet one that is still open after all of them.
        self.next_connection = self.next_connection.checked_add(1).unwrap_or(LAUNCHER + 1);
        epoll::add(&self.epoll, connection.fd(), Source::Connection(id).data(), EventFlags::IN)?;
        self.connections.insert(id, connection);
        Ok(())
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
                        // A client that has the answer must find the same phase in the status file.
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

    /// `None` when the answer comes later.
    fn carry_out(&mut self, id: u32, request: &ControlRequest, fds: ReceivedFds) -> Option<ControlReply> {
        let shared = Arc::clone(self.setup.machine.shared());
        match request {
            ControlRequest::Start | ControlRequest::Resume => {
                if let Err(error) = self.resume() {
                    shared.end(ExitReason::HostFailure { message: error.to_string() });
                    return Some(RequestError::from(error).into());
                }
            }
            ControlRequest::Pause if shared.phase() == Phase::Created => {
                return Some(RequestError::NotStarted.into());
            }
            ControlRequest::Pause => self.setup.machine.pause(),
            ControlRequest::Stop => shared.end(ExitReason::Stopped),
            ControlRequest::Stats => return Some(ControlReply::Stats(Box::new(shared.stats()))),
            ControlRequest::Timeline => return Some(ControlReply::Timeline(shared.timeline())),
            ControlRequest::LimitOutput(rate) => self.setup.devices.limit(Limit::Output(*rate)),
            ControlRequest::LimitDisk(limits) => self.setup.devices.limit(Limit::Disk(*limits)),
            ControlRequest::Untie => self.setup.tie_to_launcher = false,
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
            ControlRequest::Snapshot(request) => return self.snapshot(id, request, fds).err().map(Into::into),
            ControlRequest::Reset(request) => {
                return Some(self.reset(request, fds).map_or_else(Into::into, ControlReply::Reset));
            }
            ControlRequest::MergeLayers(request) => return self.merge_layers(id, request, fds).err().map(Into::into),
            ControlRequest::UseMerged => {
                if let Err(error) = self.use_merged(id) {
                    return Some(error.into());
                }
            }
            ControlRequest::AttachNetwork { frames } => {
                if let Err(error) = self.attach_network(*frames, fds) {
                    return Some(error.into());
                }
            }
            ControlRequest::NetworkStats => {
                return Some(
                    self.network_card().map_or_else(Into::into, |card| ControlReply::NetworkStats(card.stats())),
                );
            }
            // `serve` takes the first out, and the connection puts the others in newer words.
            ControlRequest::Fork(_) | ControlRequest::ForkV1(_) | ControlRequest::ResetV1(_) => return None,
        }
        self.tell_phase();
        Some(ControlReply::Done)
    }

    /// Writes the status file and notifies watchers when the phase has changed. [`EventLoop::run`] reports the end.
    fn tell_phase(&mut self) {
        let phase = self.setup.machine.shared().phase();
        if phase == Phase::Ended || self.told == Some(phase) {
            return;
        }
        self.told = Some(phase);
        self.write_status(phase);
        self.broadcast(&VmmEvent::Phase(phase));
    }

    fn write_status(&self, phase: Phase) {
        let shared = self.setup.machine.shared();
        let status = VmStatus {
            pid: std::process::id(),
            phase,
            host_mode: shared.host_mode,
            reason: shared.reason(),
            missing: self.reporter.missing.clone(),
            // Before the agent listens, the kernel may not have come so far.
            clocks_jump: !matches!(phase, Phase::Created | Phase::Booting)
                && !self.setup.machine.leaves_out_standstill(),
            wire: WIRE.version,
        };
        if let Err(error) = self.reporter.status.write(&status) {
            log::line(format_args!("cannot write the status file: {error}"));
        }
    }

    fn broadcast(&mut self, event: &VmmEvent) {
        // A launcher that is gone is noticed as such when its channel is served.
        let _ = self.reporter.launcher.event(event);
        self.connections.retain(|_, connection| connection.event(event).is_ok());
    }
}
