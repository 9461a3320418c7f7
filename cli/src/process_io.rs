//! Attending a process in a sandbox: its streams joined to ours, our signals and terminal size passed on, until it has
//! ended and its output is written.

use crate::{
    detach_keys::DetachKeys,
    failure::Failure,
    signals::Signals,
    stdio::{self, OutputEnd, OutputSink, Stream, WriteError},
    terminal::{self, RawMode},
};
use rustix::io::Errno;
use sandboxvm_manager::{AgentError, Exec, Output, OutputStream, ProcessControl, Sandbox, StdinSink, exit_code};
use sandboxvm_protocol::agent::{ExecRequest, ExitStatus, SignalNumber, process::AttachRequest};
use std::time::Duration;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until, timeout},
};

/// The agent keeps the time; this long after it we stop believing that it does.
const TIMEOUT_GRACE: Duration = Duration::from_secs(10);
/// The agent's time begins when the process does; a slow guest may take this long to start it.
const START_GRACE: Duration = Duration::from_secs(60);
/// How long a process may go on after its output has no reader any more.
const PIPE_GRACE: Duration = Duration::from_secs(2);
/// Reads from the terminal that may wait for the process to take them.
const TYPED_AHEAD: usize = 16;
/// How long what was typed before the keys for leaving has to be taken.
const LAST_TYPED: Duration = Duration::from_millis(500);
const SIGHUP: u8 = 1;
const SIGPIPE: u8 = 13;
const SIGTERM: u8 = 15;
const SIGKILL: u8 = 9;
const TIMED_OUT: u8 = 124;

/// How to attend.
#[derive(Debug)]
pub(crate) struct Attendance {
    /// Pass stdin on.
    pub(crate) interactive: bool,
    /// Stdin is a terminal that is to be raw.
    pub(crate) raw: bool,
    /// The process has a terminal, whose size follows ours.
    pub(crate) tty: bool,
    /// The agent's limit.
    pub(crate) timeout: Option<Duration>,
    /// What our leaving means for the process.
    pub(crate) leaving: Leaving,
}

/// What it means for a process that its attendant leaves before it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// It is ours, and ends with us.
    EndsIt,
    /// It was there before us.
    LetsItBe,
}

impl Attendance {
    /// Of somebody who only looks.
    pub(crate) fn looking_on() -> Self {
        Self { interactive: false, raw: false, tty: false, timeout: None, leaving: Leaving::LetsItBe }
    }
}

/// How attending somebody else's process came to its end, each with an exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// There is no more to see: the process ended, or it runs on and all that was asked for was shown.
    Ended(u8),
    /// We left.
    Left(u8),
}

/// Starts a process and attends it to its end; returns the exit code. `ended` is called when the process has ended,
/// while its last output may still be on the way to our reader.
pub(crate) async fn run(
    sandbox: &Sandbox,
    request: ExecRequest,
    attendance: &Attendance,
    signals: &mut Signals,
    ended: impl FnOnce(),
) -> Result<u8, Failure> {
    let give_up = attendance.timeout.map(|limit| Instant::now() + limit + START_GRACE);
    let exec = tokio::select! {
        exec = sandbox.exec(request) => exec.map_err(|error| Failure::of_exec(&error))?,
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
            Ok(exit_code(status))
        }
        End::GivenUp(code) => Ok(code),
        End::RunsOn => Err(Failure::new("the output of the process ended without an exit status")),
    }
}

/// Attends a process that somebody else started.
pub(crate) async fn attach(
    sandbox: &Sandbox,
    request: AttachRequest,
    attendance: &Attendance,
    signals: &mut Signals,
) -> Result<Outcome, Failure> {
    let exec = tokio::select! {
        exec = sandbox.attach(request) => exec?,
        (number, _) = signals.next() => return Ok(Outcome::Left(128 + number.get())),
    };
    Ok(match attend(sandbox, exec, attendance, signals, || ()).await? {
        End::Exited(status) => Outcome::Ended(exit_code(status)),
        End::RunsOn => Outcome::Ended(0),
        End::GivenUp(code) => Outcome::Left(code),
    })
}

/// Attends a process until it has ended, or we leave, and all that it wrote is passed on.
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
            // Somebody does not want to wait for our reader.
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
    /// All that is kept was shown, and that was asked for.
    RunsOn,
    /// We left, with this exit code.
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
    /// False once our streams take no more.
    writing: bool,
    /// When to stop attending, and with which exit code.
    give_up: Option<(Instant, u8)>,
    leaving: Leaving,
    /// Resolves when somebody typed that we are to leave; nothing once nobody can any more.
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
                    // Without a reader the rest of the output goes nowhere.
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
                    // Closing the connection kills the process group too, where anybody is left to do it.
                    self.send(SIGKILL).await;
                    return Ok(End::GivenUp(self.give_up.map_or(128 + SIGKILL, |(_, code)| code)));
                },
            }
            if reader_left && let Some(end) = self.lose_reader().await {
                return Ok(end);
            }
        }
    }

    /// What is left to do once nothing is read from our streams any more.
    async fn lose_reader(&mut self) -> Option<End> {
        self.writing = false;
        if self.leaving == Leaving::LetsItBe {
            return Some(End::GivenUp(128 + SIGPIPE));
        }
        // What a local command would get by its next write.
        self.send(SIGPIPE).await;
        self.give_up = Some((Instant::now() + PIPE_GRACE, 128 + SIGPIPE));
        None
    }

    /// Passes a signal on, or takes it as meant for us.
    async fn pass_signal(&self, number: u8, before: usize) -> Option<End> {
        match (self.leaving, before) {
            // Of somebody else's process only what is typed is passed on, and that once: there must be a way out.
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

/// Says that output is missing at about this place.
fn say_dropped(bytes: u64) {
    Failure::new(format_args!(
        "{bytes} bytes of output are missing here: they were discarded before they could be shown"
    ))
    .report();
}

/// When somebody typed the keys for it; never once nobody can.
async fn asked_to_leave(left: &mut Option<oneshot::Receiver<()>>) {
    if let Some(receiver) = left {
        if receiver.await.is_ok() {
            return;
        }
        *left = None;
    }
    std::future::pending().await
}

/// At that time, or never.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// A reader that went away is no failure of ours; any other error is.
fn refuse_write_error(result: Result<(), WriteError>) -> Result<(), Failure> {
    match result {
        Err(WriteError { stream, errno }) if errno != Errno::PIPE => {
            Err(Failure::new(format_args!("cannot write to {stream}: {errno}")))
        }
        _ => Ok(()),
    }
}

/// A process that ends, or stops reading, before its input does is its own affair. With `keys`, typing them ends our
/// input, but not the process's, and is told.
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

/// The keys are looked for whether or not the process, or its guest, takes what is typed: there must be a way out. What is
/// typed too far ahead of it is dropped, as a terminal does.
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
        // The process, or its connection, is gone: that shows in its output.
        _ = &mut writing => return,
    };
    if left {
        // What was typed before the keys is still the process's, if it wants it.
        let _ = timeout(LAST_TYPED, writing).await;
        // Nobody waits for it any more when the process has ended.
        let _ = tell.send(());
    } else if let Some(sink) = writing.await {
        let _ = sink.finish().await;
    }
}
