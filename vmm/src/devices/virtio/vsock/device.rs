//! The device the transport sees: moves packets between its queues and [`super::mux`], and serves the epoll set.

use super::{
    completions::Completions,
    deadlines::{Deadlines, Expiry},
    handshake::{Answer, Handshakes},
    limits::{ACCEPTS_PER_WAKE, EVENTS_PER_WAKE, Limits, PACKETS_PER_WAKE},
    mux::{Mux, Watch},
    pace::{OutputLimit, Pace},
    packet::HEADER_SIZE,
    poller::{HandshakeId, Poller, Token},
    ports::HostPorts,
    state::VsockState,
    transport_reset::TransportReset,
};
use crate::devices::virtio::{
    device::{DeviceContext, DeviceError, DeviceType, VirtioDevice, read_config_space},
    ring::{Direction, Ring},
    transfer::Part,
};
use rustix::{event::epoll, io::Errno, net::SocketFlags};
use sandboxvm_protocol::ids::GuestCid;
use std::{
    io, mem,
    os::{fd::BorrowedFd, unix::net::UnixListener},
    time::Instant,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

/// Socket device (virtio 1.2, 5.10).
pub(super) const TYPE: DeviceType = DeviceType::new(19, "Vsock");

/// The queues, in the order of virtio 1.2, 5.10.2.
pub(super) const RECEIVE: usize = 0;
pub(super) const TRANSMIT: usize = 1;
pub(super) const EVENT: usize = 2;

/// A Linux driver fills the receive queue with 4 KiB buffers when it starts, which takes thousands of instructions each;
/// 64 of them hold a whole default socket buffer.
const QUEUE_SIZES: [u16; 3] = [64, 64, 4];

/// The guest's driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Driver {
    /// Not there, or not yet: clients wait in the listener's backlog.
    Absent,
    Live,
    /// It broke its queues: clients are closed as soon as they connect.
    Failed,
}

/// The options of a device, in addition to its listener and its saved state.
#[derive(Debug, Clone)]
pub struct VsockOptions {
    /// The guest's CID.
    pub cid: GuestCid,
    /// Most that the guest may send.
    pub output_limit: OutputLimit,
}

impl VsockOptions {
    /// A device that takes what the guest sends as fast as it can.
    #[must_use]
    pub fn unlimited(cid: GuestCid) -> Self {
        Self { cid, output_limit: OutputLimit::default() }
    }
}

/// Whether clients are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listening {
    Off,
    On,
    /// Not before one of the half-done handshakes is through.
    Full,
    /// Not before [`Expiry::Accept`]: the process is out of descriptors.
    Paused,
}

/// The virtio socket device with a Unix socket in the host's place: a client connects, writes `CONNECT <port>\n`, reads
/// `OK <host port>\n` once the guest has accepted, and then has a stream to that port of the guest. A connection that the
/// guest refuses, or leaves unanswered, is closed. Clients that come before the driver is there wait. The guest cannot
/// dial: its requests are answered with RST.
#[derive(Debug)]
pub struct VsockDevice {
    cid: GuestCid,
    limits: Limits,
    listener: UnixListener,
    listening: Listening,
    driver: Driver,
    poller: Poller,
    deadlines: Deadlines,
    handshakes: Handshakes,
    mux: Mux,
    completions: Completions,
    completions_overdue: bool,
    /// The transmit queue was not emptied in the last turn.
    transmit_left: bool,
    pace: Pace,
    /// Nothing is taken from the transmit queue before this, the deadline of [`Expiry::Pace`].
    paced_until: Option<Instant>,
    reset: TransportReset,
}

impl VsockDevice {
    /// A device with `listener` for its clients.
    ///
    /// A machine restored from a snapshot, or forked from a running one, gets a new device that takes over the state of
    /// the old one. In a child of fork(2) the old one is dropped: that closes the child's copies of its descriptors and
    /// does not affect the parent's connections.
    ///
    /// # Errors
    /// When an epoll set, eventfd or timerfd cannot be made.
    pub fn new(options: VsockOptions, listener: UnixListener) -> io::Result<Self> {
        Self::with_limits(options, listener, Limits::DEFAULT)
    }

    /// As [`VsockDevice::new`], with other bounds.
    pub(super) fn with_limits(options: VsockOptions, listener: UnixListener, limits: Limits) -> io::Result<Self> {
        make_nonblocking(&listener)?;
        let VsockOptions { cid, output_limit } = options;
        Ok(Self {
            cid,
            limits,
            listener,
            listening: Listening::Off,
            driver: Driver::Absent,
            poller: Poller::new()?,
            deadlines: Deadlines::default(),
            handshakes: Handshakes::default(),
            mux: Mux::new(cid, limits, HostPorts::new()),
            completions: Completions::default(),
            completions_overdue: false,
            transmit_left: false,
            pace: Pace::new(output_limit, Instant::now()),
            paced_until: None,
            reset: TransportReset::Idle,
        })
    }

