//! A process in a sandbox, as the host sees it: its standard input as a sink that waits for credit,
//! its output as a stream that stalls the process when it is not read, and signals beside both.
//!
//! Memory is bounded by construction: at most one frame of 64 KiB is held in each direction,
//! whatever the process does.

use crate::{
    guest::{
        connection::{
            agent::{AgentConnection, AgentError, refused},
            courier::Use,
            route::{EndLog, Route},
        },
        error::ExecError,
        process::{attach_spec::AttachSpec, spec::ProcessSpec},
    },
    home::directory::SandboxDirectory,
    vmm::wire::{FrameReader, WireError},
};
use sandboxvm_protocol::{
    agent::{
        AgentMessage, ExitStatus, HostMessage, STDIN_WINDOW, SignalNumber, TerminalSize, WIRE,
        process::{Attached, View},
    },
    frame::{FrameKind, MAX_STREAM_BODY},
};
use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};
use tokio::{
    io::AsyncWriteExt,
    net::unix::{OwnedReadHalf, OwnedWriteHalf},
    sync::{Mutex, Semaphore},
};

/// A process that was started, or that a client attached to. The parts are independent: input and
/// output may be moved to different tasks.
#[derive(Debug)]
pub struct Exec {
    /// PID of the process in the guest.
    pub pid: u32,
    /// Its standard input. Closed from the start if the request did not ask for it.
    pub stdin: StdinSink,
    /// Its output and its end.
    pub output: OutputStream,
    /// Its signals and the size of its terminal.
    pub control: ProcessControl,
}

/// An event of a process.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// The process wrote to stdout, or to its terminal.
    Stdout(Vec<u8>),
    /// The process wrote to stderr.
    Stderr(Vec<u8>),
    /// This number of bytes is missing from its output at this place: they were written while no
    /// client read them, and are not kept any more. Only for processes whose output is kept.
    Dropped(u64),
    /// All output that is kept was returned, and the process keeps running. Nothing follows. Only
    /// for [`View::Kept`].
    RunsOn,
    /// The process ended. Nothing follows.
    Exited(ExitStatus),
}

impl Exec {
    pub(crate) async fn start(sandbox: &dyn Route, spec: ProcessSpec) -> Result<Self, ExecError> {
        let (connection, first) = sandbox.request(spec.into_message()).await?;
        let mut exec = Self::started(connection, &first)?;
        exec.output.log_end = Some(sandbox.end_log(exec.pid));
        Ok(exec)
    }

    /// Starts a process in a machine that is not a sandbox yet and has no audit log.
    pub(crate) async fn start_unlogged(directory: &SandboxDirectory, spec: ProcessSpec) -> Result<Self, AgentError> {
        let request = spec.into_message();
        let (connection, first) = AgentConnection::request(directory, None, &request).await?;
        Self::started(connection, &first)
    }

    fn started(connection: AgentConnection, first: &AgentMessage) -> Result<Self, AgentError> {
        let AgentMessage::Started { pid } = *first else {
            return Err(WireError::Unexpected("answer to a request to run a process").into());
        };
        Ok(Self::on(connection, pid, Credit::new(STDIN_WINDOW), View::Attend))
    }

    pub(crate) async fn attach(sandbox: &dyn Route, spec: AttachSpec) -> Result<Self, ExecError> {
        let (connection, first) = sandbox.request(HostMessage::Attach(spec.into())).await?;
        let credit = match first {
            AgentMessage::Attached(Attached { stdin_credit: None }) => Credit::none(),
            AgentMessage::Attached(Attached { stdin_credit: Some(bytes) }) if bytes <= STDIN_WINDOW => {
                Credit::new(bytes)
            }
            _ => return Err(WireError::Unexpected("answer to a request to attach to a process").into()),
        };
        Ok(Self::on(connection, spec.pid, credit, spec.view))
    }

    fn on(connection: AgentConnection, pid: u32, credit: Credit, view: View) -> Self {
        let writer = Arc::new(Mutex::new(connection.writer));
        let credit = Arc::new(credit);
        Self {
            pid,
            stdin: StdinSink { writer: Arc::clone(&writer), credit: Arc::clone(&credit) },
            output: OutputStream {
                reader: connection.reader,
                _in_use: connection.in_use,
                credit,
                view,
                ended: false,
                log_end: None,
                may_tell_limits: true,
            },
            control: ProcessControl { writer },
        }
    }
}

/// The standard input of a process.
#[derive(Debug)]
pub struct StdinSink {
    writer: Arc<Mutex<OwnedWriteHalf>>,
    credit: Arc<Credit>,
}

impl StdinSink {
    /// Maximum number of bytes that are sent as a whole, or not at all where [`Self::write`] fails with
    /// [`WireError::Closed`].
    pub const CHUNK: usize = MAX_STREAM_BODY;

