//! The one event loop of the VMM: queue notifications, device descriptors, control connections, the machine's end.
//! Runs on the main thread; everything it calls is non-blocking and bounded, so that no device, guest or peer can
//! starve another. Called by `main`, returns when the machine is over.

use crate::{
    control::{ControlConnection, ControlError},
    devices::board::lock,
    machine::Machine,
    status::StatusFile,
};
use rustix::{
    event::epoll::{self, EventData, EventFlags},
    io::Errno,
};
use sandboxvm_protocol::vmm::{ControlReply, ControlRequest, ExitReason, Phase, VmStatus, VmmEvent};
use std::{
    collections::HashMap,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    sync::Arc,
};

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
}

impl Source {
    fn data(self) -> EventData {
        EventData::new_u64(match self {
            Self::News => 0,
            Self::Listener => 1 << 32,
            Self::Connection(id) => 2 << 32 | u64::from(id),
            Self::Queue { device, queue } => 3 << 32 | u64::from(device) << 16 | u64::from(queue),
            Self::Device(device) => 4 << 32 | u64::from(device),
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
            _ => return None,
        })
    }
}

/// The launch channel's place among the connections.
const LAUNCHER: u32 = 0;

/// See the module.
#[derive(Debug)]
pub struct EventLoop {
    epoll: OwnedFd,
    machine: Machine,
    listener: UnixListener,
    connections: HashMap<u32, ControlConnection>,
    next_connection: u32,
    status: StatusFile,
    told: Option<Phase>,
    tie_to_launcher: bool,
}

impl EventLoop {
    /// A loop for `machine`, controlled through `launcher` and `listener`.
    ///
    /// # Errors
    /// When the epoll set cannot be made.
    pub fn new(
        machine: Machine,
        launcher: ControlConnection,
        listener: UnixListener,
        status: StatusFile,
        tie_to_launcher: bool,
    ) -> Result<Self, EventLoopError> {
        listener.set_nonblocking(true)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let add = |fd: BorrowedFd<'_>, source: Source| epoll::add(&epoll, fd, source.data(), EventFlags::IN);
        add(machine.shared().news().as_fd_of_eventfd(), Source::News)?;
        add(listener.as_fd(), Source::Listener)?;
        add(launcher.fd(), Source::Connection(LAUNCHER))?;
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
        Ok(Self {
            epoll,
            machine,
            listener,
            connections: HashMap::from([(LAUNCHER, launcher)]),
            next_connection: LAUNCHER + 1,
            status,
            told: None,
            tie_to_launcher,
        })
    }

    /// Serves until the machine is over; returns why it ended. All vCPUs have left the guest by then.
    pub fn run(mut self) -> ExitReason {
        let reason = loop {
            self.tell_phase();
            if let Some(reason) = self.machine.shared().reason() {
                break reason;
            }
            if let Err(error) = self.turn() {
                self.machine.shared().end(ExitReason::HostFailure { message: error.to_string() });
            }
        };
        self.machine.end();
        self.write_status(Phase::Ended);
        self.broadcast(&VmmEvent::Ended(reason.clone()));
        reason
    }

    fn turn(&mut self) -> Result<(), EventLoopError> {
        let mut events = Vec::with_capacity(BATCH);
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in events {
            match Source::from_data(event.data) {
                Some(Source::News) => self.machine.shared().drain_news(),
                Some(Source::Listener) => self.accept()?,
                Some(Source::Connection(id)) => self.serve(id),
                Some(Source::Queue { device, queue }) => self.notify_queue(device, queue),
                Some(Source::Device(device)) => {
                    if let Some(transport) = self.machine.board().virtio().get(usize::from(device)) {
                        lock(transport).host_ready();
                    }
                }
                None => {}
            }
        }
        Ok(())
    }

    fn notify_queue(&self, device: u16, queue: u16) {
        let (device, queue) = (usize::from(device), usize::from(queue));
        let event = self.machine.queue_events().get(device).and_then(|queues| queues.get(queue));
        if let (Some(event), Some(transport)) = (event, self.machine.board().virtio().get(device)) {
            // Nothing pending means that an earlier turn served it.
            let _ = event.read();
            lock(transport).queue_notified(queue);
        }
    }

    fn accept(&mut self) -> Result<(), EventLoopError> {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            // The peer gave up, or we are out of descriptors for the moment: neither may end the machine.
            Err(_) => return Ok(()),
        };
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

    fn serve(&mut self, id: u32) {
        let Some(mut connection) = self.connections.remove(&id) else { return };
        match self.serve_connection(&mut connection).and_then(|()| self.await_writable(id, &connection)) {
            Ok(()) => drop(self.connections.insert(id, connection)),
            Err(_) if id == LAUNCHER && self.tie_to_launcher => self.machine.shared().end(ExitReason::LauncherGone),
            // Dropping the connection closes it, which takes it out of the epoll set.
            Err(_) => {}
        }
    }

    fn serve_connection(&mut self, connection: &mut ControlConnection) -> Result<(), ControlError> {
        connection.flush()?;
        for request in connection.receive()? {
            let reply = self.carry_out(&request);
            connection.reply(reply)?;
            if request == ControlRequest::Watch {
                connection.watch();
                connection.event(&VmmEvent::Phase(self.machine.shared().phase()))?;
            }
        }
        Ok(())
    }

    fn await_writable(&self, id: u32, connection: &ControlConnection) -> Result<(), ControlError> {
        let mut interest = EventFlags::IN;
        if connection.has_unsent() {
            interest |= EventFlags::OUT;
        }
        epoll::modify(&self.epoll, connection.fd(), Source::Connection(id).data(), interest)
            .map_err(|e| ControlError::Io(e.into()))
    }

    fn carry_out(&mut self, request: &ControlRequest) -> ControlReply {
        let shared = Arc::clone(self.machine.shared());
        match request {
            ControlRequest::Start | ControlRequest::Resume => self.machine.resume(),
            ControlRequest::Pause if shared.phase() == Phase::Created => {
                return ControlReply::Failed { message: "the machine was not started yet; start it first".into() };
            }
            ControlRequest::Pause => self.machine.pause(),
            ControlRequest::Stop => shared.end(ExitReason::Stopped),
            ControlRequest::Stats => return ControlReply::Stats(Box::new(shared.stats())),
            ControlRequest::Watch => {}
        }
        self.tell_phase();
        ControlReply::Done
    }

    /// Writes the status file and tells watchers when the phase is a new one. The end is told by [`EventLoop::run`].
    fn tell_phase(&mut self) {
        let phase = self.machine.shared().phase();
        if phase == Phase::Ended || self.told == Some(phase) {
            return;
        }
        self.told = Some(phase);
        self.write_status(phase);
        self.broadcast(&VmmEvent::Phase(phase));
    }

    fn write_status(&self, phase: Phase) {
        let shared = self.machine.shared();
        let status = VmStatus { pid: std::process::id(), phase, host_mode: shared.host_mode, reason: shared.reason() };
        if let Err(error) = self.status.write(&status) {
            eprintln!("sandboxvm-vmm: cannot write the status file: {error}");
        }
    }

    fn broadcast(&mut self, event: &VmmEvent) {
        self.connections.retain(|_, connection| connection.event(event).is_ok());
    }
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