    /// What the device holds.
    #[cfg(test)]
    pub(super) fn footprint(&self) -> super::tests::Footprint {
        let ((waiting, allocated), (replies, runnable)) = (self.mux.held(), self.mux.queued());
        super::tests::Footprint {
            connections: self.mux.len(),
            handshakes: self.handshakes.len(),
            deadlines: self.deadlines.len(),
            waiting,
            allocated,
            replies,
            runnable,
        }
    }

    /// Ends all connections and handshakes.
    fn hang_up(&mut self) {
        let (mux, handshakes, mut watch) = self.parts();
        mux.disconnect_all(&mut watch);
        handshakes.close_all(&mut watch);
    }

    fn parts(&mut self) -> (&mut Mux, &mut Handshakes, Watch<'_>) {
        (&mut self.mux, &mut self.handshakes, Watch { poller: &self.poller, deadlines: &mut self.deadlines })
    }

    /// Forgets everything about the queues, and closes all clients.
    fn stop(&mut self, driver: Driver) {
        self.hang_up();
        self.stop_listening();
        self.driver = driver;
        if let Some((at, expiry)) = self.completions.take_deadline() {
            self.deadlines.clear(at, expiry);
        }
        self.completions = Completions::default();
        self.completions_overdue = false;
        self.transmit_left = false;
        self.reset = TransportReset::Idle;
        self.mux.swallow_unknown = false;
    }

    /// Passes on the error that ends the device.
    fn or_fail<T>(&mut self, result: Result<T, DeviceError>) -> Result<T, DeviceError> {
        if result.is_err() {
            self.stop(Driver::Failed);
            // So that clients do not wait for what does not come; if it cannot be, they have to.
            let _ = self.listen();
        }
        result
    }

    /// One turn of the device: all queues as far as its budget goes, and one interrupt at most.
    fn turn(&mut self, context: &mut DeviceContext<'_>) -> Result<(), DeviceError> {
        self.driver = Driver::Live;
        self.listen()?;
        let mut interrupt = self.announce_reset(context)?;
        interrupt |= self.transmit(context)?;
        interrupt |= self.receive(context)?;
        if interrupt {
            context.interrupt.signal_used();
        }
        if self.transmit_left && self.paced_until.is_none() {
            self.poller.wake();
        }
        Ok(())
    }

    fn announce_reset(&mut self, context: &mut DeviceContext<'_>) -> Result<bool, DeviceError> {
        let mut ring = Ring::new(context.queues, context.memory, EVENT);
        let used = self.reset.advance(&mut ring)?;
        self.mux.swallow_unknown = self.reset.under_way();
        Ok(used && ring.interrupt_due()?)
    }

    /// Takes packets from the guest; true when the driver wants an interrupt for the buffers it got back.
    fn transmit(&mut self, context: &mut DeviceContext<'_>) -> Result<bool, DeviceError> {
        let mut ring = Ring::new(context.queues, context.memory, TRANSMIT);
        let mut returned = false;
        if self.paced_until.is_none() && mem::take(&mut self.transmit_left) && ring.ready() {
            let mut budget = PACKETS_PER_WAKE;
            ring.suppress_notifications()?;
            loop {
                if budget == 0 {
                    self.transmit_left = true;
                    break;
                }
                budget -= 1;
                if let Some(delay) = self.pace.delay(Instant::now) {
                    let until = self.deadlines.set(&self.poller, delay, Expiry::Pace).map_err(timer_failed)?;
                    (self.paced_until, self.transmit_left) = (Some(until), true);
                    break;
                }
                let Some(mut chain) = ring.pop(Direction::FromGuest)? else {
                    if ring.enable_notifications()? {
                        ring.suppress_notifications()?;
                        continue;
                    }
                    break;
                };
                let descriptors = chain.readable.slices().count();
                let bytes = Part::from(&chain.readable, 0).len();
                let mut watch = Watch { poller: &self.poller, deadlines: &mut self.deadlines };
                self.mux.guest_packet(&mut chain.readable, &mut watch);
                self.pace.spend(bytes);
                self.completions.hold(chain.head, descriptors, bytes);
                if self.completions.due(&ring) {
                    returned |= self.completions.release(&mut ring)?;
                }
            }
        }
        if !ring.ready() {
            // The driver took the queue away from us, buffers and all.
            self.completions.drop_all();
        }
        if mem::take(&mut self.completions_overdue) {
            returned |= self.completions.release(&mut ring)?;
        }
        self.time_completions()?;
        Ok(returned && ring.interrupt_due()?)
    }

