//! The guest's end of one TCP connection: a socket of smoltcp with an interface to itself, whose only address is the one
//! that the guest connected to. So the cost of a segment does not depend on how many connections there are, and no
//! connection can touch another.

use super::{
    device::Port,
    link::Link,
    packet::{Content, Packet},
    replies::kind_of,
};
use smoltcp::{
    iface::{Config, Interface, PollResult, SocketHandle, SocketSet},
    socket::tcp::{RecvError, Socket, SocketBuffer, State},
    wire::{EthernetProtocol, HardwareAddress, IpCidr, IpEndpoint},
};
use std::{
    cell::{Cell, RefCell},
    fmt, io,
    rc::{Rc, Weak},
    task::{Context, Poll},
    time::Instant,
};

/// Maximum number of frames that a connection sends before others may.
const BURST: usize = 64;

/// The guest's end of one TCP connection.
pub struct GuestEnd {
    link: Rc<Link>,
    me: Weak<Self>,
    id: u64,
    kind: EthernetProtocol,
    tcp: RefCell<Tcp>,
    timer: Cell<Option<Instant>>,
    is_waiting: Cell<bool>,
}

struct Tcp {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
}

impl Tcp {
    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }
}

impl fmt::Debug for GuestEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestEnd").field("id", &self.id).finish_non_exhaustive()
    }
}

