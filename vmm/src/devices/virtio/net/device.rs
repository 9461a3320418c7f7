//! The device the transport sees: moves frames between its queues and the socket of [`super::link`].

use super::{
    frame::{self, ETHERNET, HEADER, Way},
    link::{Interest, Link, NetworkCard, Next},
    receive::{Gathered, gather},
};
use crate::devices::virtio::{
    device::{DeviceContext, DeviceError, DeviceType, VirtioDevice, read_config_space},
    ring::{Direction, Ring},
    transfer::Part,
};
use sandboxvm_protocol::vmm::NetConfig;
use std::{io, os::fd::BorrowedFd};
use virtio_bindings::{
    virtio_net::{
        VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
        VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
    },
    virtio_ring::VIRTIO_RING_F_EVENT_IDX,
};

/// Network device (virtio 1.2, 5.1).
pub(super) const TYPE: DeviceType = DeviceType::new(1, "Net");

/// The queues, in the order of virtio 1.2, 5.1.2.
pub(super) const RECEIVE: usize = 0;
pub(super) const TRANSMIT: usize = 1;

/// A Linux driver fills the receive queue when it starts, which costs time where ring 0 is interpreted. This many
/// buffers of 1.5 KiB hold two frames of the maximum size, and Linux makes them larger when it receives such frames.
const QUEUE_SIZES: [u16; 2] = [128, 128];

/// Frames carried in each direction in one turn. What is left waits for the next turn of the event loop, so that neither
/// guest nor peer holds it up.
const FRAMES_PER_TURN: usize = 64;

/// The saved state is this byte, and whether the driver knows of a link (0 or 1).
const LAYOUT: u8 = 1;

/// A network card with one pair of queues.
#[derive(Debug)]
pub struct NetDevice {
    config: NetConfig,
    card: NetworkCard,
    link: Link,
    /// Whether the last state of the link that the driver was notified of is up.
    notified_up: bool,
    /// The socket has no room for the next frame of the guest.
    blocked: bool,
    /// The guest has no buffers for the next frame in the socket.
    starved: bool,
}

impl NetDevice {
    /// Returns a card without a link, and the host's side of it.
    ///
    /// # Errors
    /// When an epoll set or an eventfd cannot be made.
    pub fn new(config: NetConfig) -> io::Result<(Self, NetworkCard)> {
        let card = NetworkCard::new()?;
        let link = Link::new(card.clone())?;
        Ok((Self { config, card: card.clone(), link, notified_up: false, blocked: false, starved: false }, card))
    }

    /// One turn of the device: both queues as far as its budget goes, and one interrupt at most.
    fn turn(&mut self, context: &mut DeviceContext<'_>) -> Result<(), DeviceError> {
        self.take_over()?;
        let mut interrupt = self.transmit(context)?;
        interrupt |= self.receive(context)?;
        // Also when the socket failed meanwhile.
        self.notify_of_link(context);
        if interrupt {
            context.interrupt.signal_used();
        }
        self.link.watch(Interest { frames: !self.starved, room: self.blocked })
    }

    fn take_over(&mut self) -> Result<(), DeviceError> {
        if self.link.take_over()? {
            self.blocked = false;
        }
        Ok(())
    }

    fn lose_link(&mut self) {
        self.link.end();
        self.blocked = false;
    }

    fn notify_of_link(&mut self, context: &DeviceContext<'_>) {
        let is_up = self.link.is_up();
        if self.notified_up != is_up {
            self.notified_up = is_up;
            if context.features & 1 << VIRTIO_NET_F_STATUS != 0 {
                context.interrupt.signal_config();
            }
        }
    }