    /// Keeps the deadline of held completions in line with whether there are any.
    fn time_completions(&mut self) -> Result<(), DeviceError> {
        if self.completions.heads().is_empty() {
            if let Some((at, expiry)) = self.completions.take_deadline() {
                self.deadlines.clear(at, expiry);
            }
        } else if self.completions.deadline.is_none() {
            let delay = self.limits.completion_delay;
            let deadline = self.deadlines.set(&self.poller, delay, Expiry::Completions).map_err(timer_failed)?;
            self.completions.deadline = Some(deadline);
        }
        Ok(())
    }

    /// Fills receive buffers; true when the driver wants an interrupt for them.
    fn receive(&mut self, context: &mut DeviceContext<'_>) -> Result<bool, DeviceError> {
        if self.reset.under_way() || !self.mux.has_packet() {
            return Ok(false);
        }
        let mut ring = Ring::new(context.queues, context.memory, RECEIVE);
        if !ring.ready() {
            return Ok(false);
        }
        let mut filled = false;
        let mut budget = PACKETS_PER_WAKE;
        // Notifications of new buffers matter only while some are missing.
        ring.suppress_notifications()?;
        while self.mux.has_packet() {
            if budget == 0 {
                self.poller.wake();
                break;
            }
            budget -= 1;
            let Some(mut chain) = ring.pop(Direction::ToGuest)? else {
                if ring.enable_notifications()? {
                    ring.suppress_notifications()?;
                    continue;
                }
                break;
            };
            let payload = Part::from(&chain.writable, HEADER_SIZE);
            if payload.len() == 0 {
                return Err(ring.bad_buffer("a receive buffer cannot hold a packet header and a byte"));
            }
            let mut watch = Watch { poller: &self.poller, deadlines: &mut self.deadlines };
            let Some(header) = self.mux.next_packet(payload, &mut watch) else {
                ring.undo_pop();
                break;
            };
            chain.writable.write(&header.encode());
            // A header is 44 bytes.
            ring.push_used(chain.head, header.length + 44)?;
            filled = true;
        }
        Ok(filled && ring.interrupt_due()?)
    }

    fn listen(&mut self) -> Result<(), DeviceError> {
        let room = self.handshakes.len() < self.limits.handshakes;
        let wanted = self.listening == Listening::Off || self.listening == Listening::Full && room;
        if self.driver != Driver::Absent && wanted {
            self.poller.watch_level(&self.listener, Token::Listener).map_err(listen_failed)?;
            self.listening = Listening::On;
        }
        Ok(())
    }

    fn stop_listening(&mut self) {
        if self.listening == Listening::On {
            self.poller.forget(&self.listener);
        }
        self.listening = Listening::Off;
    }

