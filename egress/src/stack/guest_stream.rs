//! The guest's end of a TCP connection as a stream. What carries a connection uses it either as any other stream, or with
//! closures that read and write smoltcp's buffers directly.

use super::guest_end::GuestEnd;
use std::{
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The guest's end of a TCP connection. Clones are the same end; one of them reads and one writes at a time.
#[derive(Debug, Clone)]
pub struct GuestStream(Rc<GuestEnd>);

impl GuestStream {
    /// Returns the stream of `end`.
    #[must_use]
    pub fn new(end: Rc<GuestEnd>) -> Self {
        Self(end)
    }

    /// Waits until the connection is established.
    ///
    /// # Errors
    /// When the guest resets it.
    pub async fn established(&self) -> io::Result<()> {
        poll_fn(|context| self.0.poll_established(context)).await
    }

    /// Gives bytes of the guest to `take`, once there are some. Returns how many it took, and 0 at the end of the stream.
    ///
    /// # Errors
    /// The error of `take`, or a reset by the guest.
    pub async fn take(&self, mut take: impl FnMut(&[u8]) -> io::Result<usize>) -> io::Result<usize> {
        poll_fn(|context| self.0.poll_take(context, &mut take)).await
    }

    /// Lets `give` write bytes for the guest, once there is room. Returns how many it wrote.
    ///
    /// # Errors
    /// The error of `give`, or a reset by the guest.
    pub async fn give(&self, mut give: impl FnMut(&mut [u8]) -> io::Result<usize>) -> io::Result<usize> {
        poll_fn(|context| self.0.poll_give(context, &mut give)).await
    }

    /// Waits until [`Self::take`] returns without waiting.
    pub async fn readable(&self) {
        poll_fn(|context| self.0.poll_readable(context)).await;
    }

    /// Waits until [`Self::give`] returns without waiting.
    pub async fn writable(&self) {
        poll_fn(|context| self.0.poll_writable(context)).await;
    }

    /// Waits until both sides have closed the connection.
    pub async fn closed(&self) {
        poll_fn(|context| self.0.poll_closed(context)).await;
    }

    /// Waits until the connection is no more, as after a reset, and all that the guest sent on it was taken.
    pub async fn gone(&self) {
        poll_fn(|context| self.0.poll_gone(context)).await;
    }

    /// Sends the end of the data to the guest.
    pub async fn close(&self) {
        poll_fn(|context| self.0.poll_close(context)).await;
    }

    /// Ends the connection by a reset.
    pub fn abort(&self) {
        self.0.abort();
    }
}

impl AsyncRead for GuestStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let taken = self.0.poll_take(context, |bytes| {
            let len = bytes.len().min(buffer.remaining());
            buffer.put_slice(&bytes[..len]);
            Ok(len)
        });
        ready!(taken)?;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for GuestStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.poll_give(context, |room| {
            let len = room.len().min(bytes.len());
            room[..len].copy_from_slice(&bytes[..len]);
            Ok(len)
        })
    }

    /// What is written is sent as soon as the guest takes it.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_close(context).map(Ok)
    }
}
