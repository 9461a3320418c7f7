//! One channel: reads requests of a front, does each in a separate task, and sends the answers.
//!
//! What a front can hold at the same time is bounded: requests and their bytes, open sandboxes, answers that it has not read.
//! A front that exceeds a bound waits, and no other channel waits with it.

use super::{SharedLauncher, descriptors, doors::Open};
use crate::{
    channel::{
        failure::{Failure, Why},
        request::{Envelope, Operation, Request, Setup},
        wire::{self, Caps, Frame, Kind, Reader, WireError},
    },
    traces,
};
use serde::Serialize;
use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{
    net::UnixStream,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::AbortHandle,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::Instrument;

/// Requests at the same time. Most of them wait for a guest.
const REQUESTS: usize = 16_384;
/// Bytes of all of them.
const BYTES: u32 = 64 << 20;
/// Open sandboxes; more where the front may have more streams.
const OPEN: usize = 16_384;
/// Answers that wait to be sent.
const ANSWERS: usize = 64;

/// What serves a front.
#[derive(Debug)]
pub(crate) struct Channel {
    launcher: SharedLauncher,
    socket: Arc<UnixStream>,
    most_open: usize,
    answers: mpsc::Sender<Outgoing>,
    state: Mutex<State>,
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    /// Fired when nothing can be sent any more.
    is_broken: CancellationToken,
    _sending: AbortOnDropHandle<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Listeners, until the front has them.
    listeners: Vec<OwnedFd>,
    /// Fired when the front serves.
    serving: Option<oneshot::Sender<()>>,
    /// Requests that may be given up.
    under_way: HashMap<u64, AbortHandle>,
    open: HashMap<u64, Arc<Open>>,
    has_ended: bool,
}

#[derive(Debug)]
struct Outgoing {
    frame: Frame,
    /// Given back when the frame has been sent.
    _permits: Vec<OwnedSemaphorePermit>,
}

/// An answer before it has an ID.
pub(super) struct Answer {
    pub(super) head: Vec<u8>,
    pub(super) tail: Vec<u8>,
    pub(super) descriptors: Vec<OwnedFd>,
}

impl Answer {
    pub(super) fn of(value: &impl Serialize) -> Result<Self, Failure> {
        let head = serde_json::to_vec(value);
        let head = head.map_err(|error| Failure::internal(format!("cannot encode an answer: {error}")))?;
        Ok(Self { head, tail: Vec::new(), descriptors: Vec::new() })
    }

    /// A front ends when a frame is too long for it: such an answer is a failure of its request alone.
    pub(super) fn frame(self, id: u64) -> Result<Frame, Failure> {
        let Self { head, tail, descriptors } = self;
        if head.len() > Caps::ANSWERS.head || tail.len() > Caps::ANSWERS.tail {
            let most = Caps::ANSWERS.head >> 20;
            return Err(Failure::invalid(format!("the answer is longer than {most} MiB; ask for it in pages")));
        }
        Ok(Frame { tail, descriptors, ..Frame::new(id, Kind::Answer, head) })
    }
}

impl Channel {
    /// Returns what serves a front at the other end of `socket`. It receives `listeners`, and `serving` fires once it serves.
    pub(crate) fn new(
        launcher: SharedLauncher,
        socket: UnixStream,
        listeners: Vec<OwnedFd>,
        serving: Option<oneshot::Sender<()>>,
    ) -> Arc<Self> {
        let (socket, config) = (Arc::new(socket), &launcher.config);
        let most_open = OPEN.max(config.streams.saturating_add(config.concurrent_requests)).min(descriptors() / 4);
        let (answers, outgoing) = mpsc::channel(ANSWERS);
        let is_broken = CancellationToken::new();
        let sending = AbortOnDropHandle::new(tokio::spawn({
            let (socket, is_broken) = (Arc::clone(&socket), is_broken.clone());
            async move {
                send(socket, outgoing).await;
                is_broken.cancel();
            }
        }));
        Arc::new(Self {
            socket,
            answers,
            most_open,
            state: Mutex::new(State { listeners, serving, ..State::default() }),
            requests: Arc::new(Semaphore::new(REQUESTS)),
            bytes: Arc::new(Semaphore::new(BYTES as usize)),
            is_broken,
            _sending: sending,
            launcher,
        })
    }

    /// Serves until the front ends or breaks the protocol, and returns which.
    pub(crate) async fn serve(self: &Arc<Self>) -> WireError {
        let ended = tokio::select! {
            ended = self.receive() => ended,
            () = self.is_broken.cancelled() => WireError::Closed,
        };
        let mut state = self.state();
        state.has_ended = true;
        for (_, request) in state.under_way.drain() {
            request.abort();
        }
        state.open.clear();
        ended
    }

    async fn receive(self: &Arc<Self>) -> WireError {
        let mut reader = Reader::new(Arc::clone(&self.socket), Caps::REQUESTS);
        loop {
            match reader.next().await {
                Ok(frame) if frame.kind == Kind::Request => {
                    if let Err(error) = self.take(frame).await {
                        return error;
                    }
                }
                Ok(_) => return WireError::Malformed("not a request"),
                Err(error) => return error,
            }
        }
    }

    /// Tells the front to end.
    pub(crate) async fn end(&self) {
        // A front that has ended needs no telling.
        let _ = self.answers.send(Outgoing { frame: Frame::new(0, Kind::End, Vec::new()), _permits: Vec::new() }).await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a request. Waits where the front has as many as it may.
    async fn take(self: &Arc<Self>, frame: Frame) -> Result<(), WireError> {
        let Ok(Envelope { trace, request }) = serde_json::from_slice(&frame.head) else {
            return Err(WireError::Malformed("a request cannot be read"));
        };
        let (id, tail) = (frame.id, frame.tail);
        match request {
            Request::Cancel { request } => {
                let mut state = self.state();
                if let Some(request) = state.under_way.remove(&request) {
                    request.abort();
                }
                state.open.remove(&request);
                return Ok(());
            }
            Request::Release { handle } => {
                let _released = self.state().open.remove(&handle);
                return Ok(());
            }
            Request::Begun { handle } => {
                if let Some(open) = self.opened(handle) {
                    open.has_begun();
                }
                return Ok(());
            }
            _ => {}
        }
        let closed = |_| WireError::Closed;
        let mut permits = vec![Arc::clone(&self.requests).acquire_owned().await.map_err(closed)?];
        let length = u32::try_from(frame.head.len() + tail.len()).unwrap_or(u32::MAX).min(BYTES);
        permits.push(Arc::clone(&self.bytes).acquire_many_owned(length).await.map_err(closed)?);
        let span = traces::continued("launcher", trace.as_deref());
        if let Request::Operate { .. } = request {
            // To its end, whatever becomes of the front: what is half made is completed.
            tokio::spawn(Arc::clone(self).answer(id, request, tail, permits).instrument(span));
            return Ok(());
        }
        let mut state = self.state();
        if state.under_way.contains_key(&id) || state.open.contains_key(&id) {
            return Err(WireError::Malformed("an ID is in use"));
        }
        // Under the lock, so that it is there when the task removes it.
        let task = tokio::spawn(Arc::clone(self).answer(id, request, tail, permits).instrument(span));
        state.under_way.insert(id, task.abort_handle());
        Ok(())
    }

    async fn answer(self: Arc<Self>, id: u64, request: Request, tail: Vec<u8>, mut permits: Vec<OwnedSemaphorePermit>) {
        let has_answer = !matches!(request, Request::Tell { .. });
        let answer = self.work(id, request, tail, &mut permits).await;
        let answer = answer
            .unwrap_or_else(|failure| Frame::new(id, Kind::Failure, serde_json::to_vec(&failure).unwrap_or_default()));
        if has_answer {
            // A front that has ended needs no answer.
            let _ = self.answers.send(Outgoing { frame: answer, _permits: permits }).await;
        }
        self.state().under_way.remove(&id);
    }

    async fn work(
        &self,
        id: u64,
        request: Request,
        tail: Vec<u8>,
        permits: &mut Vec<OwnedSemaphorePermit>,
    ) -> Result<Frame, Failure> {
        let launcher = &self.launcher;
        let answer = match request {
            Request::Setup => self.setup()?,
            Request::Serving => {
                let serving = self.state().serving.take();
                if let Some(serving) = serving {
                    let _ = serving.send(());
                }
                Answer::of(&())?
            }
            Request::Authenticate { secret } => Answer::of(&launcher.key(&secret)?)?,
            Request::Operate { secret, operation } => {
                let of_kind = match operation {
                    Operation::List(_)
                    | Operation::Logs { .. }
                    | Operation::Snapshots(_)
                    | Operation::Templates
                    | Operation::BuildStatus { .. }
                    | Operation::StartBuild { .. } => &launcher.places.long_operations,
                    _ => &launcher.places.operations,
                };
                permits.push(Arc::clone(of_kind).acquire_owned().await.map_err(|_| ended())?);
                // What has begun is completed; what waited for its turn until now has no front any more.
                if self.state().has_ended {
                    return Err(ended());
                }
                Answer::of(&launcher.operate(&secret, operation).await?)?
            }
            Request::Knock(knock) => Answer::of(&launcher.verdict(&knock))?,
            Request::Reach(knock) => {
                let open = Arc::new(launcher.open(&knock, &tail).await?);
                self.keep(id, open)?;
                Answer::of(&())?
            }
            Request::Call { handle } => {
                let open = self.opened(handle).ok_or_else(not_open)?;
                for calls in [&open.calls, open.calls_of_sandbox(), &launcher.places.calls] {
                    permits.push(Arc::clone(calls).acquire_owned().await.map_err(|_| ended())?);
                }
                let (answer, stream) = open.call(&tail).await?;
                Answer { head: Vec::new(), tail: answer, descriptors: stream.into_iter().collect() }
            }
            Request::Tell { handle } => {
                self.opened(handle).ok_or_else(not_open)?.told(&tail);
                Answer::of(&())?
            }
            Request::Sample { handle } => {
                let open = self.opened(handle).ok_or_else(not_open)?;
                Answer::of(&open.whole()?.entry.samples.last())?
            }
            Request::Environment { handle } => {
                permits.push(Arc::clone(&launcher.places.operations).acquire_owned().await.map_err(|_| ended())?);
                let open = self.opened(handle).ok_or_else(not_open)?;
                Answer::of(&open.whole()?.sandbox.record().env)?
            }
            Request::Upload(claim) => {
                let (owner, socket) = Arc::clone(launcher).begin_upload(&claim)?;
                Answer { descriptors: vec![socket], ..Answer::of(&owner)? }
            }
            Request::Content(claim) => {
                let (owner, connection) = Arc::clone(launcher).content(*claim).await?;
                Answer { descriptors: vec![connection], ..Answer::of(&owner)? }
            }
            Request::FindSigner(claim) => {
                let (signer, kept) = Arc::clone(launcher).signer(claim, std::mem::take(permits)).await?;
                permits.extend(kept);
                Answer::of(&signer)?
            }
            Request::Runs { id } => Answer::of(&launcher.runs(&id))?,
            Request::Known { ids } => {
                let known: Vec<_> = ids.into_iter().filter(|id| launcher.registry.entry(id).is_some()).collect();
                Answer::of(&known)?
            }
            Request::Measure => Answer::of(&launcher.figures())?,
            Request::Begun { .. } | Request::Release { .. } | Request::Cancel { .. } => Answer::of(&())?,
        };
        answer.frame(id)
    }

    fn setup(&self) -> Result<Answer, Failure> {
        let listeners = std::mem::take(&mut self.state().listeners);
        if listeners.is_empty() {
            return Err(Failure::internal("the front has its listeners"));
        }
        let setup = Setup { config: self.launcher.config.clone(), tls: self.launcher.tls.clone() };
        Ok(Answer { descriptors: listeners, ..Answer::of(&setup)? })
    }

    /// Keeps a sandbox open, unless its request has been given up.
    fn keep(&self, id: u64, open: Arc<Open>) -> Result<(), Failure> {
        let mut state = self.state();
        if !state.under_way.contains_key(&id) {
            return Err(not_open());
        }
        if state.open.len() >= self.most_open {
            return Err(Failure::new(Why::Full, "too many sandboxes are in use at the same time"));
        }
        state.open.insert(id, open);
        Ok(())
    }

    fn opened(&self, handle: u64) -> Option<Arc<Open>> {
        self.state().open.get(&handle).cloned()
    }
}

fn not_open() -> Failure {
    Failure::internal("the sandbox is not open")
}

fn ended() -> Failure {
    Failure::new(Why::ShuttingDown, "the server is shutting down; try again in a moment")
}

async fn send(socket: Arc<UnixStream>, mut outgoing: mpsc::Receiver<Outgoing>) {
    while let Some(Outgoing { frame, _permits }) = outgoing.recv().await {
        if wire::write(&socket, &frame).await.is_err() {
            return;
        }
    }
}
