//! A pseudoterminal on which the CLI runs, as a user has it: keys, screen and size.

use crate::cli;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize},
};
use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Longest wait for text on the screen.
const PATIENCE: Duration = Duration::from_secs(30);

/// A command on a separate terminal.
#[derive(Debug)]
pub struct TerminalSession {
    leader: Option<Arc<File>>,
    /// The command's end. Kept open, so that the terminal and its modes outlive the command.
    follower: Option<File>,
    child: Child,
    stop: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
    bytes: Receiver<Vec<u8>>,
    screen: Vec<u8>,
    /// The part of the screen before this position has been matched.
    seen: usize,
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

/// Sends the output of the terminal to `tell`. Checks `stop` now and then, so that its copy of the
/// leader can be closed.
fn read_until_stopped(mut leader: &File, stop: &AtomicBool, tell: &Sender<Vec<u8>>) {
    let mut buffer = [0; 4096];
    let moment = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
    while !stop.load(Ordering::Relaxed) {
        let ready = poll(&mut [PollFd::new(leader, PollFlags::IN)], Some(&moment)).unwrap_or(0);
        if ready == 0 {
            continue;
        }
        // EIO as soon as no process has the other end open.
        match leader.read(&mut buffer) {
            Ok(read @ 1..) if tell.send(buffer[..read].to_vec()).is_ok() => {}
            _ => return,
        }
    }
}

impl TerminalSession {
    /// Runs `command`, which must make its stdin its controlling terminal (`setsid --ctty`).
    pub(crate) fn start(mut command: Command, rows: u16, columns: u16) -> Self {
        let leader = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a pseudo-terminal");
        grantpt(&leader).and_then(|()| unlockpt(&leader)).expect("a new pseudoterminal can be unlocked");
        let name = ptsname(&leader, Vec::new()).expect("a pseudo-terminal has a name");
        let path = name.to_str().expect("the name of a terminal is ASCII");
        let noctty = i32::try_from(rustix::fs::OFlags::NOCTTY.bits()).expect("a flag of open(2)");
        let follower = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(noctty)
            .open(path)
            .expect("the other end can be opened");
        tcsetwinsize(&leader, size(rows, columns)).expect("a terminal has a size");
        let stream = || Stdio::from(follower.try_clone().expect("a descriptor"));
        let child = command.stdin(stream()).stdout(stream()).stderr(stream()).spawn().expect("setsid is installed");
        let leader = Arc::new(File::from(leader));
        let stop = Arc::new(AtomicBool::new(false));
        let (tell, bytes) = mpsc::channel();
        let (theirs, theirs_to_stop) = (Arc::clone(&leader), Arc::clone(&stop));
        let reader = Some(std::thread::spawn(move || read_until_stopped(&theirs, &theirs_to_stop, &tell)));
        Self { leader: Some(leader), follower: Some(follower), child, stop, reader, bytes, screen: Vec::new(), seen: 0 }
    }

    /// Hangs the terminal up, as when its window is closed or a connection is lost.
    pub fn hang_up(mut self) {
        self.follower = None;
        self.stop_reading();
        // The last descriptor of the leader is closed, which hangs up.
        self.leader = None;
        let _ = self.wait();
    }

    fn stop_reading(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader does not panic");
        }
    }

    fn leader(&self) -> &File {
        self.leader.as_deref().expect("not hung up")
    }

    /// Types these keys.
    pub fn keys(&mut self, keys: &str) {
        self.leader().write_all(keys.as_bytes()).expect("the terminal takes keys");
    }

    /// Changes the terminal's size. The kernel notifies the foreground process.
    pub fn resize(&self, rows: u16, columns: u16) {
        tcsetwinsize(self.leader(), size(rows, columns)).expect("a terminal has a size");
    }

    /// Waits until `text` is shown after the text of the last wait.
    pub fn expect(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE * cli::patience();
        loop {
            let rest = &self.screen[self.seen..];
            if let Some(at) = rest.windows(text.len()).position(|window| window == text.as_bytes()) {
                self.seen += at + text.len();
                return;
            }
            match self.bytes.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.screen.extend(bytes),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("{text:?} is not shown: {:?}", String::from_utf8_lossy(&self.screen));
                }
            }
        }
    }

    /// Returns all output until the text of the last wait.
    #[must_use]
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.screen).into_owned()
    }

    /// Returns true while keys are echoed and read by line, so not in raw mode.
    #[must_use]
    pub fn is_cooked(&self) -> bool {
        let modes = tcgetattr(self.follower.as_ref().expect("not hung up")).expect("a terminal has modes").local_modes;
        modes.contains(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG)
    }

    /// Returns all settings of the terminal, to compare them.
    #[must_use]
    pub fn settings(&self) -> String {
        let terminal = self.follower.as_ref().expect("not hung up");
        format!("{:?}", tcgetattr(terminal).expect("a terminal has settings"))
    }

    /// Returns the process ID of the command.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends the command a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("a child that was not waited for exists");
    }

    /// Waits for the end of the command.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE * cli::patience();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return status;
            }
            assert!(Instant::now() < deadline, "the command does not end: {:?}", String::from_utf8_lossy(&self.screen));
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for TerminalSession {
    fn drop(&mut self) {
        self.stop_reading();
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
