//! The launcher, as the front sees it: requests with their answers, any number at the same time.

use super::{
    failure::Failure,
    request::{Envelope, Request},
    wire::{self, Caps, Frame, Kind, Reader, WireError},
};
use crate::traces;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    collections::HashMap,
    fmt,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::{
    net::UnixStream,
    sync::{mpsc, oneshot},
};
use tokio_util::sync::CancellationToken;

type Pending = HashMap<u64, oneshot::Sender<Frame>>;

#[derive(Clone)]
pub(crate) struct Launcher(Arc<Shared>);

struct Shared {
    next: AtomicU64,
    /// None once the launcher has gone.
    pending: Mutex<Option<Pending>>,
    /// The number of requests is that of the front's concurrency limits.
    out: mpsc::UnboundedSender<Frame>,
}

impl fmt::Debug for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Launcher")
    }
}

/// An answer that is more than a value.
#[derive(Debug)]
pub(crate) struct Reply {
    /// The ID of its request.
    pub(crate) id: u64,
    pub(crate) head: Vec<u8>,
    pub(crate) tail: Vec<u8>,
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// Gives a request up unless it was answered.
struct Asked<'l> {
    launcher: &'l Launcher,
    id: u64,
    is_answered: bool,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            if let Some(pending) = self.launcher.0.pending().as_mut() {
                pending.remove(&self.id);
            }
            // Also where the answer has just arrived: what it opened must be closed.
            self.launcher.tell(Request::Cancel { request: self.id }, Vec::new());
        }
    }
}

impl Launcher {
    /// Talks to the launcher over `socket` from now on. `end` is cancelled when the launcher says that the server ends,
    /// `gone` when it has ended itself.
    pub(crate) fn on(socket: UnixStream, end: CancellationToken, gone: CancellationToken) -> Self {
        let socket = Arc::new(socket);
        let (out, requests) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared { next: AtomicU64::new(1), pending: Mutex::new(Some(HashMap::new())), out });
        tokio::spawn({
            let (socket, gone) = (Arc::clone(&socket), gone.clone());
            async move {
                send(socket, requests).await;
                // Nothing can be asked any more.
                gone.cancel();
            }
        });
        tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                let ended = receive(&shared, Reader::new(socket, Caps::ANSWERS), &end).await;
                tracing::debug!(%ended, "the launcher has ended");
                // Those that wait for an answer fail.
                shared.pending().take();
                gone.cancel();
            }
        });
        Self(shared)
    }

    /// Asks, and returns the value that is answered.
    pub(crate) async fn ask<T: DeserializeOwned>(&self, request: Request) -> Result<T, Failure> {
        let reply = self.ask_with(request, Vec::new()).await?;
        serde_json::from_slice(&reply.head)
            .map_err(|error| Failure::internal(format!("the launcher gave an answer that cannot be read: {error}")))
    }

    pub(crate) async fn ask_with(&self, request: Request, tail: Vec<u8>) -> Result<Reply, Failure> {
        let gone = || Failure::internal("the launcher does not answer");
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        self.0.pending().as_mut().ok_or_else(gone)?.insert(id, sender);
        let mut asked = Asked { launcher: self, id, is_answered: false };
        self.send(id, request, tail)?;
        let frame = receiver.await.map_err(|_| gone())?;
        asked.is_answered = true;
        match frame.kind {
            Kind::Answer => Ok(Reply { id, head: frame.head, tail: frame.tail, descriptors: frame.descriptors }),
            _ => Err(serde_json::from_slice(&frame.head).unwrap_or_else(|_| gone())),
        }
    }

    /// Sends what has no answer.
    pub(crate) fn tell(&self, request: Request, tail: Vec<u8>) {
        // Without a launcher the front ends, and this with it.
        let _ = self.send(0, request, tail);
    }

    fn send(&self, id: u64, request: Request, tail: Vec<u8>) -> Result<(), Failure> {
        let head = encoded(&Envelope { trace: traces::current(), request })?;
        let frame = Frame { tail, ..Frame::new(id, Kind::Request, head) };
        self.0.out.send(frame).map_err(|_| Failure::internal("the launcher has ended"))
    }
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, Option<Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn encoded(value: &impl Serialize) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(value).map_err(|error| Failure::internal(format!("cannot encode a request: {error}")))
}

async fn send(socket: Arc<UnixStream>, mut requests: mpsc::UnboundedReceiver<Frame>) {
    while let Some(frame) = requests.recv().await {
        if wire::write(&socket, &frame).await.is_err() {
            return;
        }
    }
}

async fn receive(shared: &Shared, mut reader: Reader, end: &CancellationToken) -> WireError {
    loop {
        let frame = match reader.next().await {
            Ok(frame) => frame,
            Err(error) => return error,
        };
        if frame.kind == Kind::End {
            end.cancel();
            continue;
        }
        let waiting = shared.pending().as_mut().and_then(|pending| pending.remove(&frame.id));
        if let Some(waiting) = waiting {
            // It may have been given up; its descriptors are closed with it.
            let _ = waiting.send(frame);
        }
    }
}