    /// Sends all of `bytes`, as fast as the process reads them.
    ///
    /// # Errors
    /// When the process or the connection has ended. A process that ends without reading all its
    /// input is not a failure of the caller, so most callers just stop.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        for chunk in bytes.chunks(MAX_STREAM_BODY) {
            self.credit.take(chunk.len()).await?;
            let header = WIRE.header(FrameKind::Stdin, chunk.len())?;
            let mut writer = self.writer.lock().await;
            writer.write_all(&header).await?;
            writer.write_all(chunk).await?;
        }
        Ok(())
    }

    /// Ends the input: the process reads end of file.
    ///
    /// # Errors
    /// Like [`Self::write`].
    pub async fn finish(self) -> Result<(), WireError> {
        AgentConnection::send(&mut *self.writer.lock().await, &HostMessage::StdinEof).await
    }
}

/// The output of a process. If it is not read, the process stalls once the buffers in between are
/// full.
#[derive(Debug)]
pub struct OutputStream {
    reader: FrameReader<OwnedReadHalf>,
    _in_use: Option<Use>,
    credit: Arc<Credit>,
    view: View,
    ended: bool,
    /// Set for the caller that started the process.
    log_end: Option<EndLog>,
    /// False after the first report: a guest may add only one line to the log for this.
    may_tell_limits: bool,
}

impl OutputStream {
    /// Returns the next event of the process, or `None` after [`Output::Exited`] and
    /// [`Output::RunsOn`]. Cancel safe.
    ///
    /// # Errors
    /// When the connection ends before the process does, or the guest breaks the protocol.
    pub async fn next(&mut self) -> Result<Option<Output>, AgentError> {
        if self.ended {
            return Ok(None);
        }
        let next = self.read().await;
        if matches!(next, Ok(Output::Exited(_) | Output::RunsOn) | Err(_)) {
            self.ended = true;
            self.credit.close();
            if let (Some(log), Ok(Output::Exited(status))) = (self.log_end.take(), &next) {
                log.ended(*status);
            }
        }
        next.map(Some)
    }

    async fn read(&mut self) -> Result<Output, AgentError> {
        loop {
            let frame = self.reader.next().await?;
            match frame.kind {
                FrameKind::Stdout => return Ok(Output::Stdout(frame.body)),
                FrameKind::Stderr => return Ok(Output::Stderr(frame.body)),
                FrameKind::Stdin => return Err(WireError::Unexpected("standard input").into()),
                FrameKind::Message => {}
            }
            match WIRE.decode_message(&frame.body).map_err(WireError::from)? {
                AgentMessage::StdinCredit { bytes } => self.credit.give(bytes)?,
                AgentMessage::OutputDropped { bytes } => return Ok(Output::Dropped(bytes)),
                AgentMessage::RunsOn if self.view == View::Kept => return Ok(Output::RunsOn),
                AgentMessage::LimitsHit(hit) if self.may_tell_limits => {
                    self.may_tell_limits = false;
                    if let Some(log) = &self.log_end {
                        log.limits_hit(hit);
                    }
                }
                AgentMessage::Exited(status) => return Ok(Output::Exited(status)),
                AgentMessage::Failed(failure) => return Err(refused(failure.kind, &failure.message)),
                _ => return Err(WireError::Unexpected("message while a process runs").into()),
            }
        }
    }
}

impl Drop for OutputStream {
    fn drop(&mut self) {
        // A task that waits for credit would wait indefinitely, because credit is not read any
        // more.
        self.credit.close();
    }
}

/// Sends signals to a process, and the size of its terminal.
#[derive(Debug, Clone)]
pub struct ProcessControl {
    writer: Arc<Mutex<OwnedWriteHalf>>,
}

impl ProcessControl {
    /// Sends a signal to the process group.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn signal(&self, signal: SignalNumber) -> Result<(), WireError> {
        self.send(&HostMessage::Signal(signal)).await
    }

    /// Changes the size of the terminal.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn resize(&self, size: TerminalSize) -> Result<(), WireError> {
        self.send(&HostMessage::Resize(size)).await
    }

    async fn send(&self, message: &HostMessage) -> Result<(), WireError> {
        AgentConnection::send(&mut *self.writer.lock().await, message).await
    }
}

/// The number of bytes of standard input that may be sent.
#[derive(Debug)]
struct Credit {
    available: Semaphore,
    /// Bytes that were sent and not credited yet, so that a guest cannot credit more than it
    /// received.
    under_way: AtomicU32,
}

impl Credit {
    /// Creates credit of `available` bytes of the window. Another client sent the rest before, and
    /// it is credited as the process reads it.
    fn new(available: u32) -> Self {
        let under_way = STDIN_WINDOW.saturating_sub(available);
        Self { available: Semaphore::new(available as usize), under_way: AtomicU32::new(under_way) }
    }

