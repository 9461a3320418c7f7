//! Input of processes. A client's requests come one by one and on any connection, so the way to a process's input is kept
//! between them: that of the stream which started it while that lasts, else one made for this alone.

use crate::sandbox_plane::envd::connect::{Code, ConnectError};
use sandboxvm_manager::{AttachSpec, RemoteSandbox, StdinSink, View, WireError};
use std::sync::Arc;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio_util::task::AbortOnDropHandle;

/// The way to a process's input. Writers hold its lock, so that writes are whole and in sequence.
#[derive(Debug)]
pub(super) struct Input {
    /// Where it is known.
    has_terminal: Option<bool>,
    way: Arc<Mutex<Way>>,
}

#[derive(Debug)]
enum Way {
    /// To be made when it is needed.
    Unknown,
    Open {
        sink: StdinSink,
        /// Takes the agent's credit where no client's stream does.
        _credit: Option<AbortOnDropHandle<()>>,
    },
    /// It takes none, or was ended.
    Closed,
}

impl Input {
    /// Of a process that was just started and takes input.
    pub(super) fn open(sink: StdinSink, has_terminal: bool) -> Self {
        Self::of(Way::Open { sink, _credit: None }, Some(has_terminal))
    }

    /// Of one that takes none.
    pub(super) fn none() -> Self {
        Self::of(Way::Closed, Some(false))
    }

    /// For a process that another client started.
    pub(super) fn unknown() -> Self {
        Self::of(Way::Unknown, None)
    }

    pub(super) fn has_terminal(&self) -> Option<bool> {
        self.has_terminal
    }

    /// Makes the way now, so that a process without input is known before any arrives.
    pub(super) async fn prepare(&self, sandbox: &RemoteSandbox, pid: u32) -> Result<(), ConnectError> {
        let mut way = Arc::clone(&self.way).lock_owned().await;
        make(&mut way, sandbox, pid).await
    }

    fn of(way: Way, has_terminal: Option<bool>) -> Self {
        Self { has_terminal, way: Arc::new(Mutex::new(way)) }
    }

    /// Drops the way when the stream that it belonged to has ended, so that its connection ends too. A writer that still
    /// uses it sees its write fail.
    fn let_go(&self) {
        if let Ok(mut way) = self.way.try_lock()
            && matches!(*way, Way::Open { _credit: None, .. })
        {
            *way = Way::Unknown;
        }
    }

    /// Writes all of it, on a new way where the connection of the old one has ended.
    pub(super) async fn write(&self, sandbox: &RemoteSandbox, pid: u32, bytes: Vec<u8>) -> Result<(), ConnectError> {
        let mut way = Arc::clone(&self.way).lock_owned().await;
        let was_open = matches!(*way, Way::Open { .. });
        make(&mut way, sandbox, pid).await?;
        match write_all(way, bytes).await? {
            Written::All => Ok(()),
            // The connection ended since, as it does when its sandbox rests; the process may live.
            Written::Nothing(bytes) if was_open => {
                let mut way = Arc::clone(&self.way).lock_owned().await;
                make(&mut way, sandbox, pid).await?;
                match write_all(way, bytes).await? {
                    Written::All => Ok(()),
                    Written::Nothing(_) | Written::Some => Err(gone(pid)),
                }
            }
            Written::Nothing(_) | Written::Some => Err(gone(pid)),
        }
    }

    /// Ends the input: the process reads end of file.
    pub(super) async fn finish(&self, sandbox: &RemoteSandbox, pid: u32) -> Result<(), ConnectError> {
        let mut way = Arc::clone(&self.way).lock_owned().await;
        make(&mut way, sandbox, pid).await?;
        match std::mem::replace(&mut *way, Way::Closed) {
            Way::Open { sink, .. } => sink.finish().await.map_err(|_| gone(pid)),
            Way::Unknown | Way::Closed => Err(closed(pid)),
        }
    }
}

enum Written {
    All,
    Nothing(Vec<u8>),
    /// Maybe.
    Some,
}

/// Runs in a separate task: a write that has begun must be completed even when its client goes away.
async fn write_all(mut way: OwnedMutexGuard<Way>, bytes: Vec<u8>) -> Result<Written, ConnectError> {
    let write = async move {
        let Way::Open { sink, .. } = &mut *way else { return Written::Nothing(bytes) };
        let written = sink.write(&bytes).await;
        if written.is_ok() {
            return Written::All;
        }
        *way = Way::Unknown;
        // What fits one frame was refused before it was sent.
        let is_unsent = matches!(written, Err(WireError::Closed)) && bytes.len() <= StdinSink::CHUNK;
        if is_unsent { Written::Nothing(bytes) } else { Written::Some }
    };
    tokio::spawn(write).await.map_err(|error| ConnectError::new(Code::Internal, error.to_string()))
}

/// Drops the way to a process's input at the end of the stream that it came with.
#[derive(Debug)]
pub(super) struct Attendance(pub(super) Arc<Input>);

impl Drop for Attendance {
    fn drop(&mut self) {
        self.0.let_go();
    }
}

async fn make(way: &mut Way, sandbox: &RemoteSandbox, pid: u32) -> Result<(), ConnectError> {
    match way {
        Way::Open { .. } => return Ok(()),
        Way::Closed => return Err(closed(pid)),
        Way::Unknown => {}
    }
    let request = AttachSpec { stdin: true, ..AttachSpec::new(pid, View::End) };
    let exec = sandbox.attach(request).await?;
    let mut output = exec.output;
    let credit = tokio::spawn(async move { while let Ok(Some(_)) = output.next().await {} });
    *way = Way::Open { sink: exec.stdin, _credit: Some(AbortOnDropHandle::new(credit)) };
    Ok(())
}

fn gone(pid: u32) -> ConnectError {
    ConnectError::new(Code::NotFound, format!("process with pid {pid} not found: it has ended"))
}

fn closed(pid: u32) -> ConnectError {
    ConnectError::new(
        Code::FailedPrecondition,
        format!("stdin not enabled or closed: process {pid} was started without it, or it was closed"),
    )
}
