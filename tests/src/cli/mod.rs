//! One invocation of `sandboxvm`: its arguments, input and output, and a deadline. After the
//! deadline the CLI is killed, and the test fails with all output.

pub mod terminal;

use rustix::process::{Pid, Signal, kill_process};
use std::{
    ffi::OsStr,
    fmt,
    io::{self, Read, Write},
    os::unix::process::ExitStatusExt,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Longest time for an invocation unless a test sets another one. It is enough for several boots
/// and commands while other guests compete for the processor.
const DEADLINE: Duration = Duration::from_secs(120);

/// How long the output of a program may stay open after its end.
const CLOSES: Duration = Duration::from_secs(20);

/// Returns `SANDBOXVM_TEST_PATIENCE`, a factor for every deadline. It is for busy machines, on
/// which a guest whose kernel is interpreted may take minutes to boot. Defaults to 1.
#[must_use]
pub fn patience() -> u32 {
    let stated = std::env::var("SANDBOXVM_TEST_PATIENCE").ok();
    stated.map_or(1, |text| text.parse().expect("SANDBOXVM_TEST_PATIENCE is a whole number"))
}

/// An invocation that has not started yet.
#[derive(Debug)]
pub struct Invocation {
    command: Command,
    input: Input,
    deadline: Duration,
}

#[derive(Debug)]
enum Input {
    Null,
    Bytes(Vec<u8>),
    Open,
}

impl Invocation {
    /// Returns an invocation of any program.
    #[must_use]
    pub fn new(command: Command) -> Self {
        Self { command, input: Input::Null, deadline: DEADLINE * patience() }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets an environment variable of the CLI.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Sets the content of stdin. Without this stdin is `/dev/null`.
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Input::Bytes(bytes.into());
        self
    }

    /// Makes stdin a pipe that stays open, for [`Running::write`] and [`Running::close_stdin`].
    #[must_use]
    pub fn open_stdin(mut self) -> Self {
        self.input = Input::Open;
        self
    }

    /// Sets another deadline than two minutes.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline * patience();
        self
    }

    /// Runs the program to its end.
    #[must_use]
    pub fn run(self) -> Finished {
        self.spawn().finish()
    }

    /// Starts the program and collects its output.
    #[must_use]
    pub fn spawn(self) -> Running {
        let mut running = self.spawn_unread();
        running.read_output();
        running
    }

    /// Starts the program and does not read its output until [`Running::read_output`].
    #[must_use]
    pub fn spawn_unread(mut self) -> Running {
        let shown = shown(&self.command);
        let stdin = if matches!(self.input, Input::Null) { Stdio::null() } else { Stdio::piped() };
        self.command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = self.command.spawn().unwrap_or_else(|error| panic!("cannot start {shown}: {error}"));
        let mut stdin = child.stdin.take();
        let mut writer = None;
        if let Input::Bytes(bytes) = self.input {
            let mut pipe = stdin.take().expect("stdin is piped");
            writer = Some(std::thread::spawn(move || {
                // A command need not read all of its input.
                if let Err(error) = pipe.write_all(&bytes)
                    && error.kind() != io::ErrorKind::BrokenPipe
                {
                    panic!("writing to stdin: {error}");
                }
            }));
        }
        let deadline = started + self.deadline;
        Running { child, shown, started, deadline, stdin, writer, stdout: None, stderr: None, reaped: false }
    }
}

fn shown(command: &Command) -> String {
    let words = command.get_args().map(|argument| {
        let text = argument.to_string_lossy();
        let cut = text.char_indices().nth(200).map_or(text.len(), |(at, _)| at);
        if cut < text.len() { format!("{:?}...", &text[..cut]) } else { format!("{text:?}") }
    });
    format!("sandboxvm {}", words.collect::<Vec<_>>().join(" "))
}