    /// Takes frames from the guest; true when the driver wants an interrupt for the buffers it got back.
    fn transmit(&mut self, context: &mut DeviceContext<'_>) -> Result<bool, DeviceError> {
        let mut ring = Ring::new(context.queues, context.memory, TRANSMIT);
        if self.blocked || !ring.ready() {
            return Ok(false);
        }
        let mut returned = false;
        let mut budget = FRAMES_PER_TURN;
        ring.suppress_notifications()?;
        loop {
            if budget == 0 {
                self.card.wake();
                break;
            }
            budget -= 1;
            let Some(mut chain) = ring.pop(Direction::FromGuest)? else {
                if ring.enable_notifications()? {
                    ring.suppress_notifications()?;
                    continue;
                }
                break;
            };
            // A chain is at most 4 GiB, and a usize has 64 bits on every host with KVM that we build for.
            let length = usize::try_from(chain.readable.len()).unwrap_or(usize::MAX);
            let mut start = [0; HEADER + ETHERNET];
            chain.readable.read(&mut start);
            let header = frame::accept(&start, length, self.config.mtu, Way::Out);
            if let Some((header, socket)) = header.zip(self.link.socket()) {
                start[..HEADER].copy_from_slice(&header);
                match Part::from(&chain.readable, 0).send_after(&start, socket) {
                    Ok(_) => self.card.counters().sent.carried(length - HEADER),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        ring.undo_pop();
                        self.blocked = true;
                        break;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                        ring.undo_pop();
                        continue;
                    }
                    Err(error) => {
                        self.card.counters().sent.dropped();
                        // Too large for the socket's buffer, or for the memory of the host: the socket stays of use.
                        if !matches!(error.raw_os_error(), Some(libc::EMSGSIZE | libc::ENOBUFS | libc::ENOMEM)) {
                            self.lose_link();
                        }
                    }
                }
            } else {
                self.card.counters().sent.dropped();
            }
            ring.push_used(chain.head, 0)?;
            returned = true;
        }
        Ok(returned && ring.interrupt_due()?)
    }

    /// Gives frames to the guest; true when the driver wants an interrupt for them.
    fn receive(&mut self, context: &mut DeviceContext<'_>) -> Result<bool, DeviceError> {
        let merges = context.features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0;
        let validated = context.features & 1 << VIRTIO_NET_F_GUEST_CSUM != 0;
        let mut ring = Ring::new(context.queues, context.memory, RECEIVE);
        self.starved = !ring.ready();
        let mut filled = false;
        // Notifications of new buffers matter only while some are missing.
        ring.suppress_notifications()?;
        // What is left then keeps the socket readable.
        for _ in 0..FRAMES_PER_TURN {
            if self.starved {
                break;
            }
            let (length, start) = match self.link.peek() {
                Next::Frame(length, start) => (length, start),
                Next::Nothing => break,
                Next::Over => {
                    self.lose_link();
                    break;
                }
            };
            let received = &self.card.counters().received;
            let Some(mut header) = frame::accept(&start, length, self.config.mtu, Way::In) else {
                self.link.skip();
                received.dropped();
                continue;
            };
            let (mut buffers, used) = match gather(&mut ring, length, merges)? {
                Gathered::Enough(buffers, used) => (buffers, used),
                Gathered::NotYet => {
                    self.starved = true;
                    break;
                }
                Gathered::Changing => break,
                Gathered::Never => {
                    self.link.skip();
                    received.dropped();
                    continue;
                }
            };
            let Some(socket) = self.link.socket() else { break };
            let body = Part::from(&buffers, HEADER).first(length - HEADER);
            match body.receive_after(&mut [0; HEADER], socket) {
                Ok(count) if count == length => received.carried(length - HEADER),
                // No other process reads from the socket, so this does not happen unless the peer shares it with one.
                other => {
                    used.iter().for_each(|_| ring.undo_pop());
                    match other.map_err(|error| error.kind()) {
                        Ok(0) => self.lose_link(),
                        Ok(_) => received.dropped(),
                        Err(io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                        Err(_) => self.lose_link(),
                    }
                    continue;
                }
            }
            if !validated {
                header[0] = 0;
            }
            // At most the queue's size.
            frame::set_chains(&mut header, u16::try_from(used.len()).unwrap_or(u16::MAX));
            buffers.write(&header);
            ring.push_used_together(&used)?;
            filled = true;
        }
        Ok(filled && ring.interrupt_due()?)
    }
}

impl VirtioDevice for NetDevice {
    fn device_type(&self) -> DeviceType {
        TYPE
    }

    fn queue_limits(&self) -> &'static [u16] {
        &QUEUE_SIZES
    }

    fn offered_features(&self) -> u64 {
        1 << VIRTIO_NET_F_CSUM
            | 1 << VIRTIO_NET_F_GUEST_CSUM
            | 1 << VIRTIO_NET_F_MTU
            | 1 << VIRTIO_NET_F_MAC
            | 1 << VIRTIO_NET_F_MRG_RXBUF
            | 1 << VIRTIO_NET_F_STATUS
            | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    /// `struct virtio_net_config` (virtio 1.2, 5.1.4): address, status, number of queue pairs, MTU.
    fn read_config(&self, offset: u64, into: &mut [u8]) {
        let status = if self.link.is_up() { VIRTIO_NET_S_LINK_UP } else { 0 };
        let mut space = [0; 12];
        space[..6].copy_from_slice(&self.config.mac.bytes());
        space[6..8].copy_from_slice(&status.to_le_bytes()[..2]);
        space[8..10].copy_from_slice(&1_u16.to_le_bytes());
        space[10..].copy_from_slice(&self.config.mtu.bytes().to_le_bytes());
        read_config_space(&space, offset, into);
    }

    /// A driver reads the status when it begins. The event loop serves the queues.
    fn activate(&mut self, _context: &mut DeviceContext<'_>) -> Result<(), DeviceError> {
        self.notified_up = self.link.is_up();
        self.card.wake();
        Ok(())
    }

    fn queue_notified(&mut self, _queue: usize, context: &mut DeviceContext<'_>) -> Result<(), DeviceError> {
        self.turn(context)
    }

    fn host_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.link.as_fd())
    }

    fn host_ready(&mut self, context: Option<&mut DeviceContext<'_>>) -> Result<(), DeviceError> {
        let readiness = self.link.ready()?;
        if readiness.over {
            self.lose_link();
        }
        if readiness.writable {
            self.blocked = false;
        }
        match context {
            Some(context) => self.turn(context),
            // Frames wait in the socket for the driver.
            None => {
                self.take_over()?;
                self.link.watch(Interest { frames: false, room: false })
            }
        }
    }

    fn reset(&mut self) {
        (self.blocked, self.starved) = (false, false);
    }

    fn save_state(&self) -> Vec<u8> {
        vec![LAYOUT, self.notified_up.into()]
    }

    /// The driver knows the link as it was then, and is notified if it differs now.
    fn restore_state(&mut self, state: &[u8]) -> Result<(), DeviceError> {
        let [LAYOUT, up @ (0 | 1)] = *state else {
            let what = format!("{} bytes cannot be a saved network card", state.len());
            return Err(DeviceError::SavedState(what));
        };
        (self.blocked, self.starved) = (false, false);
        self.notified_up = up == 1;
        self.card.wake();
        Ok(())
    }
}
