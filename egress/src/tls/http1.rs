//! HTTP/1.1: one connection of the guest and one to the server, one request after another. After a `101` the bytes are
//! passed on as they come.

use super::{
    body::Searched,
    exchange::{Answer, Exchange},
    outcome::Outcome,
};
use hyper::{
    Request, StatusCode, body::Incoming, client::conn::http1 as client, client::conn::http1::SendRequest,
    server::conn::http1 as server, service::service_fn,
};
use hyper_util::rt::TokioIo;
use std::{
    cell::Cell,
    future::{Future, poll_fn},
    io,
    pin::Pin,
    rc::Rc,
    task::Poll,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy_bidirectional_with_sizes},
    time::timeout,
};

/// Maximum length of a head, and of what is read ahead of a body, in bytes.
const BUFFER: usize = 64 * 1024;

/// Maximum number of headers.
const HEADERS: usize = 256;

/// Size of each buffer after a `101`.
const UPGRADED_BUFFER: usize = 16 * 1024;

/// How long the end of a connection may take.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// Carries a connection.
pub(super) async fn carry<G, U>(guest: G, upstream: U, exchange: Exchange) -> Outcome
where
    G: AsyncRead + AsyncWrite + Unpin + 'static,
    U: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let connected = client::Builder::new()
        .preserve_header_case(true)
        .max_buf_size(BUFFER)
        .max_headers(HEADERS)
        .handshake::<_, Searched>(TokioIo::new(upstream))
        .await;
    let Ok((sender, mut client)) = connected else { return Outcome::Reset };
    let requests = Rc::new(Requests { exchange, sender: Cell::new(Some(sender)), upgraded: Cell::new(false) });
    let service = {
        let requests = Rc::clone(&requests);
        service_fn(move |request| -> Pin<Box<dyn Future<Output = io::Result<Answer>>>> {
            let requests = Rc::clone(&requests);
            Box::pin(async move { requests.answer(request).await })
        })
    };
    let mut server = server::Builder::new()
        .preserve_header_case(true)
        .max_buf_size(BUFFER)
        .max_headers(HEADERS)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(guest), service);
    let mut ended = None;
    let served = poll_fn(|context| {
        if ended.is_none()
            && let Poll::Ready(result) = client.poll_without_shutdown(context)
        {
            ended = Some(result.is_ok());
            if !requests.upgraded.get() {
                // What the server sent is still passed on. There is no next request.
                Pin::new(&mut server).graceful_shutdown();
            }
        }
        server.poll_without_shutdown(context)
    });
    let is_served = served.await.is_ok();
    if requests.upgraded.get() && is_served {
        if ended.is_none()
            && timeout(CLOSE_WITHIN, poll_fn(|context| client.poll_without_shutdown(context))).await.is_err()
        {
            return Outcome::Reset;
        }
        let (client, server) = (client.into_parts(), server.into_parts());
        return pass_on(
            server.io.into_inner(),
            server.read_buf.to_vec(),
            client.io.into_inner(),
            client.read_buf.to_vec(),
        )
        .await;
    }
    let (mut guest, mut upstream) = (server.into_parts().io.into_inner(), client.into_parts().io.into_inner());
    // Either end can be gone already.
    let _ = timeout(CLOSE_WITHIN, guest.shutdown()).await;
    let _ = timeout(CLOSE_WITHIN, upstream.shutdown()).await;
    if is_served { Outcome::Closed } else { Outcome::Reset }
}

struct Requests {
    exchange: Exchange,
    /// Taken while a request is under way.
    sender: Cell<Option<SendRequest<Searched>>>,
    upgraded: Cell<bool>,
}

impl Requests {
    async fn answer(&self, request: Request<Incoming>) -> io::Result<Answer> {
        let forwarded = match self.exchange.forwarded(request).await {
            Ok(forwarded) => forwarded,
            Err(answer) => return Ok(*answer),
        };
        let mut sender = self.sender.take().ok_or_else(|| io::Error::other("a request is under way"))?;
        sender.ready().await.map_err(io::Error::other)?;
        let answer = sender.send_request(forwarded.request).await;
        self.sender.set(Some(sender));
        match answer {
            Ok(answer) if answer.status() == StatusCode::SWITCHING_PROTOCOLS => {
                if !forwarded.prepared.upgrades {
                    return Err(io::Error::other("the server changed to a protocol that was not asked for"));
                }
                self.upgraded.set(true);
                Ok(Exchange::answered(answer))
            }
            Ok(answer) => Ok(Exchange::answered(answer)),
            Err(error) => self.exchange.failed(&forwarded.found).ok_or_else(|| io::Error::other(error)),
        }
    }
}

/// Passes bytes on in both ways, first those that were read already.
async fn pass_on<G, U>(mut guest: G, from_guest: Vec<u8>, mut upstream: U, from_upstream: Vec<u8>) -> Outcome
where
    G: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let passed = async {
        upstream.write_all(&from_guest).await?;
        guest.write_all(&from_upstream).await?;
        upstream.flush().await?;
        guest.flush().await?;
        copy_bidirectional_with_sizes(&mut guest, &mut upstream, UPGRADED_BUFFER, UPGRADED_BUFFER).await
    };
    if passed.await.is_ok() { Outcome::Closed } else { Outcome::Reset }
}
