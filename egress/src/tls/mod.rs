//! TLS that is ended outside the guest, for hosts with a header rule or a secret: the guest's connection ends here, the
//! server's begins here, and each request is checked and changed on its way.
//!
//! ```text
//! guest ── TLS, certificate of the sandbox's authority ──> [head: host, headers, secrets; body: search] ── TLS ──> server
//! ```
//! The connection was allowed, and its name pinned to its address, before anything here runs. What the server answers is
//! not searched: a host with a secret is trusted with it, and can say it to the guest.

mod body;
mod exchange;
mod handshake;
mod http1;
mod http2;
pub mod leaves;
mod outcome;
mod tasks;
pub mod trust;

pub use crate::credentials::verdict::Target;
use crate::session::Session;
use exchange::Exchange;
use handshake::{Protocol, Shaken, shake};
pub use outcome::Outcome;
use std::{cell::RefCell, rc::Rc};
use tokio::io::{AsyncRead, AsyncWrite};

/// Carries a connection to `target`, ending TLS on both sides. `guest` begins with the first byte of the ClientHello.
///
/// It runs in a `LocalSet`. To drop it cuts the connection.
pub async fn carry<G, U>(guest: G, upstream: U, target: Target, session: Rc<RefCell<Session>>) -> Outcome
where
    G: AsyncRead + AsyncWrite + Unpin + 'static,
    U: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (credentials, trust) = {
        let session = session.borrow();
        (Rc::clone(&session.credentials), Rc::clone(&session.trust))
    };
    let Shaken { guest, upstream, protocol } = match shake(guest, upstream, &target.name, &credentials, &trust).await {
        Ok(shaken) => shaken,
        Err(error) => return Outcome::Refused(error.to_string()),
    };
    // The settings can change while the connection is open: each request is handled by those of its time.
    drop(credentials);
    let exchange = Exchange::new(target, session);
    match protocol {
        Protocol::Http1 => http1::carry(guest, upstream, exchange).await,
        Protocol::Http2 => http2::carry(guest, upstream, exchange).await,
    }
}
