//! The egress process: one sandbox's gateway, from the supervisor's first message until the supervisor closes its socket.

use crate::{
    dialing::Dialing,
    flows::Gateway,
    packets::{self, PacketError, Received},
    session::Session,
    stack::{
        link::Link,
        outlet::{MAX_FRAME, Outlet, register},
    },
    tls::trust::Trust,
};
use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
};
use sandboxvm_protocol::egress::{EgressEvent, EgressRequest, EgressSetup};
use std::{
    cell::RefCell,
    collections::VecDeque,
    fs::File,
    io,
    os::fd::OwnedFd,
    rc::Rc,
    time::{Duration, Instant},
};
use tokio::{io::unix::AsyncFd, sync::Notify, task::spawn_local};

/// Maximum number of frames that are read before anything else gets its turn.
const FRAMES_AT_ONCE: usize = 64;

/// How often refusals that are alike are reported, and pins looked through.
const COLLECT: Duration = Duration::from_secs(1);

/// Buffer that is asked for on the frame socket, in bytes: what the kernel grants without privileges.
const SOCKET_BUFFER: usize = 208 * 1024;

/// Why an egress process ends before its supervisor ends it.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A packet of the supervisor.
    #[error(transparent)]
    Packet(#[from] PacketError),
    /// The first message is not [`EgressRequest::Begin`], or a later one is.
    #[error("unexpected message of the supervisor")]
    Unexpected,
    /// A socket cannot be used.
    #[error("cannot use a socket: {0}")]
    Io(#[from] io::Error),
    /// The dialer has ended.
    #[error("the dialer has ended")]
    DialerLost,
}

/// What the supervisor's first message brought.
#[derive(Debug)]
pub struct Beginning {
    supervisor: OwnedFd,
    frames: OwnedFd,
    dialer: OwnedFd,
    trust: Vec<File>,
    setup: EgressSetup,
}

impl Beginning {
    /// Waits for the supervisor's first message. Returns nothing if the supervisor closes its socket before.
    ///
    /// # Errors
    /// When the message is not one to begin with.
    pub fn receive(supervisor: OwnedFd) -> Result<Option<Self>, ServeError> {
        let Some(mut received) = packets::receive_message::<EgressRequest>(&supervisor)? else { return Ok(None) };
        let EgressRequest::Begin(setup) = received.message.clone() else { return Err(ServeError::Unexpected) };
        let frames = received.take(setup.frames)?;
        let dialer = received.take(setup.dialer)?;
        let trust = setup.trust.files.iter().map(|file| Ok(File::from(received.take(*file)?)));
        let trust = trust.collect::<Result<_, PacketError>>()?;
        // What the kernel does not grant only costs throughput.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&frames, SOCKET_BUFFER);
        Ok(Some(Self { supervisor, frames, dialer, trust, setup: *setup }))
    }

    /// Serves the guest until the supervisor or the VMM closes its socket. To be called in a `LocalSet`, when the process is
    /// confined.
    ///
    /// # Errors
    /// Every [`ServeError`].
    pub async fn serve(self) -> Result<(), ServeError> {
        let Self { supervisor, frames, dialer, trust, setup } = self;
        for socket in [&supervisor, &frames] {
            rustix::io::ioctl_fionbio(socket, true).map_err(io::Error::from)?;
        }
        let frames = Rc::new(register(frames)?);
        let link = Link::new(Outlet::new(Rc::clone(&frames)));
        let dialing = Dialing::new(dialer)?;
        let mut session = Session::new(setup.resolvers, Trust::new(trust));
        // What cannot be read refuses everything until valid settings come.
        let configured = session.configure(setup.settings).map_err(|error| error.to_string());
        session.adopt(&setup.pins, Instant::now());
        let changed = session.records.notify();
        let session = Rc::new(RefCell::new(session));
        let gateway = Gateway::new(Rc::clone(&link), Rc::clone(&session), Rc::clone(&dialing));
        let mut answers = VecDeque::from([EgressEvent::Ready]);
        if configured.is_err() {
            answers.push_back(EgressEvent::Configured(configured));
        }
        let control = Control { socket: register(supervisor)?, answers: RefCell::new(answers), changed };
        // Separate tasks, so that a frame wakes nothing else.
        let reading = spawn_local(read_frames(Rc::clone(&frames), Rc::clone(&gateway)));
        let writing = spawn_local(write_frames(frames, Rc::clone(&link)));
        let driving = spawn_local(async move { link.drive().await });
        let result = tokio::select! {
            result = control.read(&gateway) => result,
            result = control.write(&session) => result,
            result = reading => result.unwrap_or(Ok(())),
            result = writing => result.unwrap_or(Ok(())),
            _ = driving => Ok(()),
            () = keep(&session) => Ok(()),
            () = watch(&dialing) => Err(ServeError::DialerLost),
        };
        result
    }
}

/// The socket of the supervisor.
struct Control {
    socket: AsyncFd<OwnedFd>,
    answers: RefCell<VecDeque<EgressEvent>>,
    changed: Rc<Notify>,
}

impl Control {
    async fn read(&self, gateway: &Gateway) -> Result<(), ServeError> {
        loop {
            let mut ready = self.socket.readable().await?;
            match packets::receive_message::<EgressRequest>(self.socket.get_ref()) {
                Ok(Some(Received { message, .. })) => self.obey(gateway, message)?,
                Ok(None) => return Ok(()),
                Err(PacketError::Socket(Errno::AGAIN)) => ready.clear_ready(),
                Err(PacketError::Socket(Errno::INTR)) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn obey(&self, gateway: &Gateway, request: EgressRequest) -> Result<(), ServeError> {
        let answer = match request {
            EgressRequest::Begin(_) => return Err(ServeError::Unexpected),
            EgressRequest::Configure(settings) => EgressEvent::Configured(gateway.configure(*settings)),
            EgressRequest::Pins => EgressEvent::Pins(gateway.pins()),
            EgressRequest::Counters => EgressEvent::Counters(gateway.counters()),
        };
        self.answers.borrow_mut().push_back(answer);
        self.changed.notify_one();
        Ok(())
    }

    async fn write(&self, session: &RefCell<Session>) -> Result<(), ServeError> {
        loop {
            let answer = self.answers.borrow_mut().pop_front();
            let Some(event) = answer.or_else(|| session.borrow_mut().records.take()) else {
                self.changed.notified().await;
                continue;
            };
            let Ok(packet) = packets::to_packet(&event) else { continue };
            loop {
                let mut ready = self.socket.writable().await?;
                match send(self.socket.get_ref(), &packet, SendFlags::NOSIGNAL) {
                    Ok(_) => break,
                    Err(Errno::AGAIN | Errno::NOBUFS) => ready.clear_ready(),
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(ServeError::Io(error.into())),
                }
            }
        }
    }
}

/// Reads the guest's frames until the VMM closes the socket.
async fn read_frames(frames: Rc<AsyncFd<OwnedFd>>, gateway: Rc<Gateway>) -> Result<(), ServeError> {
    // One byte more than the longest frame tells a longer one.
    let mut buffer = vec![0; MAX_FRAME + 1];
    loop {
        let mut ready = frames.readable().await?;
        let mut is_empty = false;
        for _ in 0..FRAMES_AT_ONCE {
            match recv(frames.get_ref(), &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Ok(()),
                Ok((count, _)) if count <= MAX_FRAME => gateway.handle(&buffer[..count]),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    ready.clear_ready();
                    is_empty = true;
                    break;
                }
                Err(Errno::CONNRESET) => return Ok(()),
                Err(error) => return Err(ServeError::Io(error.into())),
            }
        }
        if !is_empty {
            tokio::task::yield_now().await;
        }
    }
}

/// Sends the frame that the VMM did not take, as soon as it does.
async fn write_frames(frames: Rc<AsyncFd<OwnedFd>>, link: Rc<Link>) -> Result<(), ServeError> {
    let blocked = link.outlet.borrow().blocked();
    loop {
        if link.outlet.borrow().is_free() {
            blocked.notified().await;
            continue;
        }
        let mut ready = frames.writable().await?;
        let is_free = link.outlet.borrow_mut().retry();
        if is_free {
            link.resume();
        } else {
            ready.clear_ready();
        }
    }
}

/// Ends the collecting of records, and drops expired pins, once in a second.
async fn keep(session: &RefCell<Session>) {
    let mut passed = 0_u32;
    loop {
        tokio::time::sleep(COLLECT).await;
        let mut session = session.borrow_mut();
        session.records.collect();
        passed = passed.wrapping_add(1);
        // It looks at each of thousands of pins, which live for a minute at least.
        if passed.is_multiple_of(30) {
            session.pins.expire(Instant::now());
        }
    }
}

/// Returns when the dialer has ended.
async fn watch(dialing: &Dialing) {
    while !dialing.is_lost() {
        tokio::time::sleep(COLLECT).await;
    }
}