    fn accept(&mut self) -> Result<(), DeviceError> {
        for _ in 0..ACCEPTS_PER_WAKE {
            if self.handshakes.len() >= self.limits.handshakes {
                self.stop_listening();
                self.listening = Listening::Full;
                return Ok(());
            }
            match rustix::net::accept_with(&self.listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                // Closed immediately: the client reads an end of file instead of an OK.
                Ok(_) if self.driver != Driver::Live => {}
                Ok(_) if self.mux.len() + self.handshakes.len() >= self.limits.connections => {}
                Ok(client) => {
                    let limits = self.limits;
                    let (_, handshakes, mut watch) = self.parts();
                    // Failing for one client, which was closed by it, it may work for the next.
                    if let Ok(id) = handshakes.begin(client, &limits, &mut watch) {
                        // Most clients have written their line by now.
                        self.handshake(id, false);
                    }
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::CONNABORTED | Errno::INTR) => {}
                // The client stays in the backlog and the listener readable, so asking on would spin.
                Err(_) => {
                    self.stop_listening();
                    self.listening = Listening::Paused;
                    self.deadlines.set(&self.poller, self.limits.accept_pause, Expiry::Accept).map_err(timer_failed)?;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn handshake(&mut self, id: HandshakeId, ended: bool) {
        let (mux, handshakes, mut watch) = self.parts();
        if let Answer::Dial(client, port) = handshakes.progress(id, ended, &mut watch) {
            // The client was closed if this failed, which is all there is to tell it.
            let _ = mux.dial(client, port, &mut watch);
        }
    }

    fn timer_fired(&mut self) -> Result<(), DeviceError> {
        self.poller.timer_fired();
        let now = Instant::now();
        while let Some(expiry) = self.deadlines.next_expired(now) {
            match expiry {
                Expiry::Handshake(id) => {
                    let (_, handshakes, mut watch) = self.parts();
                    handshakes.close(id, &mut watch);
                }
                Expiry::Connection(port) => {
                    let (mux, _, mut watch) = self.parts();
                    mux.expired(port, &mut watch);
                }
                Expiry::Completions => {
                    self.completions.deadline = None;
                    self.completions_overdue = true;
                }
                Expiry::Pace => self.paced_until = None,
                Expiry::Accept if self.listening == Listening::Paused => self.listening = Listening::Off,
                Expiry::Accept => {}
            }
        }
        self.deadlines.rearm(&self.poller).map_err(timer_failed)
    }

    fn serve_clients(&mut self) -> Result<(), DeviceError> {
        let mut events =
            [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; EVENTS_PER_WAKE];
        let ready = self
            .poller
            .ready(&mut events)
            .map_err(|source| DeviceError::Host { what: "asking the vsock's epoll set what is ready", source })?;
        for (token, readiness) in ready {
            match token {
                Token::Listener => self.accept()?,
                Token::Wake => self.poller.slept(),
                Token::Timer => self.timer_fired()?,
                Token::Handshake(id) => self.handshake(id, readiness.ended),
                Token::Connection(port) => {
                    let (mux, _, mut watch) = self.parts();
                    mux.client_ready(port, readiness, &mut watch);
                }
            }
        }
        Ok(())
    }
}

impl VirtioDevice for VsockDevice {
    fn device_type(&self) -> DeviceType {
        TYPE
    }

    fn queue_limits(&self) -> &'static [u16] {
        &QUEUE_SIZES
    }

    fn offered_features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX
    }

    /// struct virtio_vsock_config: the guest's CID (virtio 1.2, 5.10.4).
    fn read_config(&self, offset: u64, into: &mut [u8]) {
        read_config_space(&u64::from(self.cid.get()).to_le_bytes(), offset, into);
    }

    fn activate(&mut self, context: &mut DeviceContext<'_>) -> Result<(), DeviceError> {
        // A driver that begins has no connections to reset, also where a snapshot was taken before it began.
        self.reset = TransportReset::Idle;
        self.completions = Completions::default();
        self.transmit_left = true;
        let result = self.turn(context);
        self.or_fail(result)
    }

    fn queue_notified(&mut self, queue: usize, context: &mut DeviceContext<'_>) -> Result<(), DeviceError> {
        self.transmit_left |= queue == TRANSMIT;
        let result = self.turn(context);
        self.or_fail(result)
    }

    fn host_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.poller.as_fd())
    }

    fn host_ready(&mut self, context: Option<&mut DeviceContext<'_>>) -> Result<(), DeviceError> {
        if context.is_none() && self.driver == Driver::Live {
            // It gave up without a reset.
            self.stop(Driver::Absent);
        }
        let served = self.serve_clients();
        let result = served.and_then(|()| match context {
            Some(context) => self.turn(context),
            None => self.listen(),
        });
        self.or_fail(result)
    }

    fn reset(&mut self) {
        self.stop(Driver::Absent);
    }

    fn save_state(&self) -> Vec<u8> {
        let state = VsockState {
            next_host_port: self.mux.next_port(),
            reset_noted_at: self.reset.noted_at(),
            held_transmit_heads: self.completions.heads().to_vec(),
        };
        state.encode()
    }

    /// Begins with a transport reset (virtio 1.2, 5.10.6.7): the guest receives the event that all its connections are gone,
    /// packets that it had sent for them are dropped, and clients, which may connect already, are served as soon as the guest
    /// has handled the event.
    fn restore_state(&mut self, state: &[u8]) -> Result<(), DeviceError> {
        let state = VsockState::decode(state).map_err(|error| DeviceError::SavedState(error.to_string()))?;
        self.stop(Driver::Absent);
        self.mux = Mux::new(self.cid, self.limits, HostPorts::starting_at(state.next_host_port));
        self.completions = Completions::holding(state.held_transmit_heads);
        self.pace.forget(Instant::now());
        if let Some(until) = self.paced_until.take() {
            self.deadlines.clear(until, Expiry::Pace);
        }
        self.reset = TransportReset::restored(state.reset_noted_at);
        self.reset.begin();
        self.transmit_left = true;
        Ok(())
    }
}

fn make_nonblocking(listener: &UnixListener) -> io::Result<()> {
    listener.set_nonblocking(true)
}

fn timer_failed(source: io::Error) -> DeviceError {
    DeviceError::Host { what: "setting the vsock's timer", source }
}

fn listen_failed(source: io::Error) -> DeviceError {
    DeviceError::Host { what: "watching the vsock's listening socket", source }
}
