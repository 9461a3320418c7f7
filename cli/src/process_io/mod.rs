//! Attending a process in a sandbox: connects its streams to ours and passes our signals and terminal size on until the
//! process has ended and its output is written.

pub(crate) mod detach_keys;
pub(crate) mod signals;
pub(crate) mod terminal;

use crate::{
    failure::Failure,
    process_io::{detach_keys::DetachKeys, signals::Signals, terminal::RawMode},
    stdio::{self, OutputEnd, OutputSink, Stream, WriteError},
};
use rustix::io::Errno;
use sandboxvm_manager::{
    AgentError, AttachSpec, Exec, ExitStatus, Output, OutputStream, ProcessControl, ProcessSpec, Sandbox, SignalNumber,
    StdinSink,
};
use std::time::Duration;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until, timeout},
};

/// The agent enforces the timeout. This long after it, the CLI stops waiting for the agent.
const TIMEOUT_GRACE: Duration = Duration::from_secs(10);
/// The timeout of the agent starts with the process, which a slow guest may take this long to start.
const START_GRACE: Duration = Duration::from_secs(60);
/// How long a process may keep running after our stdout has lost its reader.
const PIPE_GRACE: Duration = Duration::from_secs(2);
/// Maximum number of reads from the terminal that are queued for the process.
const TYPED_AHEAD: usize = 16;
/// How long the process has to read the input before the keys for detaching.
const LAST_TYPED: Duration = Duration::from_millis(500);
const SIGHUP: u8 = 1;
const SIGPIPE: u8 = 13;
const SIGTERM: u8 = 15;
const SIGKILL: u8 = 9;
const TIMED_OUT: u8 = 124;

/// How to attend.
#[derive(Debug)]
pub(crate) struct Attendance {
    /// Pass stdin to the process.
    pub(crate) interactive: bool,
    /// Stdin is a terminal, which is set to raw mode.
    pub(crate) raw: bool,
    /// The process has a terminal, whose size follows ours.
    pub(crate) tty: bool,
    /// Timeout that the agent enforces.
    pub(crate) timeout: Option<Duration>,
    /// What happens to the process when the CLI leaves.
    pub(crate) leaving: Leaving,
}

/// What happens to a process when the CLI leaves before it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// The CLI started it, and it ends.
    EndsIt,
    /// It was already running, and keeps running.
    LetsItBe,
}

impl Attendance {
    /// Returns how to attend a process whose output is only shown.
    pub(crate) fn looking_on() -> Self {
        Self { interactive: false, raw: false, tty: false, timeout: None, leaving: Leaving::LetsItBe }
    }
}

/// How attending a process that another command started has ended, each with an exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The process ended, or everything that was asked for was shown.
    Ended(u8),
    /// The CLI left.
    Left(u8),
}

/// Starts a process, attends it until it ends, and returns the exit code. Calls `ended` when the process has ended; its last
/// output may not be written yet.
pub(crate) async fn run(
    sandbox: &Sandbox,
    spec: ProcessSpec,
    attendance: &Attendance,
    signals: &mut Signals,
    ended: impl FnOnce(),
) -> Result<u8, Failure> {
    let give_up = attendance.timeout.map(|limit| Instant::now() + limit + START_GRACE);
    let exec = tokio::select! {
        exec = sandbox.exec(spec) => exec.map_err(|error| Failure::of_exec(&error))?,
        (number, _) = signals.next() => return Ok(128 + number.get()),
        () = at(give_up) => return Ok(timed_out(attendance)),
    };
    match attend(sandbox, exec, attendance, signals, ended).await? {
        End::Exited(ExitStatus::TimedOut) | End::GivenUp(TIMED_OUT) => Ok(timed_out(attendance)),
        End::Exited(status) => {
            // A sandbox that ends gracefully ends its processes first.
            if let (ExitStatus::Signal(_), Some(how)) = (status, sandbox.interruption()) {
                let record = sandbox.record();
                let name = record.name.as_ref().map_or_else(|| record.id.to_string(), ToString::to_string);
                Failure::new(format_args!("sandbox {name} {how}")).report();
            }
            Ok(status.shell_code())
        }
        End::GivenUp(code) => Ok(code),
        End::RunsOn => Err(Failure::new("the output of the process ended without an exit status")),
    }
}

/// Attends a process that another command started.
pub(crate) async fn attach(
    sandbox: &Sandbox,
    spec: AttachSpec,
    attendance: &Attendance,
    signals: &mut Signals,
) -> Result<Outcome, Failure> {
    let exec = tokio::select! {
        exec = sandbox.attach(spec) => exec?,
        (number, _) = signals.next() => return Ok(Outcome::Left(128 + number.get())),
    };
    Ok(match attend(sandbox, exec, attendance, signals, || ()).await? {
        End::Exited(status) => Outcome::Ended(status.shell_code()),
        End::RunsOn => Outcome::Ended(0),
        End::GivenUp(code) => Outcome::Left(code),
    })
}