impl GuestEnd {
    /// Answers the segment that begins a connection. The buffers have `capacity` bytes for each direction. Returns nothing
    /// for a packet that does not begin one.
    #[must_use]
    pub fn open(link: &Rc<Link>, syn: &Packet<'_>, capacity: usize) -> Option<Rc<Self>> {
        let Content::Tcp { to, begins: true, .. } = syn.content else { return None };
        let (id, seed) = link.identify();
        let kind = kind_of(syn.destination);
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = {
            let mut outlet = link.outlet.borrow_mut();
            Interface::new(config, &mut Port { packet: None, outlet: &mut outlet, kind }, link.now())
        };
        interface.update_ip_addrs(|addresses| {
            // There is room for several, and this is the first.
            let _ = addresses.push(IpCidr::new(syn.destination.into(), bits(kind)));
        });
        let buffer = || SocketBuffer::new(vec![0; capacity]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.listen(IpEndpoint::new(syn.destination.into(), to)).ok()?;
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        let end = Rc::new_cyclic(|me| Self {
            link: Rc::clone(link),
            me: Weak::clone(me),
            id,
            kind,
            tcp: RefCell::new(Tcp { interface, sockets, handle }),
            timer: Cell::new(None),
            is_waiting: Cell::new(false),
        });
        end.receive(syn.bytes);
        Some(end)
    }

    /// Takes a packet of the guest for this connection.
    pub fn receive(&self, packet: &[u8]) {
        {
            let mut tcp = self.tcp.borrow_mut();
            let Tcp { interface, sockets, .. } = &mut *tcp;
            let mut outlet = self.link.outlet.borrow_mut();
            let mut port = Port { packet: Some(packet), outlet: &mut outlet, kind: self.kind };
            let _ = interface.poll_ingress_single(self.link.now(), &mut port, sockets);
        }
        self.settle();
    }

    /// Sends what can be sent, and sets the timer.
    fn settle(&self) {
        if self.is_waiting.get() {
            return;
        }
        let now = self.link.now();
        let mut tcp = self.tcp.borrow_mut();
        let Tcp { interface, sockets, .. } = &mut *tcp;
        let is_done = {
            let mut outlet = self.link.outlet.borrow_mut();
            let mut port = Port { packet: None, outlet: &mut outlet, kind: self.kind };
            (0..BURST).any(|_| {
                let result = interface.poll_egress(now, &mut port, sockets);
                result == PollResult::None && port.outlet.is_free()
            })
        };
        if !is_done && let Some(me) = self.me.upgrade() {
            self.is_waiting.set(true);
            drop(tcp);
            return self.link.wait(me);
        }
        if let Some(at) = interface.poll_at(now, sockets) {
            self.set_timer(self.link.moment(at));
        }
    }

    /// A timer that is earlier than needed stays: it finds out when it is needed. So most segments set none.
    fn set_timer(&self, at: Instant) {
        match self.timer.get() {
            Some(set) if set <= at => {}
            set => {
                if let Some(set) = set {
                    self.link.clear_timer(set, self.id);
                }
                self.timer.set(Some(at));
                self.link.set_timer(at, self.id, Weak::clone(&self.me));
            }
        }
    }

    pub(super) fn run_timer(&self) {
        self.timer.set(None);
        self.settle();
    }

    pub(super) fn resume(&self) {
        self.is_waiting.set(false);
        self.settle();
    }

    /// Waits until the guest has answered the answer to its first segment.
    pub(super) fn poll_established(&self, context: &Context<'_>) -> Poll<io::Result<()>> {
        let mut tcp = self.tcp.borrow_mut();
        let socket = tcp.socket();
        match socket.state() {
            State::SynReceived => {
                socket.register_recv_waker(context.waker());
                Poll::Pending
            }
            // A reset during the handshake leads back to listening.
            State::Closed | State::Listen | State::SynSent => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Gives bytes of the guest to `take`, which returns how many it took. Returns 0 once the guest has closed its side.
    pub(super) fn poll_take(
        &self,
        context: &Context<'_>,
        take: impl FnOnce(&[u8]) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let result = {
            let mut tcp = self.tcp.borrow_mut();
            let socket = tcp.socket();
            let has_bytes = socket.can_recv();
            let taken = socket.recv(|bytes| {
                if bytes.is_empty() {
                    return (0, Ok(0));
                }
                let result = take(bytes);
                (result.as_ref().map_or(0, |taken| (*taken).min(bytes.len())), result)
            });
            match taken {
                Ok(result) if has_bytes => result,
                Ok(_) => {
                    socket.register_recv_waker(context.waker());
                    return Poll::Pending;
                }
                Err(RecvError::Finished) => return Poll::Ready(Ok(0)),
                Err(RecvError::InvalidState) => {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
            }
        };
        self.settle();
        Poll::Ready(result)
    }

    /// Lets `give` write bytes for the guest. It returns how many it wrote.
    pub(super) fn poll_give(
        &self,
        context: &Context<'_>,
        give: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let result = {
            let mut tcp = self.tcp.borrow_mut();
            let socket = tcp.socket();
            if !socket.may_send() {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            if !socket.can_send() {
                socket.register_send_waker(context.waker());
                return Poll::Pending;
            }
            let given = socket.send(|bytes| {
                let result = give(bytes);
                (result.as_ref().map_or(0, |given| (*given).min(bytes.len())), result)
            });
            given.unwrap_or_else(|_| Err(io::ErrorKind::ConnectionReset.into()))
        };
        self.settle();
        Poll::Ready(result)
    }

    /// Waits until the guest has bytes, has closed its side or has reset the connection.
    pub(super) fn poll_readable(&self, context: &Context<'_>) -> Poll<()> {
        let mut tcp = self.tcp.borrow_mut();
        let socket = tcp.socket();
        if socket.can_recv() || !matches!(socket.recv(|_| (0, ())), Ok(())) {
            return Poll::Ready(());
        }
        socket.register_recv_waker(context.waker());
        Poll::Pending
    }

    /// Waits until there is room for bytes to the guest, or there will never be.
    pub(super) fn poll_writable(&self, context: &Context<'_>) -> Poll<()> {
        let mut tcp = self.tcp.borrow_mut();
        let socket = tcp.socket();
        if socket.can_send() || !socket.may_send() {
            return Poll::Ready(());
        }
        socket.register_send_waker(context.waker());
        Poll::Pending
    }

    /// Waits until the connection is closed by both sides. The gateway does not keep it for TIME-WAIT: no segment of it is
    /// still on the way, as there is no network between guest and gateway.
    pub(super) fn poll_closed(&self, context: &Context<'_>) -> Poll<()> {
        let mut tcp = self.tcp.borrow_mut();
        let socket = tcp.socket();
        if matches!(socket.state(), State::Closed | State::TimeWait | State::Listen) {
            return Poll::Ready(());
        }
        socket.register_recv_waker(context.waker());
        Poll::Pending
    }

    /// Waits until the connection is no more, and all that the guest sent on it was taken.
    pub(super) fn poll_gone(&self, context: &Context<'_>) -> Poll<()> {
        let mut tcp = self.tcp.borrow_mut();
        let socket = tcp.socket();
        if matches!(socket.state(), State::Closed | State::Listen) && !socket.can_recv() {
            return Poll::Ready(());
        }
        socket.register_recv_waker(context.waker());
        Poll::Pending
    }

    /// Sends the end of the data to the guest. If the guest has closed its side, that waits until it has confirmed the data
    /// before: while it closes last, smoltcp takes no update of the guest's window.
    pub(super) fn poll_close(&self, context: &Context<'_>) -> Poll<()> {
        {
            let mut tcp = self.tcp.borrow_mut();
            let socket = tcp.socket();
            if socket.state() == State::CloseWait && socket.send_queue() > 0 {
                socket.register_send_waker(context.waker());
                return Poll::Pending;
            }
            socket.close();
        }
        self.settle();
        Poll::Ready(())
    }

    /// Ends the connection by a reset.
    pub fn abort(&self) {
        self.tcp.borrow_mut().socket().abort();
        self.settle();
    }
}

impl Drop for GuestEnd {
    fn drop(&mut self) {
        if let Some(at) = self.timer.get() {
            self.link.clear_timer(at, self.id);
        }
    }
}

fn bits(kind: EthernetProtocol) -> u8 {
    if kind == EthernetProtocol::Ipv4 { 32 } else { 128 }
}
