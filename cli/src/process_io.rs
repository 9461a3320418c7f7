//! Attending a process in a sandbox: its streams joined to ours, our signals and terminal size passed on, until it has
//! ended and its output is written.

use crate::{
    failure::Failure,
    signals::Signals,
    stdio::{self, OutputEnd, OutputSink, Stream, WriteError},
    terminal::{self, RawMode},
};
use rustix::io::Errno;
use sandboxvm_manager::{AgentError, Exec, Output, OutputStream, ProcessControl, Sandbox, StdinSink, exit_code};
use sandboxvm_protocol::agent::{ExecRequest, ExitStatus, SignalNumber};
use std::time::Duration;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep_until},
};

/// The agent keeps the time; this long after it we stop believing that it does.
const TIMEOUT_GRACE: Duration = Duration::from_secs(10);
/// The agent's time begins when the process does; a slow guest may take this long to start it.
const START_GRACE: Duration = Duration::from_secs(60);
/// How long a process may go on after its output has no reader any more.
const PIPE_GRACE: Duration = Duration::from_secs(2);
const SIGPIPE: u8 = 13;
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
    let raw = if attendance.raw { Some(RawMode::enter()?) } else { None };
    let Exec { stdin, output, control, .. } = exec;
    let stdin = attendance.interactive.then(|| tokio::spawn(pass_stdin(stdin)));
    let (sink, written) = stdio::output();
    let give_up = attendance.timeout.map(|limit| (Instant::now() + limit + TIMEOUT_GRACE, TIMED_OUT));
    let mut attending = Attending { output, control, sink, written, writing: true, give_up };
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
            (number, _) = signals.next() => return Ok(128 + number.get()),
        }
    }
    drop(raw);
    match end {
        End::Exited(ExitStatus::TimedOut) | End::GivenUp(TIMED_OUT) => Ok(timed_out(attendance)),
        End::Exited(status) => Ok(exit_code(status)),
        End::GivenUp(code) => Ok(code),
        End::Lost(error) => Err(Failure::of_exec(&sandbox.explain(error).await)),
        End::Failed(failure) => Err(failure),
    }
}

fn timed_out(attendance: &Attendance) -> u8 {
    let limit = humantime::format_duration(attendance.timeout.unwrap_or_default());
    Failure::new(format_args!("the command ran out of its time, {limit}")).report();
    TIMED_OUT
}

/// How attending ended.
enum End {
    Exited(ExitStatus),
    GivenUp(u8),
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
}

impl Attending {
    async fn attend(&mut self, tty: bool, signals: &mut Signals) -> End {
        let mut resized = match signal(SignalKind::window_change()) {
            Ok(resized) => resized,
            Err(error) => return End::Failed(error.into()),
        };
        let mut pending: Option<(Stream, Vec<u8>)> = None;
        loop {
            tokio::select! {
                next = self.output.next(), if pending.is_none() => match next {
                    Ok(Some(Output::Stdout(bytes))) => pending = Some((Stream::Stdout, bytes)),
                    Ok(Some(Output::Stderr(bytes))) => pending = Some((Stream::Stderr, bytes)),
                    Ok(Some(Output::Exited(status))) => return End::Exited(status),
                    Ok(None) => return End::Failed(Failure::new("the process's output ended without its exit status")),
                    Err(error) => return End::Lost(error),
                },
                room = self.sink.room(), if pending.is_some() => {
                    // Without a reader the rest of the output goes nowhere.
                    if let (Some(room), Some(chunk)) = (room, pending.take()) {
                        room.send(chunk);
                    }
                },
                result = self.written.wait(), if self.writing => {
                    self.writing = false;
                    if let Err(failure) = refuse_write_error(result) {
                        return End::Failed(failure);
                    }
                    // What a local command would get.
                    self.send(SIGPIPE).await;
                    self.give_up = Some((Instant::now() + PIPE_GRACE, 128 + SIGPIPE));
                },
                (number, before) = signals.next() => match before {
                    0 => self.send(number.get()).await,
                    1 => self.send(SIGKILL).await,
                    _ => return End::GivenUp(128 + SIGKILL),
                },
                // A connection that is gone shows in the output.
                Some(()) = resized.recv(), if tty => { let _ = self.control.resize(terminal::size()).await; },
                () = at(self.give_up.map(|(at, _)| at)) => {
                    // Closing the connection kills the process group too, where anybody is left to do it.
                    self.send(SIGKILL).await;
                    return End::GivenUp(self.give_up.map_or(128 + SIGKILL, |(_, code)| code));
                },
            }
        }
    }

    /// A connection that is gone shows in the output.
    async fn send(&self, number: u8) {
        if let Ok(number) = SignalNumber::try_from(number) {
            let _ = self.control.signal(number).await;
        }
    }
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

/// A process that ends, or stops reading, before its input does is its own affair.
async fn pass_stdin(mut sink: StdinSink) {
    let mut chunks = stdio::stdin_chunks();
    while let Some(chunk) = chunks.recv().await {
        if sink.write(&chunk).await.is_err() {
            return;
        }
    }
    let _ = sink.finish().await;
}