/// Collects one output stream in a thread.
struct Collector {
    shared: Arc<(Mutex<Collected>, Condvar)>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Collected {
    bytes: Vec<u8>,
    ended: bool,
}

impl Collector {
    fn start(mut stream: impl Read + Send + 'static) -> Self {
        let shared = Arc::new((Mutex::new(Collected::default()), Condvar::new()));
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            loop {
                let read = stream.read(&mut buffer).expect("a pipe is readable");
                let mut collected = theirs.0.lock().unwrap();
                collected.bytes.extend_from_slice(&buffer[..read]);
                collected.ended = read == 0;
                theirs.1.notify_all();
                if read == 0 {
                    return;
                }
            }
        });
        Self { shared, thread }
    }

    fn so_far(&self) -> Vec<u8> {
        self.shared.0.lock().unwrap().bytes.clone()
    }

    /// Waits until `done` returns true for the output so far and whether it has ended. Returns
    /// false at the deadline.
    fn wait(&self, deadline: Instant, done: impl Fn(&[u8], bool) -> bool) -> bool {
        let mut collected = self.shared.0.lock().unwrap();
        while !done(&collected.bytes, collected.ended) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            collected = self.shared.1.wait_timeout(collected, left).unwrap().0;
        }
        true
    }

    fn finish(self) -> Vec<u8> {
        self.thread.join().expect("the collector does not panic");
        std::mem::take(&mut self.shared.0.lock().unwrap().bytes)
    }
}

/// An invocation that is running.
pub struct Running {
    child: Child,
    shown: String,
    started: Instant,
    deadline: Instant,
    stdin: Option<ChildStdin>,
    writer: Option<JoinHandle<()>>,
    stdout: Option<Collector>,
    stderr: Option<Collector>,
    reaped: bool,
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("command", &self.shown).field("pid", &self.child.id()).finish_non_exhaustive()
    }
}

impl Running {
    /// Returns the process ID.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Starts to collect the output.
    pub fn read_output(&mut self) {
        self.stdout = self.child.stdout.take().map(Collector::start);
        self.stderr = self.child.stderr.take().map(Collector::start);
    }

    /// Reads one line of stdout and closes it, as `head -1` does. The output must not be read
    /// otherwise.
    pub fn leave_after_line(&mut self) {
        let mut stdout = self.child.stdout.take().expect("the output was not read");
        let mut byte = [0];
        while byte != *b"\n" {
            stdout.read_exact(&mut byte).expect("the CLI writes a line");
        }
        drop(stdout);
        self.stderr = self.child.stderr.take().map(Collector::start);
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("a child that was not waited for exists");
    }

    /// Writes to stdin.
    pub fn write(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().expect("stdin was left open");
        stdin.write_all(bytes).and_then(|()| stdin.flush()).expect("the CLI reads its stdin");
    }

    /// Closes stdin.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Waits until stdout contains `text`.
    ///
    /// # Panics
    /// Panics at the deadline, or when the program has ended without printing the text.
    pub fn wait_for_stdout(&mut self, text: &str) {
        let stdout = self.stdout.as_ref().expect("the output is read");
        let holds = |bytes: &[u8]| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        stdout.wait(self.deadline, |bytes, ended| holds(bytes) || ended);
        if !holds(&stdout.so_far()) {
            panic!("{} never printed {text:?}: {}", self.shown, self.transcript());
        }
    }

    /// Returns the output on stdout so far.
    #[must_use]
    pub fn stdout_so_far(&self) -> Vec<u8> {
        self.stdout.as_ref().map(Collector::so_far).unwrap_or_default()
    }