/// Attends a process until it has ended or the CLI leaves, and all of its output is written.
async fn attend(
    sandbox: &Sandbox,
    exec: Exec,
    attendance: &Attendance,
    signals: &mut Signals,
    ended: impl FnOnce(),
) -> Result<End, Failure> {
    let raw = if attendance.raw { Some(RawMode::enter()?) } else { None };
    let Exec { stdin, output, control, .. } = exec;
    let (tell, left) = oneshot::channel();
    let keys = (attendance.raw && attendance.leaving == Leaving::LetsItBe).then(|| (DetachKeys::default(), tell));
    let stdin = attendance.interactive.then(|| tokio::spawn(pass_stdin(stdin, keys)));
    let (sink, written) = stdio::output();
    let give_up = attendance.timeout.map(|limit| (Instant::now() + limit + TIMEOUT_GRACE, TIMED_OUT));
    let leaving = attendance.leaving;
    let mut attending = Attending { output, control, sink, written, writing: true, give_up, leaving, left: Some(left) };
    let end = attending.attend(attendance.tty, signals).await;
    ended();
    if let Some(stdin) = stdin {
        stdin.abort();
    }
    let Attending { sink, mut written, writing, .. } = attending;
    drop(sink);
    if writing {
        tokio::select! {
            result = written.wait() => refuse_write_error(result)?,
            // The user does not wait for the reader of our output.
            (number, _) = signals.next() => return Ok(End::GivenUp(128 + number.get())),
        }
    }
    drop(raw);
    match end {
        Ok(end) => Ok(end),
        Err(Trouble::Lost(error)) => Err(Failure::of_exec(&sandbox.explain(error).await)),
        Err(Trouble::Failed(failure)) => Err(failure),
    }
}

fn timed_out(attendance: &Attendance) -> u8 {
    let limit = humantime::format_duration(attendance.timeout.unwrap_or_default());
    Failure::new(format_args!("the command was killed after its timeout of {limit}")).report();
    TIMED_OUT
}

/// How attending ended.
enum End {
    Exited(ExitStatus),
    /// The retained output was shown, and no more was asked for.
    RunsOn,
    /// The CLI left, with this exit code.
    GivenUp(u8),
}

/// Why attending failed.
enum Trouble {
    Lost(AgentError),
    Failed(Failure),
}

struct Attending {
    output: OutputStream,
    control: ProcessControl,
    sink: OutputSink,
    written: OutputEnd,
    /// False when our streams accept no more output.
    writing: bool,
    /// When to stop attending, and with which exit code.
    give_up: Option<(Instant, u8)>,
    leaving: Leaving,
    /// Resolves when the user typed the keys for detaching; `None` when the keys can no longer be typed.
    left: Option<oneshot::Receiver<()>>,
}

impl Attending {
    async fn attend(&mut self, tty: bool, signals: &mut Signals) -> Result<End, Trouble> {
        let mut resized = signal(SignalKind::window_change()).map_err(|error| Trouble::Failed(Failure::from(error)))?;
        let mut pending: Option<(Stream, Vec<u8>)> = None;
        let hung_up = stdio::hung_up();
        tokio::pin!(hung_up);
        loop {
            let mut reader_left = false;
            tokio::select! {
                next = self.output.next(), if pending.is_none() => match next.map_err(Trouble::Lost)? {
                    Some(Output::Stdout(bytes)) => pending = Some((Stream::Stdout, bytes)),
                    Some(Output::Stderr(bytes)) => pending = Some((Stream::Stderr, bytes)),
                    Some(Output::Dropped(bytes)) => say_dropped(bytes),
                    Some(Output::RunsOn) => return Ok(End::RunsOn),
                    Some(Output::Exited(status)) => return Ok(End::Exited(status)),
                    None => {
                        let failure = Failure::new("the output of the process ended without an exit status");
                        return Err(Trouble::Failed(failure));
                    }
                },
                room = self.sink.room(), if pending.is_some() => {
                    // Without a reader the rest of the output is dropped.
                    if let (Some(room), Some(chunk)) = (room, pending.take()) {
                        room.send(chunk);
                    }
                },
                result = self.written.wait(), if self.writing => {
                    self.writing = false;
                    refuse_write_error(result).map_err(Trouble::Failed)?;
                    reader_left = true;
                },
                () = &mut hung_up, if self.writing => reader_left = true,
                (number, before) = signals.next() => {
                    if let Some(end) = self.pass_signal(number.get(), before).await {
                        return Ok(end);
                    }
                },
                // A connection that is gone shows in the output.
                Some(()) = resized.recv(), if tty => { let _ = self.control.resize(terminal::size()).await; },
                () = asked_to_leave(&mut self.left) => return Ok(End::GivenUp(0)),
                () = at(self.give_up.map(|(at, _)| at)) => {
                    // Closing the connection kills the process group too, if the agent still runs.
                    self.send(SIGKILL).await;
                    return Ok(End::GivenUp(self.give_up.map_or(128 + SIGKILL, |(_, code)| code)));
                },
            }
            if reader_left && let Some(end) = self.lose_reader().await {
                return Ok(end);
            }
        }
    }

