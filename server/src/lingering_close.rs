//! Lingering close. When a response is sent before the request body has been read, HTTP/1.1 requires draining the body or
//! closing the connection (RFC 9112, section 9.6). A connection that is closed while the client still sends can cost the
//! client the response. So up to 1 MiB is drained; beyond that, the response says `Connection: close`, and the server keeps
//! reading for five seconds so that the client sees the response.
//!
//! Called for each request by `listen`; never looks at the content of a body.

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::Request,
    http::{
        HeaderValue, StatusCode, Version,
        header::{CONNECTION, EXPECT},
    },
    middleware::Next,
    response::Response,
};
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::timeout;

/// Maximum number of bytes that are drained to keep the connection, if they arrive within [`SHORTLY`].
const LITTLE: usize = 1 << 20;
const SHORTLY: Duration = Duration::from_millis(if cfg!(test) { 20_000 } else { 100 });
/// How long a client has to read its answer and stop sending.
const LINGER: Duration = Duration::from_secs(if cfg!(test) { 10 } else { 5 });

/// Answers a request, then drains its body or closes its connection.
pub(crate) async fn answer(request: Request, next: Next) -> Response {
    if request.version() > Version::HTTP_11 || request.body().is_end_stream() {
        return next.run(request).await;
    }
    let waits = request.headers().contains_key(EXPECT);
    let rest = Arc::new(Mutex::new(Rest { body: Body::empty(), is_begun: false }));
    let request = request.map(|body| {
        lock(&rest).body = body;
        Body::new(Lent(Arc::clone(&rest)))
    });
    let mut response = next.run(request).await;
    // A handler that still holds the body keeps reading it while the response is sent.
    let Some(mut rest) = Arc::into_inner(rest).map(|rest| rest.into_inner().unwrap_or_else(PoisonError::into_inner))
    else {
        return response;
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return response;
    }
    // Reading would ask a client for its body that waits to be asked.
    if waits && !rest.is_begun {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    } else if timeout(SHORTLY, rest.skip(LITTLE)).await != Ok(true) {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        tokio::spawn(async move { timeout(LINGER, rest.skip(usize::MAX)).await });
    }
    response
}

/// The body, and whether the handler has begun to read it.
struct Rest {
    body: Body,
    is_begun: bool,
}

impl Rest {
    /// True when it ended within `most` bytes.
    async fn skip(&mut self, most: usize) -> bool {
        let mut skipped = 0_usize;
        while let Some(Ok(frame)) = self.body.frame().await {
            skipped = skipped.saturating_add(frame.data_ref().map_or(0, Bytes::len));
            if skipped > most {
                return false;
            }
        }
        true
    }
}

fn lock(rest: &Mutex<Rest>) -> std::sync::MutexGuard<'_, Rest> {
    rest.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The body as its handler has it. What it leaves is there when it is dropped.
