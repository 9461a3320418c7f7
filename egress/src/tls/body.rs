//! The body of a guest's request on its way to the server: each part is searched for placeholders before it is passed on,
//! and a client that waits for `100 Continue` is asked for its body when the server asks for it.

use crate::credentials::placeholders::Scan;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::{
    cell::Cell,
    future::Future,
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    sync::oneshot,
    time::{Sleep, sleep},
};

/// How long the server is waited for before the client is asked for the body anyway (RFC 9110, 10.1.1).
const CONTINUE_AFTER: Duration = Duration::from_secs(2);

/// Length of the parts in which a body that was read is passed on, in bytes.
const PART: usize = 64 * 1024;

/// What was found in a body: the position of a secret. The request is cut off there.
pub(super) type Found = Rc<Cell<Option<usize>>>;

/// A body that is searched.
pub(super) struct Searched {
    body: Content,
    scan: Scan,
    found: Found,
    gate: Gate,
}

enum Content {
    /// On its way from the guest.
    Streamed(Incoming),
    /// It was read, and searched, before the request is forwarded.
    Whole(Bytes),
}

/// The bytes of a body that was read. It counts as long as any part of them is in memory: the connection to the server
/// keeps them until they are sent.
struct Counted {
    bytes: Vec<u8>,
    _count: Arc<()>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Holds a body back.
pub(super) enum Gate {
    Open,
    /// Until the server says `100 Continue`, or for some time.
    Waits(oneshot::Receiver<()>, Pin<Box<Sleep>>),
    /// The server answered without the body.
    Shut,
}

impl Gate {
    /// Returns a gate, and what opens it. It is shut if that is dropped.
    pub(super) fn waiting() -> (Self, oneshot::Sender<()>) {
        let (open, opened) = oneshot::channel();
        (Self::Waits(opened, Box::pin(sleep(CONTINUE_AFTER))), open)
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Self::Waits(opened, clock) = self else {
            return if matches!(self, Self::Open) { Poll::Ready(()) } else { Poll::Pending };
        };
        *self = match (Pin::new(opened).poll(context), clock.as_mut().poll(context)) {
            (Poll::Pending, Poll::Pending) => return Poll::Pending,
            (Poll::Ready(Err(_)), _) => Self::Shut,
            (Poll::Ready(Ok(())), _) | (Poll::Pending, Poll::Ready(())) => Self::Open,
        };
        self.poll(context)
    }
}

impl Searched {
    pub(super) fn new(body: Incoming, scan: Scan, found: Found, gate: Gate) -> Self {
        Self { body: Content::Streamed(body), scan, found, gate }
    }

    /// Reads the whole body. Returns nothing if it has more than `max` bytes. `count` lives as long as the bytes.
    ///
    /// # Errors
    /// When the guest does not send it, or it is cut off.
    pub(super) async fn read(mut self, max: usize, count: Arc<()>) -> io::Result<Option<Bytes>> {
        // Copied: many small parts would take more memory than what is in them.
        let mut bytes = Vec::new();
        while let Some(frame) = self.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            if data.len() > max - bytes.len() {
                return Ok(None);
            }
            bytes.extend_from_slice(&data);
        }
        Ok(Some(Bytes::from_owner(Counted { bytes, _count: count })))
    }

    /// Returns the same body after [`Self::read`].
    pub(super) fn whole(bytes: Bytes, scan: Scan, found: Found) -> Self {
        Self { body: Content::Whole(bytes), scan, found, gate: Gate::Open }
    }

    fn search(&mut self, frame: &Frame<Bytes>) -> io::Result<()> {
        let position = match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => self.scan.feed(data),
            (None, Some(trailers)) => {
                let mut parts = trailers.iter().flat_map(|(name, value)| [name.as_str().as_bytes(), value.as_bytes()]);
                parts.find_map(|part| self.scan.feed(part))
            }
            (None, None) => None,
        };
        if position.is_none() {
            return Ok(());
        }
        self.found.set(position);
        Err(io::Error::other("the body contains the placeholder of a secret"))
    }
}

impl Body for Searched {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        ready!(self.gate.poll(context));
        let body = match &mut self.body {
            Content::Streamed(body) => body,
            Content::Whole(body) if body.is_empty() => return Poll::Ready(None),
            Content::Whole(body) => {
                let part = body.split_to(PART.min(body.len()));
                return Poll::Ready(Some(Ok(Frame::data(part))));
            }
        };
        let Some(frame) = ready!(Pin::new(body).poll_frame(context)) else { return Poll::Ready(None) };
        let frame = frame.map_err(io::Error::other)?;
        self.search(&frame)?;
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            Content::Streamed(body) => body.is_end_stream(),
            Content::Whole(body) => body.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Content::Streamed(body) => body.size_hint(),
            Content::Whole(body) => SizeHint::with_exact(body.len() as u64),
        }
    }
}
