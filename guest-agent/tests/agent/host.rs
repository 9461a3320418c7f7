//! The host's side of the wire, and the agent as a child process.

use rustix::process::{Pid, Signal, kill_process};
use sandboxvm_protocol::agent::main_process::{MainProcess, MainRequest};
use sandboxvm_protocol::agent::port::{PortNumber, PortRequest};
use sandboxvm_protocol::agent::process::{AttachRequest, ProcessInfo, View};
use sandboxvm_protocol::agent::{
    AgentMessage, CText, ExecRequest, ExitStatus, Failure, HostMessage, MAX_AGENT_MESSAGE, MAX_HOST_MESSAGE,
    OnDisconnect, STDIN_WINDOW, WIRE,
};
use sandboxvm_protocol::frame::{FrameDecoder, FrameKind, MAX_STREAM_BODY};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus as ProcessStatus};
use std::time::{Duration, Instant};

/// Longest wait of a test before it fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A running agent with a separate directory.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    directory: tempfile::TempDir,
}

impl Agent {
    pub fn start() -> Self {
        Self::start_by(Command::new(Self::binary()), None)
    }

    /// Starts an agent that packs the changes of the disk from `upper`.
    pub fn start_with_upper(upper: &Path) -> Self {
        Self::start_by(Command::new(Self::binary()), Some(upper))
    }

    /// Starts an agent with this limit of open files.
    pub fn start_with_open_files(limit: u32) -> Self {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &format!("ulimit -n {limit}; exec \"$0\" \"$@\""), Self::binary()]);
        Self::start_by(command, None)
    }

    fn binary() -> &'static str {
        env!("CARGO_BIN_EXE_sandboxvm-agent")
    }

    fn start_by(mut command: Command, upper: Option<&Path>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let child = command.arg("serve").arg(directory.path().join("agent.sock")).args(upper).spawn().unwrap();
        let agent = Self { child, directory };
        let mut first = None;
        wait_until("the agent listens", || {
            first = UnixStream::connect(agent.socket()).ok();
            first.is_some()
        });
        Self::settle(Host::new(first.unwrap()));
        agent
    }

    /// Waits for a response and the end of the connection. The agent listens before it has opened
    /// all files, and tests compare their number.
    fn settle(first: Host) {
        let mut first = first.greeted();
        first.stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(first.next(), Event::Closed);
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns a connection on which nothing was sent yet.
    pub fn connect(&self) -> Host {
        Host::new(UnixStream::connect(self.socket()).unwrap())
    }

    /// Returns a connection after its Hello.
    pub fn greet(&self) -> Host {
        self.connect().greeted()
    }

    /// Starts a process. Returns its connection and PID.
    pub fn start_process(&self, request: ExecRequest) -> (Host, u32) {
        self.start_by_request(HostMessage::Exec(request))
    }

    /// Starts the main process of the sandbox.
    pub fn start_main(&self, process: ExecRequest, main: MainProcess) -> (Host, u32) {
        self.start_by_request(HostMessage::ExecMain(MainRequest { process, main }))
    }

    fn start_by_request(&self, request: HostMessage) -> (Host, u32) {
        let mut host = self.connect();
        host.send(&[hello(), request]);
        assert_eq!(host.next(), Event::Message(AgentMessage::Hello { version: WIRE.version }));
        match host.next() {
            Event::Message(AgentMessage::Started { pid }) => (host, pid),
            other => panic!("expected Started, got {other:?}"),
        }
    }

    /// Runs a process to its end.
    pub fn run(&self, request: ExecRequest) -> Finished {
        self.start_process(request).0.finish()
    }

    /// Requests a process that must be refused.
    pub fn refusal(&self, request: ExecRequest) -> Failure {
        let mut host = self.greet();
        host.send(&[HostMessage::Exec(request)]);
        host.expect_failure()
    }

    /// Starts a process that outlives its connection, which is closed immediately.
    pub fn detach(&self, mut request: ExecRequest) -> u32 {
        request.on_disconnect = OnDisconnect::Keep;
        self.start_process(request).1
    }

    /// Sends one request on a new connection, after Hello. Returns the connection.
    pub fn ask(&self, request: HostMessage) -> Host {
        let mut host = self.greet();
        host.send(&[request]);
        host
    }

    /// Attaches to a process, as `request` says.
    pub fn attach_as(&self, request: AttachRequest) -> Host {
        let mut host = self.ask(HostMessage::Attach(request));
        match host.next() {
            Event::Message(AgentMessage::Attached(attached)) => {
                assert_eq!(attached.stdin_credit.is_some(), request.stdin);
                host.credit = attached.stdin_credit.unwrap_or(0) as usize;
            }
            other => panic!("expected Attached, got {other:?}"),
        }
        host
    }

    pub fn attach(&self, pid: u32, view: View) -> Host {
        self.attach_as(AttachRequest { pid, view, stdin: false, terminal: None })
    }

    /// Returns all processes, page by page.
    pub fn list(&self) -> Vec<ProcessInfo> {
        let mut host = self.greet();
        let mut all: Vec<ProcessInfo> = Vec::new();
        loop {
            host.send(&[HostMessage::ListProcesses { after: all.last().map_or(0, |last| last.pid) }]);
            match host.next() {
                Event::Message(AgentMessage::Processes(page)) => {
                    all.extend(page.processes);
                    if !page.more {
                        return all;
                    }
                }
                other => panic!("expected Processes, got {other:?}"),
            }
        }
    }

    /// Connects to a port, and asserts that it succeeds.
    pub fn connect_port(&self, port: u16) -> UnixStream {
        let mut host = self.ask(HostMessage::Connect(PortRequest { port: PortNumber::try_from(port).unwrap() }));
        assert_eq!(host.next(), Event::Message(AgentMessage::Connected));
        host.into_stream()
    }

    pub fn answers_ping(&self) -> bool {
        let mut host = self.greet();
        host.send(&[HostMessage::Ping]);
        host.next() == Event::Message(AgentMessage::Pong)
    }

    /// Returns the resident memory in KiB.
    pub fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Stops the agent while `work` runs, so that it then receives all events at the same time.
    pub fn while_stopped<T>(&self, work: impl FnOnce() -> T) -> T {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::STOP).unwrap();
        let state = || fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        wait_until("it stops", || state().rsplit(") ").next().unwrap().starts_with('T'));
        let done = work();
        kill_process(pid, Signal::CONT).unwrap();
        done
    }

    pub fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// Waits until the agent ends by itself.
    pub fn wait(&mut self) -> ProcessStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the agent did not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A message or data of the agent.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    Message(AgentMessage),
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    Closed,
}

