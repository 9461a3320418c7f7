//! A body that holds something until it has been sent or given up: a place, a connection.

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use std::{
    pin::Pin,
    task::{Context, Poll},
};

pub(crate) struct Held<T> {
    body: Body,
    _holds: T,
}

impl<T: Send + Unpin + 'static> Held<T> {
    /// The same body, with `holds` dropped after it.
    pub(crate) fn body(body: Body, holds: T) -> Body {
        Body::new(Self { body, _holds: holds })
    }
}

impl<T: Unpin> HttpBody for Held<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