    /// Returns whether the program has ended.
    #[must_use]
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_some()
    }

    /// Waits for the end of the program.
    ///
    /// # Panics
    /// Panics at the deadline, after killing the program.
    #[must_use]
    pub fn finish(mut self) -> Finished {
        if self.stderr.is_none() {
            self.read_output();
        }
        self.stdin = None;
        let status = self.wait();
        let elapsed = self.started.elapsed();
        if let Some(writer) = self.writer.take() {
            writer.join().expect("stdin could be written");
        }
        // A process that inherited stdout would keep it open. That is a leak too, which this
        // detects.
        for stream in [&self.stdout, &self.stderr].into_iter().flatten() {
            let ended = stream.wait(self.deadline.max(Instant::now() + CLOSES * patience()), |_, ended| ended);
            assert!(ended, "{} ended, but something keeps its output open: {}", self.shown, self.transcript());
        }
        let take = |stream: Option<Collector>| stream.map(Collector::finish).unwrap_or_default();
        let (stdout, stderr) = (take(self.stdout.take()), take(self.stderr.take()));
        Finished { shown: std::mem::take(&mut self.shown), status, stdout, stderr, elapsed }
    }

    fn wait(&mut self) -> ExitStatus {
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                self.reaped = true;
                return status;
            }
            if Instant::now() > self.deadline {
                let transcript = self.transcript();
                panic!("{} did not end within {:?}: {transcript}", self.shown, self.started.elapsed());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn transcript(&self) -> String {
        let text = |stream: &Option<Collector>| match stream {
            Some(stream) => tail(&stream.so_far()),
            None => "(not read)".to_owned(),
        };
        format!("stdout: {}\nstderr: {}", text(&self.stdout), text(&self.stderr))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.reaped {
            // Errors do not matter: the test has failed already, or the process has ended.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Returns the end of an output as text.
fn tail(bytes: &[u8]) -> String {
    let shown = &bytes[bytes.len().saturating_sub(4000)..];
    let cut = if shown.len() < bytes.len() {
        format!("({} bytes before) ", bytes.len() - shown.len())
    } else {
        String::new()
    };
    format!("{cut}{:?}", String::from_utf8_lossy(shown))
}

/// An invocation that has ended.
#[derive(Debug)]
pub struct Finished {
    shown: String,
    status: ExitStatus,
    /// Complete output on stdout.
    pub stdout: Vec<u8>,
    /// Complete output on stderr.
    pub stderr: Vec<u8>,
    /// Time from start to end.
    pub elapsed: Duration,
}

impl Finished {
    /// Returns the exit code, or `None` if a signal killed the CLI itself.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Returns the signal that killed the CLI itself.
    #[must_use]
    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// Returns stdout as text.
    #[must_use]
    pub fn out(&self) -> String {
        String::from_utf8(self.stdout.clone()).unwrap_or_else(|_| panic!("stdout is not UTF-8: {}", self.transcript()))
    }

    /// Returns stderr as text.
    #[must_use]
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Returns stdout as JSON.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|e| panic!("stdout is not JSON ({e}): {}", self.transcript()))
    }

    /// Asserts the exit code.
    #[track_caller]
    #[must_use]
    pub fn exits(self, code: i32) -> Self {
        assert!(self.code() == Some(code), "expected exit code {code}: {}", self.transcript());
        self
    }

    /// Asserts success.
    #[track_caller]
    pub fn succeeds(self) -> Self {
        self.exits(0)
    }

    /// Asserts a failure of sandboxvm itself: exit code 125, nothing on stdout, and on stderr only
    /// lines of sandboxvm, which contain all `hints` in upper or lower case.
    #[track_caller]
    pub fn fails_with(self, hints: &[&str]) -> Self {
        let finished = self.exits(125);
        let transcript = finished.transcript();
        assert!(finished.stdout.is_empty(), "stdout is not empty: {transcript}");
        let stderr = finished.err();
        assert!(stderr.starts_with("sandboxvm: "), "stderr does not start with `sandboxvm: `: {transcript}");
        for hint in hints {
            assert!(stderr.to_lowercase().contains(&hint.to_lowercase()), "stderr does not say {hint:?}: {transcript}");
        }
        assert!(!stderr.contains("panicked at"), "the CLI panicked: {transcript}");
        finished
    }

    /// Returns the command, its exit code, its duration and the ends of both streams, for messages.
    #[must_use]
    pub fn transcript(&self) -> String {
        format!(
            "{} ended with {} after {:?}\nstdout: {}\nstderr: {}",
            self.shown,
            self.status,
            self.elapsed,
            tail(&self.stdout),
            tail(&self.stderr)
        )
    }
}