struct Lent(Arc<Mutex<Rest>>);

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut rest = lock(&self.0);
        rest.is_begun = true;
        // hyper says so no sooner than with the next request where the answer was complete before.
        if rest.body.is_end_stream() {
            return Poll::Ready(None);
        }
        Pin::new(&mut rest.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.0).body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        lock(&self.0).body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use crate::listen;
    use axum::{Router, body::Body, http::StatusCode, routing::post};
    use futures_util::{StreamExt, future::join_all};
    use std::{net::SocketAddr, time::Duration};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
        time::{sleep, timeout},
    };
    use tokio_util::{sync::CancellationToken, task::TaskTracker};

    /// A server that refuses each upload: at once, or after its first piece; or takes it.
    async fn server() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let after_a_piece = async |body: Body| {
            let _ = body.into_data_stream().next().await;
            (StatusCode::INSUFFICIENT_STORAGE, "full")
        };
        let router = Router::new()
            .route("/at-once", post(async || (StatusCode::UNAUTHORIZED, "who?")))
            .route("/after-a-piece", post(after_a_piece))
            .route("/taken", post(async |body: axum::body::Bytes| body.len().to_string()));
        let shared = (None, CancellationToken::new(), TaskTracker::new());
        tokio::spawn(listen::accept(listener, router, listen::limits(10, 10), shared));
        address
    }

    async fn begin(address: SocketAddr, path: &str, length: usize, header: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        send(&mut stream, path, length, header).await;
        stream
    }

    async fn send(stream: &mut TcpStream, path: &str, length: usize, header: &str) {
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{header}\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
    }

    /// One answer, whose body ends with `last`.
    async fn answer(stream: &mut TcpStream, last: &str) -> String {
        let mut answer = Vec::new();
        while !answer.ends_with(last.as_bytes()) {
            let mut bytes = [0; 4096];
            let count = timeout(Duration::from_secs(20), stream.read(&mut bytes)).await.unwrap().unwrap();
            assert_ne!(count, 0, "{}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&bytes[..count]);
        }
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test]
    async fn connections_are_reused_after_a_small_unread_body() {
        let address = server().await;
        let mut stream = begin(address, "/at-once", 600_000, "").await;
        for (path, last, next) in [
            ("/at-once", "who?", "/after-a-piece"),
            ("/after-a-piece", "full", "/taken"),
            ("/taken", "600000", "/taken"),
        ] {
            stream.write_all(&[b'x'; 600_000]).await.unwrap();
            let said = answer(&mut stream, last).await;
            assert!(!said.to_ascii_lowercase().contains("connection: close"), "{path}: {said}");
            send(&mut stream, next, 600_000, "").await;
        }
    }

    #[tokio::test]
    async fn after_much_the_answer_says_that_it_ends_and_there_is_time_to_read_it() {
        let address = server().await;
        let both = [("/at-once", "who?"), ("/after-a-piece", "full")].map(async |(path, last)| {
            let mut stream = begin(address, path, 1 << 30, "").await;
            // More than all buffers on the way hold: the server reads it.
            for _ in 0..16 {
                stream.write_all(&vec![b'x'; 1 << 20]).await.unwrap();
            }
            let said = answer(&mut stream, last).await;
            assert!(said.to_ascii_lowercase().contains("connection: close"), "{said}");
            sleep(Duration::from_millis(500)).await;
            stream.write_all(b"still here").await.unwrap();
            // But not indefinitely.
            let ended = timeout(Duration::from_secs(30), async {
                while stream.write_all(b"x").await.is_ok() {
                    sleep(Duration::from_millis(50)).await;
                }
            });
            ended.await.unwrap();
        });
        join_all(both).await;
    }

    #[tokio::test]
    async fn a_client_that_waits_to_be_asked_is_not_asked_for_nothing() {
        let address = server().await;
        let mut stream = begin(address, "/at-once", 1000, "Expect: 100-continue\r\n").await;
        let said = answer(&mut stream, "who?").await;
        assert!(said.starts_with("HTTP/1.1 401") && said.to_ascii_lowercase().contains("connection: close"), "{said}");

        let mut stream = begin(address, "/taken", 4, "Expect: 100-continue\r\n").await;
        let asked = answer(&mut stream, "\r\n\r\n").await;
        assert!(asked.starts_with("HTTP/1.1 100"), "{asked}");
        stream.write_all(b"body").await.unwrap();
        assert!(answer(&mut stream, "\r\n4").await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn one_that_reads_at_leisure_is_left_its_body() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (told, mut hears) = tokio::sync::mpsc::channel(1);
        let keep = async move |body: Body| {
            tokio::spawn(async move {
                sleep(Duration::from_millis(300)).await;
                let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
                told.send(bytes.len()).await.unwrap();
            });
            "later"
        };
        let router = Router::new().route("/", post(keep));
        tokio::spawn(listen::accept(
            listener,
            router,
            listen::limits(10, 10),
            (None, CancellationToken::new(), TaskTracker::new()),
        ));
        let mut stream = begin(address, "/", 2_000_000, "").await;
        answer(&mut stream, "later").await;
        stream.write_all(&vec![b'x'; 2_000_000]).await.unwrap();
        assert_eq!(hears.recv().await, Some(2_000_000));
    }
}
