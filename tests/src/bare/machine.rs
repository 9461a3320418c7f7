//! One machine with a script for a kernel, from its start to the verdict on it.

use super::{
    channel::Channel,
    launch::{self, Beginning, CONSOLE, CONTROL, LAYER, LOG, Saved, VSOCK},
    shape::Shape,
    vitals::{self, Watcher},
};
use crate::{artefacts::Artefacts, cli, waiting::eventually};
use sandboxvm_bare_guest::Image;
use sandboxvm_protocol::vmm::{ControlReply, ControlRequest, ExitReason, FdIndex, SnapshotRequest, VmStats};
use std::{
    fs::{self, File},
    io::{Read, Write},
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::ExitStatusExt},
    },
    path::PathBuf,
    process::{Child, ExitStatus},
    time::Duration,
};
use tempfile::TempDir;

/// How long a machine may take to its end, and a VMM to an answer. There to end what hangs, not to measure.
const END: Duration = Duration::from_secs(60);
const ANSWER: Duration = Duration::from_secs(5);

/// A machine at work.
#[derive(Debug)]
pub struct BareMachine {
    directory: TempDir,
    child: Child,
    channel: Channel,
    watcher: Watcher,
    shape: Shape,
}

/// How a machine ended.
#[derive(Debug)]
pub struct Ending {
    /// As its VMM told it; `None` when it told nothing.
    pub reason: Option<ExitReason>,
    /// Of its VMM's process.
    pub exit: ExitStatus,
    /// What the guest said.
    pub console: String,
    /// What the VMM said.
    pub log: String,
}

impl BareMachine {
    /// Boots `image`.
    ///
    /// # Panics
    /// When there can be no such machine.
    #[must_use]
    pub fn boot(artefacts: &Artefacts, image: &Image, shape: Shape) -> Self {
        Self::begin(artefacts, &Beginning::Boot(&image.to_elf().expect("the test's own image")), shape)
    }

    /// Goes on where a machine of the same shape was saved.
    ///
    /// # Panics
    /// When there can be no such machine.
    #[must_use]
    pub fn restore(artefacts: &Artefacts, saved: &Saved, shape: Shape) -> Self {
        Self::begin(artefacts, &Beginning::Snapshot(saved), shape)
    }

    fn begin(artefacts: &Artefacts, beginning: &Beginning<'_>, shape: Shape) -> Self {
        let directory = tempfile::Builder::new().prefix("sandboxvm-bare-").tempdir().expect("a temporary directory");
        let (child, stream) = launch::launch(&artefacts.part("sandboxvm-vmm"), directory.path(), beginning, shape);
        let watcher = Watcher::of(child.id(), shape.memory_mib);
        Self { directory, child, channel: Channel::new(stream), watcher, shape }
    }

    /// PID of its VMM.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A client of its vsock, which has said nothing yet.
    ///
    /// # Panics
    /// When the socket does not take it.
    #[must_use]
    pub fn client(&self) -> UnixStream {
        let client = UnixStream::connect(self.directory.path().join(VSOCK)).expect("the socket listens");
        client.set_read_timeout(Some(END * cli::patience())).expect("a time to wait");
        client
    }

    /// A client that asked for a port of the guest and was connected.
    ///
    /// # Panics
    /// When it was not.
    #[must_use]
    pub fn connect(&self, port: u32) -> UnixStream {
        let mut client = self.client();
        client.write_all(format!("CONNECT {port}\n").as_bytes()).expect("the socket takes a line");
        let mut line = Vec::new();
        let mut byte = [0];
        while line.last() != Some(&b'\n') {
            match client.read(&mut byte) {
                Ok(1) => line.push(byte[0]),
                other => panic!("{other:?} after {:?} in place of an OK\n{}", line, self.said()),
            }
        }
        assert!(line.starts_with(b"OK "), "{line:?}");
        client
    }

    /// Another connection to its control socket.
    ///
    /// # Panics
    /// When the socket does not take it.
    #[must_use]
    pub fn control(&self) -> UnixStream {
        UnixStream::connect(self.directory.path().join(CONTROL)).expect("the socket listens")
    }

    /// Fails unless a new connection to its control socket is served, within some patience.
    ///
    /// # Panics
    /// When none is.
    pub fn assert_control_answers(&self) {
        let answered = eventually(ANSWER, || {
            let mut channel = Channel::new(self.control());
            channel.ask(&ControlRequest::Stats, ANSWER * cli::patience())
        });
        assert!(answered.is_some(), "the control socket is not served\n{}", self.said());
    }

    /// Path of a file of its own.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What guest and VMM have said so far, for people.
    #[must_use]
    pub fn said(&self) -> String {
        format!("console: {:?}\nVMM: {:?}", self.read(CONSOLE), self.read(LOG))
    }

    /// What the guest has said so far.
    #[must_use]
    pub fn console(&self) -> String {
        self.read(CONSOLE)
    }

    fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.path(name)).expect("its files are there")).into_owned()
    }

    /// Waits until the guest has said this on its console.
    ///
    /// # Panics
    /// When it does not.
    pub fn wait_for_console(&mut self, text: &str) {
        let said = eventually(END, || (self.read(CONSOLE).contains(text) || self.is_over()).then_some(()));
        assert!(said.is_some() && self.read(CONSOLE).contains(text), "the guest never said {text:?}\n{}", self.said());
    }

    fn is_over(&self) -> bool {
        !crate::processes::is_alive(self.pid())
    }

    /// Its counters, by which its event loop shows that nothing holds it up; `None` when it has ended.
    pub fn stats(&mut self) -> Option<VmStats> {
        match self.channel.ask(&ControlRequest::Stats, ANSWER * cli::patience())? {
            ControlReply::Stats(stats) => Some(*stats),
            other => panic!("{other:?} in place of statistics"),
        }
    }

    /// Has its VMM do something that is answered with nothing.
    ///
    /// # Panics
    /// When that is not done.
    pub fn order(&mut self, request: &ControlRequest) {
        match self.channel.ask(request, ANSWER * cli::patience()) {
            Some(ControlReply::Done) => {}
            other => panic!("{other:?} in place of being done\n{}", self.said()),
        }
    }

    /// Saves it as it stands, all of it; it runs on. To be called once.
    ///
    /// # Panics
    /// When that does not work.
    pub fn save(&mut self) -> Saved {
        let file = |name: &str| launch::new_file(self.directory.path(), name);
        let shared = |file: &File| OwnedFd::from(file.try_clone().expect("a descriptor"));
        let (state, memory) = (file("saved-state"), file("saved-memory"));
        let pagemap = File::open(format!("/proc/{}/pagemap", self.pid())).expect("the VMM lives");
        let layer = File::options().read(true).write(true).open(self.path(LAYER)).expect("its files are there");
        let files = [shared(&state), shared(&memory), pagemap.into(), file("next-layer").into()];
        let request = ControlRequest::Snapshot(SnapshotRequest {
            state: FdIndex(0),
            memory: FdIndex(1),
            pagemap: FdIndex(2),
            disk_tops: vec![FdIndex(3)],
            full: true,
        });
        match self.channel.ask_with(&request, &files, END * cli::patience()) {
            Some(ControlReply::Snapshot(_)) => Saved { state, memory, layers: vec![layer] },
            other => panic!("{other:?} in place of a snapshot\n{}", self.said()),
        }
    }

    /// Fails unless the VMM stops using the processor once its guest has.
    ///
    /// # Panics
    /// When it goes on.
    pub fn assert_at_rest(&self) {
        assert!(
            vitals::comes_to_rest(self.pid()),
            "the guest halted and its VMM did not come to rest\n{}",
            self.said()
        );
    }

    /// Fails unless the VMM's event loop comes to rest, whatever the guest's vCPUs do.
    ///
    /// # Panics
    /// When it goes on.
    pub fn assert_loop_at_rest(&self) {
        assert!(vitals::loop_comes_to_rest(self.pid()), "the VMM's event loop does not come to rest\n{}", self.said());
    }

    /// Fails unless the VMM's event loop is seen at work, within some patience.
    ///
    /// # Panics
    /// When it is not.
    pub fn assert_loop_at_work(&self) {
        assert!(vitals::loop_works(self.pid()), "the VMM's event loop has nothing to do\n{}", self.said());
    }

    /// Fails unless the VMM has kept within its bounds, now and at any time looked at since it began.
    ///
    /// # Panics
    /// When it has not.
    pub fn assert_within_bounds(&self) {
        let bounds = self.shape.bounds;
        let peaks = self.watcher.peaks();
        let threads = 1 + usize::from(self.shape.vcpus);
        let kept = peaks.private_kib <= bounds.private_kib
            && peaks.descriptors <= bounds.descriptors
            && peaks.threads <= threads;
        assert!(kept, "{peaks:?} is more than {bounds:?} and {threads} threads\n{}", self.said());
        let console = fs::metadata(self.path(CONSOLE)).expect("its files are there").len();
        let limit = self.shape.console_limit;
        assert!(console <= limit, "the console log has {console} bytes, the limit is {limit}");
    }

    /// Stops it from outside, as the manager would.
    #[must_use]
    pub fn stop(mut self) -> Ending {
        let _ = self.channel.ask(&ControlRequest::Stop, ANSWER * cli::patience());
        self.finish()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end by itself, or did not keep within its bounds.
    #[must_use]
    pub fn finish(mut self) -> Ending {
        let within = END * cli::patience();
        assert!(self.channel.wait_for_end(within), "the machine did not end within {within:?}\n{}", self.said());
        let exit = self.child.wait().expect("our own child");
        self.assert_within_bounds();
        Ending { reason: self.channel.ended.clone(), exit, console: self.read(CONSOLE), log: self.read(LOG) }
    }
}

impl Drop for BareMachine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.said());
        }
        // Reaped already when it ended: both fail then, and nothing is left to be done.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ending {
    /// The reason, after making sure of what holds for every end: the VMM said why, and went by itself with the exit code
    /// that goes with it; no signal, no panic, nothing unsaid.
    ///
    /// # Panics
    /// When one of these does not hold.
    #[track_caller]
    #[must_use]
    pub fn typed(&self) -> &ExitReason {
        assert_eq!(self.exit.signal(), None, "the VMM was killed by a signal: {self:#?}");
        let reason = self.reason.as_ref().unwrap_or_else(|| panic!("the VMM did not say why it ended: {self:#?}"));
        assert_eq!(self.exit.code(), Some(if reason.is_orderly() { 0 } else { 125 }), "{self:#?}");
        assert!(!self.log.contains("this is a bug"), "{self:#?}");
        let is_no_guests_doing = matches!(
            reason,
            ExitReason::HostFailure { .. } | ExitReason::BadConfig { .. } | ExitReason::ForbiddenCall { .. }
        );
        assert!(!is_no_guests_doing, "{self:#?}");
        reason
    }

    /// As [`Ending::typed`], and the guest got through its script.
    #[track_caller]
    pub fn in_order(&self) {
        assert_eq!(self.typed(), &ExitReason::GuestShutdown, "{self:#?}");
    }
}
