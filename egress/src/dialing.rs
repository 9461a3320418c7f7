//! The egress process's end of the connection to its dialer: a request, and some time later a connected socket or the
//! reason why there is none. Knows no policy: what may be dialled was decided before, and the dialer checks it again.

use crate::packets::{self, PacketError};
use rustix::{
    io::Errno,
    net::{SendFlags, send},
};
use sandboxvm_protocol::egress::{
    Dial, DialAnswer, DialFailure, DialRequest,
    dial::{ANSWER_LEN, REQUEST_LEN},
};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    rc::Rc,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::oneshot,
    task::JoinHandle,
};

/// Maximum number of requests without an answer: what a dialer dials at the same time.
pub const MAX_OUTSTANDING: usize = 256;

type Answer = Result<OwnedFd, DialFailure>;

/// A connection to the dialer.
#[derive(Debug)]
pub struct Dialing {
    shared: Rc<Shared>,
    reader: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    socket: AsyncFd<OwnedFd>,
    waiting: RefCell<HashMap<u32, oneshot::Sender<Answer>>>,
    next_id: Cell<u32>,
    is_lost: Cell<bool>,
}

impl Dialing {
    /// Returns the end of the connection that `socket` is. To be called in a `LocalSet`.
    ///
    /// # Errors
    /// When the socket cannot be waited for.
    pub fn new(socket: OwnedFd) -> io::Result<Rc<Self>> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        // SAFETY: an `OwnedFd` has the same open descriptor until it is dropped, and it is only lent from here on.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        let shared =
            Rc::new(Shared { socket, waiting: RefCell::default(), next_id: Cell::new(0), is_lost: Cell::new(false) });
        let reader = tokio::task::spawn_local(read_answers(Rc::clone(&shared)));
        Ok(Rc::new(Self { shared, reader }))
    }

    /// Dials. The socket is connected, non-blocking, and closed on exec. A caller that stops to wait does not stop the
    /// dialer; the socket is closed when it comes.
    ///
    /// # Errors
    /// Why there is no socket: [`DialFailure::Busy`] without any wait if the dialer is lost or has too much to do.
    pub async fn dial(&self, what: Dial) -> Result<OwnedFd, DialFailure> {
        let mut answer = self.shared.request(what)?;
        (&mut answer.receiver).await.unwrap_or(Err(DialFailure::Busy))
    }

    /// Returns true if the dialer has ended. It does not come back: both processes are replaced together.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.shared.is_lost.get()
    }
}

impl Drop for Dialing {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// A wait for an answer. Dropping it forgets the request.
struct Awaited<'s> {
    shared: &'s Shared,
    id: u32,
    receiver: oneshot::Receiver<Answer>,
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        self.shared.waiting.borrow_mut().remove(&self.id);
    }
}

impl Shared {
    fn request(&self, dial: Dial) -> Result<Awaited<'_>, DialFailure> {
        if self.is_lost.get() {
            return Err(DialFailure::Busy);
        }
        let mut waiting = self.waiting.borrow_mut();
        if waiting.len() >= MAX_OUTSTANDING {
            return Err(DialFailure::Busy);
        }
        // After 2^32 requests an ID could still be in use: of the numbers that follow, one is free.
        let mut id = self.next_id.get();
        while waiting.contains_key(&id) {
            id = id.wrapping_add(1);
        }
        self.next_id.set(id.wrapping_add(1));
        let packet: [u8; REQUEST_LEN] = DialRequest { id, dial }.to_bytes();
        match send(&self.socket, &packet, SendFlags::NOSIGNAL) {
            Ok(_) => {}
            // Its queue is full of requests that it has not read.
            Err(Errno::AGAIN | Errno::NOBUFS | Errno::INTR) => return Err(DialFailure::Busy),
            Err(_) => {
                drop(waiting);
                self.lose();
                return Err(DialFailure::Busy);
            }
        }
        let (sender, receiver) = oneshot::channel();
        waiting.insert(id, sender);
        Ok(Awaited { shared: self, id, receiver })
    }

    /// Ends all waits: nothing will answer them.
    fn lose(&self) {
        self.is_lost.set(true);
        self.waiting.borrow_mut().clear();
    }

    /// Reads the answers that are there. Returns false at the end of the connection.
    fn read(&self) -> Result<bool, PacketError> {
        loop {
            let mut bytes = [0; ANSWER_LEN];
            let packet = match packets::receive(self.socket.get_ref(), &mut bytes) {
                Err(PacketError::Socket(Errno::INTR)) => continue,
                packet => packet?,
            };
            if packet.bytes == 0 {
                return Ok(false);
            }
            let answer = DialAnswer::from_bytes(&bytes).filter(|_| packet.bytes == ANSWER_LEN);
            let answer = answer.ok_or(PacketError::NotOneMessage)?;
            let mut fds = packet.fds.into_iter();
            let result = match (answer.result, fds.next()) {
                (Ok(()), Some(fd)) => Ok(fd),
                (Err(failure), None) => Err(failure),
                (Ok(()), None) | (Err(_), Some(_)) => return Err(PacketError::NotOneMessage),
            };
            // One that is not awaited any more is closed here.
            if let Some(sender) = self.waiting.borrow_mut().remove(&answer.id) {
                let _ = sender.send(result);
            }
        }
    }
}

async fn read_answers(shared: Rc<Shared>) {
    loop {
        let Ok(mut ready) = shared.socket.readable().await else { break };
        match shared.read() {
            Err(PacketError::Socket(Errno::AGAIN)) => ready.clear_ready(),
            Ok(true) => {}
            Ok(false) | Err(_) => break,
        }
    }
    shared.lose();
}
