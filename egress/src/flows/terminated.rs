//! Carries a connection whose TLS is ended: the ends of a flow as streams that count and limit what passes.

use super::{
    account::{Account, Ended},
    splice::Ends,
};
use crate::{
    rates::Way,
    session::refused,
    stack::guest_stream::GuestStream,
    tls::{self, Outcome, Target},
};
use sandboxvm_egress_policy::{
    name::DomainName,
    policy::{self, Refusal},
};
use sandboxvm_protocol::egress::FlowEnd;
use std::{
    future::Future,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep, timeout},
};

/// How long a guest may take to close a connection that was refused, after it got the alert.
const REFUSED: Duration = Duration::from_secs(2);

/// Carries a connection that named `name`, whose guest has sent `held` already.
pub async fn carry(
    ends: Ends<'_>,
    flow: &policy::Flow,
    name: &DomainName,
    held: Vec<u8>,
    has_server_spoken: bool,
) -> Ended {
    let account = ends.account;
    // A secret goes to the addresses that the resolver gave for the name, and to no others.
    let is_pinned = account.known.borrow().pinned.contains(name)
        || account.session().borrow().pins.names_of(flow.address, Instant::now()).contains(name);
    if !is_pinned {
        return Ended { end: FlowEnd::Reset, refused: Some(refused(Refusal::OtherName.to_string())) };
    }
    if has_server_spoken {
        return Ended { end: FlowEnd::Reset, refused: Some(refused("the server spoke before its client began TLS")) };
    }
    let target = Target { name: name.clone(), address: flow.address, port: flow.port };
    let guest = Guest { stream: ends.guest.clone(), held, account: Rc::clone(account), pauses: Default::default() };
    let upstream = Upstream(Rc::clone(ends.upstream));
    match tls::carry(guest, upstream, target, Rc::clone(account.session())).await {
        Outcome::Closed => {
            ends.guest.close().await;
            FlowEnd::Closed.into()
        }
        Outcome::Reset => FlowEnd::Reset.into(),
        Outcome::Refused(reason) => {
            ends.guest.close().await;
            // The guest reads the alert before the connection is reset.
            let _ = timeout(REFUSED, ends.guest.closed()).await;
            Ended { end: FlowEnd::Reset, refused: Some(refused(reason)) }
        }
    }
}

/// The guest's end.
struct Guest {
    stream: GuestStream,
    /// What it sent before, which is read first.
    held: Vec<u8>,
    account: Rc<Account>,
    /// Out and in.
    pauses: [Option<Pin<Box<Sleep>>>; 2],
}

impl Guest {
    /// Waits until the limit on bytes lets more pass.
    fn poll_wait(&mut self, way: Way, context: &mut Context<'_>) -> Poll<()> {
        let pause = &mut self.pauses[match way {
            Way::Out => 0,
            Way::In => 1,
        }];
        loop {
            if let Some(pause) = pause {
                ready!(pause.as_mut().poll(context));
            }
            *pause = None;
            let Some(wait) = self.account.session().borrow_mut().rates.wait(way) else { return Poll::Ready(()) };
            *pause = Some(Box::pin(sleep(wait)));
        }
    }
}

impl AsyncRead for Guest {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_wait(Way::Out, context));
        let before = buffer.filled().len();
        if this.held.is_empty() {
            ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
        } else {
            let count = this.held.len().min(buffer.remaining());
            buffer.put_slice(&this.held[..count]);
            this.held.drain(..count);
        }
        this.account.passed(Way::Out, buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Guest {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_wait(Way::In, context));
        let count = ready!(Pin::new(&mut this.stream).poll_write(context, bytes))?;
        this.account.passed(Way::In, count);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

/// The server's end, which the flow keeps to reset it.
struct Upstream(Rc<TcpStream>);

impl AsyncRead for Upstream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(context))?;
            match self.0.try_read(buffer.initialize_unfilled()) {
                Ok(count) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Upstream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(context))?;
            match self.0.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(rustix::net::shutdown(&*self.0, rustix::net::Shutdown::Write).map_err(Into::into))
    }
}