/// The result of a process.
#[derive(Debug)]
pub struct Finished {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub status: ExitStatus,
    /// Number of bytes that are missing, as the agent reported.
    pub dropped: u64,
}

impl Finished {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }
}

/// One connection, from the host's side.
#[derive(Debug)]
pub struct Host {
    stream: UnixStream,
    decoder: FrameDecoder,
    /// Number of bytes of stdin that may be sent now.
    pub credit: usize,
}

impl Host {
    fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream, decoder: FrameDecoder::new(WIRE, MAX_AGENT_MESSAGE), credit: STDIN_WINDOW as usize }
    }

    /// Returns the connection after its Hello.
    fn greeted(mut self) -> Self {
        self.send(&[hello()]);
        assert_eq!(self.next(), Event::Message(AgentMessage::Hello { version: WIRE.version }));
        self
    }

    /// Sends messages in one write.
    pub fn send(&mut self, messages: &[HostMessage]) {
        self.send_raw(&encode(messages));
    }

    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Sends all of `bytes` as stdin, without regard to the credit.
    pub fn send_stdin(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(MAX_STREAM_BODY) {
            let header = WIRE.header(FrameKind::Stdin, chunk.len()).unwrap();
            self.send_raw(&header);
            self.send_raw(chunk);
        }
    }

    /// As [`Host::send_raw`], but returns false if the agent has closed the connection or reads
    /// nothing for a second.
    pub fn try_send_raw(&mut self, bytes: &[u8]) -> bool {
        self.stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
        self.stream.write_all(bytes).is_ok()
    }

    /// Returns true if another complete frame was received together with the last one.
    pub fn holds_a_frame(&mut self) -> bool {
        !self.decoder.is_at_boundary()
    }

    /// Makes [`Host::try_next`] give up after `wait`.
    pub fn stop_waiting_after(&mut self, wait: Duration) {
        self.stream.set_read_timeout(Some(wait)).unwrap();
    }

    /// Returns the next event. Also counts its credit.
    pub fn next(&mut self) -> Event {
        self.try_next().expect("the agent sends something in time")
    }

    /// Returns the next event, or `None` if there is none in time.
    pub fn try_next(&mut self) -> Option<Event> {
        loop {
            let frame = self.decoder.next_frame().unwrap().map(|frame| (frame.kind, frame.body.to_vec()));
            if let Some((kind, body)) = frame {
                return Some(match kind {
                    FrameKind::Message => {
                        let message = WIRE.decode_message(&body).unwrap();
                        if let AgentMessage::StdinCredit { bytes } = message {
                            self.credit += bytes as usize;
                        }
                        Event::Message(message)
                    }
                    FrameKind::Stdout => Event::Stdout(body),
                    FrameKind::Stderr => Event::Stderr(body),
                    FrameKind::Stdin => panic!("the agent sent stdin"),
                });
            }
            let mut buffer = vec![0; 64 * 1024];
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    assert!(self.decoder.is_at_boundary(), "the stream ends within a frame");
                    return Some(Event::Closed);
                }
                // A Unix socket returns this if the agent closed it with unread data.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Some(Event::Closed),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(count) => self.decoder.push(&buffer[..count]),
                Err(error) => panic!("reading from the agent: {error}"),
            }
        }
    }

    /// Returns the raw stream. All data so far must have been read as frames.
    pub fn into_stream(self) -> UnixStream {
        assert_eq!(self.decoder.into_rest(), b"");
        self.stream
    }

    /// Reads until the process and the connection have ended.
    pub fn finish(mut self) -> Finished {
        let (mut stdout, mut stderr, mut dropped) = (Vec::new(), Vec::new(), 0);
        loop {
            match self.next() {
                Event::Message(AgentMessage::OutputDropped { bytes }) => dropped += bytes,
                Event::Stdout(bytes) => stdout.extend(bytes),
                Event::Stderr(bytes) => stderr.extend(bytes),
                Event::Message(AgentMessage::StdinCredit { .. }) => {}
                Event::Message(AgentMessage::Exited(status)) => {
                    assert_eq!(self.next(), Event::Closed, "Exited is the last message");
                    return Finished { stdout, stderr, status, dropped };
                }
                other => panic!("expected output or Exited, got {other:?}"),
            }
        }
    }

    /// Reads stdout until it contains `text`. Returns all of it.
    pub fn read_until(&mut self, text: &str) -> String {
        let mut seen = Vec::new();
        loop {
            match self.next() {
                Event::Stdout(bytes) => seen.extend(bytes),
                other => {
                    panic!("expected {text:?} on stdout, got {other:?} after {:?}", String::from_utf8_lossy(&seen))
                }
            }
            let so_far = String::from_utf8_lossy(&seen);
            if so_far.contains(text) {
                return so_far.into_owned();
            }
        }
    }

    /// Skips everything until a failure and the end of the connection.
    pub fn expect_failure(mut self) -> Failure {
        loop {
            match self.next() {
                Event::Message(AgentMessage::Failed(failure)) => {
                    assert_eq!(self.next(), Event::Closed, "a failure ends the connection");
                    return failure;
                }
                Event::Message(AgentMessage::Hello { .. } | AgentMessage::Started { .. } | AgentMessage::Pong)
                | Event::Stdout(_) => {}
                other => panic!("expected Failed, got {other:?}"),
            }
        }
    }
}

pub fn hello() -> HostMessage {
    HostMessage::Hello { oldest: WIRE.oldest, newest: WIRE.version }
}

pub fn encode(messages: &[HostMessage]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for message in messages {
        WIRE.append_message(&mut bytes, message, MAX_HOST_MESSAGE).unwrap();
    }
    bytes
}

pub fn text(text: &str) -> CText {
    CText::try_from(text).unwrap()
}

/// Returns a request with only a program and its arguments.
pub fn command(argv: &[&str]) -> ExecRequest {
    ExecRequest::plain(argv.iter().map(|argument| text(argument)).collect())
}

/// Returns a request to run a shell script.
pub fn script(script: &str) -> ExecRequest {
    command(&["sh", "-c", script])
}

/// Returns true while there is a process `pid`, even if it is a zombie.
pub fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Waits until something is true.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "this did not become true in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Returns bytes without a pattern, the same for the same seed (xorshift64).
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
