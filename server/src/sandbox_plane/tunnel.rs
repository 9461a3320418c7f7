//! Upgraded connections (WebSockets): bytes carried both ways until either side ends, none moved for too long, or the server
//! ends. Meanwhile the client's connection and its place among the streams count.

use crate::{concurrency::Place, listen::connections::InUse};
use axum::http::Extensions;
use std::{
    io,
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional},
    time::{Instant, sleep_until},
};

/// What an upgraded connection holds until its end.
#[derive(Debug, Default)]
pub(crate) struct Holds {
    in_use: Option<Arc<InUse>>,
    _place: Option<Arc<Place>>,
}

impl Holds {
    /// What the request holds.
    pub(crate) fn of(request: &Extensions) -> Self {
        Self { in_use: request.get().cloned(), _place: request.get().cloned() }
    }
}

pub(crate) async fn carry<A, B>(client: A, guest: B, idle: Duration, holds: Holds)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let moved = Arc::new(Mutex::new(Instant::now()));
    let watched = || Arc::clone(&moved);
    let (mut client, mut guest) = (Watched { end: client, moved: watched() }, Watched { end: guest, moved: watched() });
    let ending = async {
        match &holds.in_use {
            Some(in_use) => in_use.ending().cancelled().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        // Either side may end at any moment, and in any way.
        _ = copy_bidirectional(&mut client, &mut guest) => {}
        () = is_idle(&moved, idle) => tracing::debug!("closed an idle upgraded connection"),
        () = ending => {}
    }
}

async fn is_idle(moved: &Mutex<Instant>, idle: Duration) {
    loop {
        let due = *moved.lock().unwrap_or_else(PoisonError::into_inner) + idle;
        if due <= Instant::now() {
            return;
        }
        sleep_until(due).await;
    }
}

/// An end that says when it gave bytes, or took them.
struct Watched<E> {
    end: E,
    moved: Arc<Mutex<Instant>>,
}

impl<E> Watched<E> {
    fn note(&self) {
        *self.moved.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

impl<E: AsyncRead + Unpin> AsyncRead for Watched<E> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = pin!(&mut self.end).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.note();
        }
        read
    }
}

impl<E: AsyncWrite + Unpin> AsyncWrite for Watched<E> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = pin!(&mut self.end).poll_write(cx, bytes);
        if matches!(written, Poll::Ready(Ok(count)) if count > 0) {
            self.note();
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        pin!(&mut self.end).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        pin!(&mut self.end).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        access::keys::KeyId,
        concurrency::{ConcurrencyLimit, NoPlace, Places},
    };
    use axum::http::Request;
    use sandboxvm_manager::SandboxId;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, duplex},
        time::{sleep, timeout},
    };

    #[tokio::test(start_paused = true)]
    async fn bytes_keep_a_tunnel_open_and_silence_closes_it() {
        let ((mut client, near), (far, mut guest)) = (duplex(64), duplex(64));
        let carried = tokio::spawn(carry(near, far, Duration::from_secs(60), Holds::default()));
        let begun = Instant::now();
        for _ in 0..10 {
            sleep(Duration::from_secs(50)).await;
            guest.write_all(b"x").await.unwrap();
            let mut byte = [0];
            client.read_exact(&mut byte).await.unwrap();
        }
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        carried.await.unwrap();
        assert_eq!(begun.elapsed().as_secs(), 560);
    }

    #[tokio::test]
    async fn a_tunnel_keeps_its_place_among_the_streams_until_its_end() {
        let limit = ConcurrencyLimit::of(Places { all: 8, of_one_key: 8, of_one_sandbox: 1 });
        let (key, id) = (KeyId("1".into()), SandboxId::try_from("abcdefgh".to_owned()).unwrap());
        let mut request = Request::new(());
        request.extensions_mut().insert(Arc::new(limit.try_enter(&key, Some(&id)).unwrap()));
        let holds = Holds::of(request.extensions());
        // The request is answered, and its connection upgraded.
        drop(request);
        let ((client, near), (far, guest)) = (duplex(64), duplex(64));
        let carried = tokio::spawn(carry(near, far, Duration::from_secs(3600), holds));
        tokio::task::yield_now().await;
        assert_eq!(limit.try_enter(&key, Some(&id)).unwrap_err(), NoPlace::Sandbox);
        drop((client, guest));
        timeout(Duration::from_secs(20), carried).await.expect("it ends with either side").unwrap();
        drop(limit.try_enter(&key, Some(&id)).unwrap());
    }
}
