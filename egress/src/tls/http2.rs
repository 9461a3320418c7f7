//! HTTP/2: one connection of the guest and one to the server, many streams at the same time. A stream that one side does
//! not read holds back the other side, and no other stream.

use super::{
    body::Searched,
    exchange::{Answer, Exchange},
    outcome::Outcome,
    tasks::Tasks,
};
use hyper::{
    Request, body::Incoming, client::conn::http2 as client, server::conn::http2 as server, service::service_fn,
};
use hyper_util::rt::TokioIo;
use std::{
    future::{Future, poll_fn},
    io,
    pin::Pin,
    rc::Rc,
};
use tokio::io::{AsyncRead, AsyncWrite};

/// Maximum number of streams at the same time.
const STREAMS: u32 = 100;

/// Maximum number of bytes of one stream that are under way to a reader. With [`CONNECTION_WINDOW`] this bounds the memory
/// of a connection.
const STREAM_WINDOW: u32 = 256 * 1024;

/// Maximum number of bytes of all streams that are under way.
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// Maximum number of bytes of a stream that wait to be sent.
const SEND_BUFFER: usize = 16 * 1024;

/// Maximum length of the headers of a request or an answer.
const HEADERS: u32 = 64 * 1024;

/// References to what counts the requests that are under way, without any: those of the connection and of its service.
const IDLE: usize = 2;

/// Carries a connection.
pub(super) async fn carry<G, U>(guest: G, upstream: U, exchange: Exchange) -> Outcome
where
    G: AsyncRead + AsyncWrite + Unpin + 'static,
    U: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let tasks = Tasks::default();
    let connected = client::Builder::new(tasks.starter())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(HEADERS)
        .handshake::<_, Searched>(TokioIo::new(upstream))
        .await;
    let Ok((sender, mut client)) = connected else { return Outcome::Reset };
    let (exchange, under_way) = (Rc::new(exchange), Rc::new(()));
    let service = {
        let under_way = Rc::clone(&under_way);
        service_fn(move |request| {
            let (exchange, sender, under_way) = (Rc::clone(&exchange), sender.clone(), Rc::clone(&under_way));
            async move {
                let answer = answer(&exchange, sender, request).await;
                drop(under_way);
                answer
            }
        })
    };
    let mut server = server::Builder::new(tasks.starter())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(HEADERS)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(guest), service);
    let mut has_ended = false;
    let served = poll_fn(|context| {
        if !has_ended && Pin::new(&mut client).poll(context).is_ready() {
            has_ended = true;
            // The guest gets a GOAWAY. What the server sent is still passed on.
            Pin::new(&mut server).graceful_shutdown();
        }
        Pin::new(&mut server).poll(context)
    });
    // Clients close a connection that they do not need any more without a word.
    if served.await.is_ok() || Rc::strong_count(&under_way) == IDLE { Outcome::Closed } else { Outcome::Reset }
}

async fn answer(
    exchange: &Exchange,
    mut sender: client::SendRequest<Searched>,
    request: Request<Incoming>,
) -> io::Result<Answer> {
    let forwarded = match exchange.forwarded(request).await {
        Ok(forwarded) => forwarded,
        Err(answer) => return Ok(*answer),
    };
    sender.ready().await.map_err(io::Error::other)?;
    match sender.send_request(forwarded.request).await {
        Ok(answer) => Ok(Exchange::answered(answer)),
        Err(error) => exchange.failed(&forwarded.found).ok_or_else(|| io::Error::other(error)),
    }
}