    /// Handles the loss of the reader of our streams.
    async fn lose_reader(&mut self) -> Option<End> {
        self.writing = false;
        if self.leaving == Leaving::LetsItBe {
            return Some(End::GivenUp(128 + SIGPIPE));
        }
        // A local command would receive this signal at its next write.
        self.send(SIGPIPE).await;
        self.give_up = Some((Instant::now() + PIPE_GRACE, 128 + SIGPIPE));
        None
    }

    /// Passes a signal to the process, or leaves because of it.
    async fn pass_signal(&self, number: u8, before: usize) -> Option<End> {
        match (self.leaving, before) {
            // To a process of another command, only the first typed signal is passed; the second detaches.
            (Leaving::LetsItBe, 0) if number != SIGHUP && number != SIGTERM => self.send(number).await,
            (Leaving::LetsItBe, _) => return Some(End::GivenUp(128 + number)),
            (Leaving::EndsIt, 0) => self.send(number).await,
            (Leaving::EndsIt, 1) => self.send(SIGKILL).await,
            (Leaving::EndsIt, _) => return Some(End::GivenUp(128 + SIGKILL)),
        }
        None
    }

    /// A connection that is gone shows in the output.
    async fn send(&self, number: u8) {
        if let Ok(number) = SignalNumber::try_from(number) {
            let _ = self.control.signal(number).await;
        }
    }
}

/// Reports that output is missing at about this place.
fn say_dropped(bytes: u64) {
    Failure::new(format_args!(
        "{bytes} bytes of output are missing here: they were discarded before they could be shown"
    ))
    .report();
}

/// Resolves when the user typed the keys for detaching; never if they can no longer be typed.
async fn asked_to_leave(left: &mut Option<oneshot::Receiver<()>>) {
    if let Some(receiver) = left {
        if receiver.await.is_ok() {
            return;
        }
        *left = None;
    }
    std::future::pending().await
}

/// Resolves at this time, or never.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Fails on every error except that the reader closed our stream.
fn refuse_write_error(result: Result<(), WriteError>) -> Result<(), Failure> {
    match result {
        Err(WriteError { stream, errno }) if errno != Errno::PIPE => {
            Err(Failure::new(format_args!("cannot write to {stream}: {errno}")))
        }
        _ => Ok(()),
    }
}

/// Passes stdin to the process. It is not an error if the process stops reading before the input ends. With `keys`, typing
/// them ends our input but not that of the process, and notifies the sender.
async fn pass_stdin(mut sink: StdinSink, keys: Option<(DetachKeys, oneshot::Sender<()>)>) {
    let mut chunks = stdio::stdin_chunks();
    if let Some((keys, tell)) = keys {
        return pass_typed(sink, chunks, keys, tell).await;
    }
    while let Some(chunk) = chunks.recv().await {
        if sink.write(&chunk).await.is_err() {
            return;
        }
    }
    let _ = sink.finish().await;
}

/// Passes typed input to the process. Finds the keys even if the process or its guest does not read, so that the user can
/// always detach. Input that is typed too far ahead is dropped, as a terminal does.
async fn pass_typed(
    mut sink: StdinSink,
    mut chunks: mpsc::Receiver<Vec<u8>>,
    mut keys: DetachKeys,
    tell: oneshot::Sender<()>,
) {
    let (ahead, mut waiting) = mpsc::channel::<Vec<u8>>(TYPED_AHEAD);
    let writing = async move {
        while let Some(chunk) = waiting.recv().await {
            if sink.write(&chunk).await.is_err() {
                return None;
            }
        }
        Some(sink)
    };
    let typing = async move {
        while let Some(chunk) = chunks.recv().await {
            let (passed, leaves) = keys.pass(&chunk);
            if !passed.is_empty() {
                let _ = ahead.try_send(passed);
            }
            if leaves {
                return true;
            }
        }
        false
    };
    tokio::pin!(writing);
    let left = tokio::select! {
        left = typing => left,
        // The process or its connection is gone, which its output reports.
        _ = &mut writing => return,
    };
    if left {
        // Input before the keys is still sent to the process.
        let _ = timeout(LAST_TYPED, writing).await;
        // The receiver is gone if the process has ended.
        let _ = tell.send(());
    } else if let Some(sink) = writing.await {
        let _ = sink.finish().await;
    }
}
