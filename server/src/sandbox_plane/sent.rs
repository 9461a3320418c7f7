//! A connection to a server in a sandbox on which the launcher has sent the request: what this process writes goes nowhere.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, Waker},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

#[derive(Debug)]
pub(super) struct Sent<S> {
    stream: S,
    is_written: bool,
    reader: Option<Waker>,
}

impl<S> Sent<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, is_written: false, reader: None }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Sent<S> {
    /// Nothing before a request was written: to an HTTP client, an answer without a request is an error.
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.is_written {
            self.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: Unpin> AsyncWrite for Sent<S> {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.is_written = true;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, Empty};
    use hyper::{Request, client::conn::http1};
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn an_answer_that_is_there_first_is_that_of_the_request_and_nothing_is_written() {
        let (near, mut far) = tokio::io::duplex(1 << 16);
        far.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n[]").await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(Sent::new(near))).await.unwrap();
        tokio::spawn(connection);
        tokio::task::yield_now().await;
        let request = Request::get("/contexts").body(Empty::<bytes::Bytes>::new()).unwrap();
        let body = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
        assert_eq!(&body[..], b"[]");
        drop(sender);
        let mut written = Vec::new();
        far.read_to_end(&mut written).await.unwrap();
        assert_eq!(written, b"");
    }
}
