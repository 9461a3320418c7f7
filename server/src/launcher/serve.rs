//! One channel: reads requests of a front, does each in a separate task, and sends the answers.
//!
//! What a front can hold at the same time is bounded: requests and their bytes, open sandboxes, answers that it has not read.
//! A front that exceeds a bound waits, and no other channel waits with it.

use super::{SharedLauncher, doors::Open};
use crate::{
    channel::{
        failure::{Failure, Why},
        request::{Envelope, Operation, Request, Setup},
        wire::{self, Caps, Frame, Kind, Reader, WireError},
    },
    traces,
};
use rustix::process::{Resource, getrlimit};
use sandboxvm_manager::Answered;
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
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

/// Requests at the same time. Most of them wait for a guest.
const REQUESTS: usize = 16_384;
/// Bytes of all of them.
const BYTES: u32 = 64 << 20;
/// Operations at the same time, until their answers have been sent; more where the front may have more requests.
const OPERATIONS: usize = 2048;
/// Operations with long answers.
const LONG_OPERATIONS: usize = 12;
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
    operations: Arc<Semaphore>,
    long_operations: Arc<Semaphore>,
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
}

#[derive(Debug)]
struct Outgoing {
    frame: Frame,
    /// Given back when the frame has been sent.
    _permits: Vec<OwnedSemaphorePermit>,
}

/// An answer before it has an ID.
struct Answer {
    head: Vec<u8>,
    tail: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Answer {
    fn of(value: &impl Serialize) -> Result<Self, Failure> {
        let head = serde_json::to_vec(value);
        let head = head.map_err(|error| Failure::internal(format!("cannot encode an answer: {error}")))?;
        Ok(Self { head, tail: Vec::new(), descriptors: Vec::new() })
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
        let operations = OPERATIONS.max(config.concurrent_requests);
        let most_open = OPEN.max(config.streams.saturating_add(config.concurrent_requests)).min(descriptors() / 4);
        let (answers, outgoing) = mpsc::channel(ANSWERS);
        let sending = AbortOnDropHandle::new(tokio::spawn(send(Arc::clone(&socket), outgoing)));
        Arc::new(Self {
            socket,
            answers,
            most_open,
            state: Mutex::new(State { listeners, serving, ..State::default() }),
            requests: Arc::new(Semaphore::new(REQUESTS)),
            bytes: Arc::new(Semaphore::new(BYTES as usize)),
            operations: Arc::new(Semaphore::new(operations.min(Semaphore::MAX_PERMITS))),
            long_operations: Arc::new(Semaphore::new(LONG_OPERATIONS)),
            _sending: sending,
            launcher,
        })
    }

    /// Serves until the front ends or breaks the protocol, and returns which.
    pub(crate) async fn serve(self: &Arc<Self>) -> WireError {
        let mut reader = Reader::new(Arc::clone(&self.socket), Caps::REQUESTS);
        let ended = loop {
            match reader.next().await {
                Ok(frame) if frame.kind == Kind::Request => {
                    if let Err(error) = self.take(frame).await {
                        break error;
                    }
                }
                Ok(_) => break WireError::Malformed("not a request"),
                Err(error) => break error,
            }
        };
        let mut state = self.state();
        for (_, request) in state.under_way.drain() {
            request.abort();
        }
        state.open.clear();
        ended
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
                    open.reached.has_begun();
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
                    Operation::List(_) | Operation::Logs { .. } | Operation::Snapshots(_) | Operation::Templates => {
                        &self.long_operations
                    }
                    _ => &self.operations,
                };
                permits.push(Arc::clone(of_kind).acquire_owned().await.map_err(|_| ended())?);
                Answer::of(&launcher.operate(&secret, operation).await?)?
            }
            Request::Knock(knock) => Answer::of(&launcher.verdict(&knock))?,
            Request::Reach(knock) => {
                let open = Arc::new(launcher.open(&knock).await?);
                self.keep(id, open)?;
                Answer::of(&())?
            }
            Request::Call { handle } | Request::Tell { handle } => {
                let open = self.opened(handle).ok_or_else(not_open)?;
                let Answered { answer, stream, in_use } = open.reached.sandbox.answer(&tail, open.scope).await;
                if let Some(in_use) = in_use {
                    // One is kept; the others are the same.
                    let _ = open.in_use.set(in_use);
                }
                Answer { head: Vec::new(), tail: answer, descriptors: stream.into_iter().collect() }
            }
            Request::Sample { handle } => {
                let open = self.opened(handle).ok_or_else(not_open)?;
                Answer::of(&open.reached.entry.samples.last())?
            }
            Request::Environment { handle } => {
                permits.push(Arc::clone(&self.operations).acquire_owned().await.map_err(|_| ended())?);
                let open = self.opened(handle).ok_or_else(not_open)?;
                Answer::of(&open.reached.sandbox.record().env)?
            }
            Request::FindSigner(claim) => Answer::of(&Arc::clone(launcher).signer(claim).await?)?,
            Request::Runs { id } => Answer::of(&launcher.runs(&id))?,
            Request::Known { ids } => {
                let known: Vec<_> = ids.into_iter().filter(|id| launcher.registry.entry(id).is_some()).collect();
                Answer::of(&known)?
            }
            Request::Measure => Answer::of(&launcher.figures())?,
            Request::Begun { .. } | Request::Release { .. } | Request::Cancel { .. } => Answer::of(&())?,
        };
        let Answer { head, tail, descriptors } = answer;
        Ok(Frame { tail, descriptors, ..Frame::new(id, Kind::Answer, head) })
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

/// The number of descriptors that this process may have. An open sandbox holds two: a front must leave enough for the work of
/// the launcher.
fn descriptors() -> usize {
    getrlimit(Resource::Nofile).current.map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX))
}

async fn send(socket: Arc<UnixStream>, mut outgoing: mpsc::Receiver<Outgoing>) {
    while let Some(Outgoing { frame, _permits }) = outgoing.recv().await {
        if wire::write(&socket, &frame).await.is_err() {
            return;
        }
    }
}
