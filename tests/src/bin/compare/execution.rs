//! Runs a command with a deadline and a maximum size of output. Ends only process groups that it
//! started itself, and single processes by descriptor.

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};
use std::{
    io::{Read, Write},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

/// Set by SIGINT and SIGTERM. The command that runs is then ended, nothing new is started, and
/// everything is removed.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Returns whether the user has interrupted the program.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Makes SIGINT and SIGTERM end the program gracefully.
pub fn heed_signals() {
    use tokio::signal::unix::{SignalKind, signal};
    thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut interrupt = signal(SignalKind::interrupt()).expect("SIGINT can be caught");
            let mut terminate = signal(SignalKind::terminate()).expect("SIGTERM can be caught");
            tokio::select! { _ = interrupt.recv() => (), _ = terminate.recv() => () }
            INTERRUPTED.store(true, Ordering::Relaxed);
            // The handlers stay. The user can still send SIGKILL.
            std::future::pending::<()>().await;
        });
    });
}

/// Maximum size of an output stream that is kept, as the output of a sandbox is hostile.
const CAP: u64 = 256 << 10;

/// How a command ended, and its output.
#[derive(Debug)]
pub struct Ended {
    /// Exit code, or none if a signal or the deadline ended the command.
    pub code: Option<i32>,
    /// Output on stdout.
    pub out: String,
    /// Output on stderr.
    pub err: String,
    /// Time from start to end.
    pub elapsed: Duration,
    /// Whether the command was killed at its deadline.
    pub late: bool,
}

impl Ended {
    /// Returns the reason of a failure: the last line of output.
    pub fn reason(&self) -> String {
        let mut said = self.err.lines().chain(self.out.lines()).filter(|line| !line.trim().is_empty());
        let last = said.next_back().unwrap_or("no output").trim();
        let end = match self.code {
            _ if self.late => "was ended at its deadline".to_owned(),
            Some(code) => format!("exit code {code}"),
            None => "was killed".to_owned(),
        };
        format!("{end}: {}", short(last, 240))
    }

    /// Returns the result if the command succeeded.
    pub fn success(self) -> Result<Self, String> {
        if self.code == Some(0) { Ok(self) } else { Err(self.reason()) }
    }
}

/// Returns at most `most` characters of a text.
pub fn short(text: &str, most: usize) -> String {
    text.chars().take(most).collect()
}

/// Runs the command to its end, at most until the deadline.
pub fn run(mut command: Command, input: &str, deadline: Duration) -> Result<Ended, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let begin = Instant::now();
    if interrupted() {
        return Err("interrupted".to_owned());
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(|error| format!("cannot start {program}: {error}"))?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let input = input.to_owned();
    // A command need not read all of its input.
    thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let out = collect(child.stdout.take().expect("stdout is piped"));
    let err = collect(child.stderr.take().expect("stderr is piped"));
    let mut late = false;
    let status = loop {
        match child.try_wait().map_err(|error| format!("cannot wait for {program}: {error}"))? {
            Some(status) => break status,
            None if !late && (begin.elapsed() > deadline || interrupted()) => {
                late = true;
                end_group(&child);
            }
            None => thread::sleep(Duration::from_millis(2)),
        }
    };
    let elapsed = begin.elapsed();
    // A process that outlives the command may keep its output open. This does not wait for it.
    let text = |stream: mpsc::Receiver<Vec<u8>>| {
        let mut bytes = Vec::new();
        while let Ok(part) = stream.recv_timeout(Duration::from_secs(1)) {
            bytes.extend(part);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    Ok(Ended { code: status.code().filter(|_| !late), out: text(out), err: text(err), elapsed, late })
}

fn collect(mut stream: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let (mut buffer, mut kept) = ([0; 4096], 0);
        // Reads to the end, so that no writer blocks, but keeps no more than the maximum.
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            if kept < CAP {
                kept += length as u64;
                let _ = sender.send(buffer[..length].to_vec());
            }
        }
    });
    receiver
}

/// Kills the process group of a child that leads a separate group and has not been reaped.
pub fn end_group(child: &Child) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // The group may have ended by itself.
        let _ = kill_process_group(pid, Signal::KILL);
    }
}

/// Sends a signal to one process that belongs to this program.
pub fn signal(pid: u32, signal: Signal) {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    if let Ok(descriptor) = pidfd_open(pid, PidfdFlags::empty()) {
        let _ = pidfd_send_signal(&descriptor, signal);
    }
}