    /// Creates credit for a process to whose input this client may not write.
    fn none() -> Self {
        let credit = Self { available: Semaphore::new(0), under_way: AtomicU32::new(0) };
        credit.close();
        credit
    }

    async fn take(&self, bytes: usize) -> Result<(), WireError> {
        // Chunks have at most MAX_STREAM_BODY bytes, a quarter of the window.
        let bytes = u32::try_from(bytes).map_err(|_| WireError::Unexpected("chunk size"))?;
        let permit = self.available.acquire_many(bytes).await.map_err(|_| WireError::Closed)?;
        self.under_way.fetch_add(bytes, Ordering::Relaxed);
        permit.forget();
        Ok(())
    }

    fn give(&self, bytes: u32) -> Result<(), WireError> {
        self.under_way
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |under_way| under_way.checked_sub(bytes))
            .map_err(|_| WireError::Unexpected("credit for input that was never sent"))?;
        self.available.add_permits(bytes as usize);
        Ok(())
    }

    fn close(&self) {
        self.available.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{audit::Trail, home::layout::Home};
    use sandboxvm_protocol::agent::{MAX_AGENT_MESSAGE, limits::LimitsHit};
    use std::time::Duration;
    use tokio::{net::UnixStream, time::timeout};

    /// Returns the result of a guest that sends these messages while a process runs, and the number
    /// of lines about limits in the log.
    async fn said(messages: &[AgentMessage]) -> (Result<Option<Output>, AgentError>, usize) {
        let root = tempfile::tempdir().unwrap();
        let trail = Trail::of(&Home::open(root.path()).unwrap(), &"abcdefgh".to_owned().try_into().unwrap());
        let (ours, mut guest) = UnixStream::pair().unwrap();
        let (reader, writer) = ours.into_split();
        let connection =
            AgentConnection { reader: FrameReader::new(reader, WIRE, MAX_AGENT_MESSAGE), writer, in_use: None };
        let mut exec = Exec::on(connection, 301, Credit::new(STDIN_WINDOW), View::Attend);
        exec.output.log_end = Some(EndLog::Trail(trail.clone(), 301));
        let mut bytes = Vec::new();
        for message in messages {
            WIRE.append_message(&mut bytes, message, MAX_AGENT_MESSAGE).unwrap();
        }
        guest.write_all(&bytes).await.unwrap();
        let next = exec.output.next().await;
        let log = std::fs::read_to_string(trail.path()).unwrap_or_default();
        (next, log.matches("\"event\":\"limits_hit\"").count())
    }

    #[tokio::test]
    async fn limits_are_logged_once_per_process() {
        let hit = AgentMessage::LimitsHit(LimitsHit { processes_refused: 3, ..LimitsHit::default() });
        let exited = AgentMessage::Exited(ExitStatus::Code(1));
        let (next, lines) = said(&[hit.clone(), exited.clone()]).await;
        assert_eq!((next.unwrap(), lines), (Some(Output::Exited(ExitStatus::Code(1))), 1));
        let (next, lines) = said(&[hit.clone(), hit, exited]).await;
        assert!(matches!(next, Err(AgentError::Wire(WireError::Unexpected(_)))) && lines == 1, "{next:?} {lines}");
    }

    #[tokio::test]
    async fn credit_bounds_sent_input_and_cannot_be_forged() {
        let credit = Credit::new(STDIN_WINDOW);
        for _ in 0..4 {
            credit.take(MAX_STREAM_BODY).await.unwrap();
        }
        assert!(timeout(Duration::from_millis(20), credit.take(1)).await.is_err(), "the window is full");
        credit.give(10).unwrap();
        credit.take(10).await.unwrap();
        assert!(credit.give(STDIN_WINDOW + 1).is_err());
        credit.give(STDIN_WINDOW).unwrap();
        assert!(credit.give(1).is_err());
    }

    #[tokio::test]
    async fn input_of_another_client_is_credited_too() {
        let credit = Credit::new(10);
        credit.take(10).await.unwrap();
        assert!(credit.give(STDIN_WINDOW + 1).is_err());
        credit.give(STDIN_WINDOW).unwrap();
        assert!(credit.give(1).is_err());
        assert!(Credit::none().take(1).await.is_err() && Credit::none().give(1).is_err());
    }

    #[tokio::test]
    async fn waiting_writer_is_woken_by_the_end() {
        let credit = Arc::new(Credit::new(STDIN_WINDOW));
        credit.take(STDIN_WINDOW as usize).await.unwrap();
        let waiting = tokio::spawn({
            let credit = Arc::clone(&credit);
            async move { credit.take(1).await }
        });
        tokio::task::yield_now().await;
        credit.close();
        assert!(matches!(waiting.await.unwrap(), Err(WireError::Closed)));
    }
}
