//! A machine whose kernel is a script, from its start to the checks of its end.

use super::{
    cable::Cable,
    channel::Channel,
    launch::{self, Beginning, CONSOLE, CONTROL, LAYER, LOG, Saved, VSOCK},
    shape::Shape,
    vitals::{self, Watcher},
};
use crate::{artefacts::Artefacts, cli, waiting::eventually};
use sandboxvm_bare_guest::Image;
use sandboxvm_protocol::vmm::{
    ControlReply, ControlRequest, ExitReason, FdIndex, NetworkStats, Phase, SnapshotRequest, VmStats,
};
use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::ExitStatusExt},
    },
    path::PathBuf,
    process::{Child, ExitStatus},
    time::Duration,
};
use tempfile::TempDir;

/// Longest time until a machine ends, and until a VMM responds. They end what hangs, and measure
/// nothing.
const END: Duration = Duration::from_secs(60);
const ANSWER: Duration = Duration::from_secs(5);
/// Longest time until a Linux has booted.
const BOOT: Duration = Duration::from_secs(120);

/// A running machine.
#[derive(Debug)]
pub struct BareMachine {
    directory: TempDir,
    child: Child,
    channel: Channel,
    watcher: Watcher,
    shape: Shape,
}

/// How a machine ended, and what was written until then.
#[derive(Debug)]
pub struct Ending {
    /// The reason that the VMM reported, or `None` if it reported nothing.
    pub reason: Option<ExitReason>,
    /// The exit status of the VMM.
    pub exit: ExitStatus,
    /// The console output of the guest.
    pub console: String,
    /// The log of the VMM.
    pub log: String,
}

impl BareMachine {
    /// Boots `image`.
    ///
    /// # Panics
    /// Panics if the machine cannot be started.
    #[must_use]
    pub fn boot(artefacts: &Artefacts, image: &Image, shape: Shape) -> Self {
        Self::begin(artefacts, &Beginning::Boot(&image.to_elf().expect("the image is valid")), shape)
    }

    /// Boots the Linux of the bundle, with its agent, and waits until the agent listens.
    ///
    /// # Panics
    /// Panics if it does not.
    #[must_use]
    pub fn boot_linux(artefacts: &Artefacts, shape: Shape) -> Self {
        let mut machine = Self::begin(artefacts, &Beginning::Linux(artefacts), shape);
        let ready = eventually(BOOT, || {
            let stats = machine.stats().unwrap_or_else(|| panic!("the machine ended\n{}", machine.said()));
            (stats.phase == Phase::Ready).then_some(())
        });
        assert!(ready.is_some(), "the agent does not listen\n{}", machine.said());
        machine
    }

    /// Restores a machine of the same shape that was saved.
    ///
    /// # Panics
    /// Panics if the machine cannot be started.
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

    /// Returns the PID of the VMM.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns a client of the vsock socket that has sent nothing yet.
    ///
    /// # Panics
    /// Panics if the socket does not accept it.
    #[must_use]
    pub fn client(&self) -> UnixStream {
        self.try_client().expect("the socket listens")
    }

    /// Returns a client of the vsock socket of a machine that may have ended.
    ///
    /// # Errors
    /// Fails if no process listens at the socket any more.
    pub fn try_client(&self) -> io::Result<UnixStream> {
        let client = UnixStream::connect(self.directory.path().join(VSOCK))?;
        client.set_read_timeout(Some(END * cli::patience()))?;
        Ok(client)
    }

    /// Returns a client that is connected to a port of the guest.
    ///
    /// # Panics
    /// Panics if the connection is refused.
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

    /// Connects the network card. Returns the other end of its cable, on which one packet is one frame.
    ///
    /// # Panics
    /// Panics if the VMM refuses it.
    #[must_use]
    pub fn attach_network(&mut self) -> Cable {
        let (cable, theirs) = Cable::new();
        let request = ControlRequest::AttachNetwork { frames: FdIndex(0) };
        match self.channel.ask_with(&request, &[theirs], ANSWER * cli::patience()) {
            Some(ControlReply::Done) => cable,
            other => panic!("{other:?} in place of a link\n{}", self.said()),
        }
    }

    /// Returns the counters of the network card.
    ///
    /// # Panics
    /// Panics if the VMM does not have them.
    pub fn network_stats(&mut self) -> NetworkStats {
        match self.channel.ask(&ControlRequest::NetworkStats, ANSWER * cli::patience()) {
            Some(ControlReply::NetworkStats(stats)) => stats,
            other => panic!("{other:?} in place of counters\n{}", self.said()),
        }
    }

    /// Returns another connection to the control socket.
    ///
    /// # Panics
    /// Panics if the socket does not accept it.
    #[must_use]
    pub fn control(&self) -> UnixStream {
        UnixStream::connect(self.directory.path().join(CONTROL)).expect("the socket listens")
    }

    /// Asserts that the VMM serves a new connection to its control socket in time.
    ///
    /// # Panics
    /// Panics if it does not.
    pub fn assert_control_answers(&self) {
        let answered = eventually(ANSWER, || {
            let mut channel = Channel::new(self.control());
            channel.ask(&ControlRequest::Stats, ANSWER * cli::patience())
        });
        assert!(answered.is_some(), "the control socket is not served\n{}", self.said());
    }

    /// Returns the path of a file of the machine.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Returns what guest and VMM have written so far, for messages.
    #[must_use]
    pub fn said(&self) -> String {
        format!("console: {:?}\nVMM: {:?}", self.read(CONSOLE), self.read(LOG))
    }

    /// Returns the console output of the guest so far.
    #[must_use]
    pub fn console(&self) -> String {
        self.read(CONSOLE)
    }

    fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.path(name)).expect("the machine's files exist")).into_owned()
    }

    /// Waits until the guest has written this text to its console.
    ///
    /// # Panics
    /// Panics if it does not.
    pub fn wait_for_console(&mut self, text: &str) {
        let said = eventually(END, || (self.read(CONSOLE).contains(text) || self.is_over()).then_some(()));
        assert!(said.is_some() && self.read(CONSOLE).contains(text), "the guest never said {text:?}\n{}", self.said());
    }

    fn is_over(&self) -> bool {
        !crate::host::processes::is_alive(self.pid())
    }

    /// Returns the VMM's counters, or `None` if it has ended. A response shows that nothing blocks
    /// the event loop.
    pub fn stats(&mut self) -> Option<VmStats> {
        match self.channel.ask(&ControlRequest::Stats, ANSWER * cli::patience())? {
            ControlReply::Stats(stats) => Some(*stats),
            other => panic!("{other:?} in place of statistics"),
        }
    }

    /// Sends a request whose response has no content.
    ///
    /// # Panics
    /// Panics if the VMM does not execute it.
    pub fn order(&mut self, request: &ControlRequest) {
        match self.channel.ask(request, ANSWER * cli::patience()) {
            Some(ControlReply::Done) => {}
            other => panic!("{other:?} in place of being done\n{}", self.said()),
        }
    }

    /// Saves the whole machine in its present state. The machine keeps running. Can be called once.
    ///
    /// # Panics
    /// Panics if that fails.
    pub fn save(&mut self) -> Saved {
        let file = |name: &str| launch::new_file(self.directory.path(), name);
        let shared = |file: &File| OwnedFd::from(file.try_clone().expect("a descriptor"));
        let (state, memory) = (file("saved-state"), file("saved-memory"));
        let pagemap = File::open(format!("/proc/{}/pagemap", self.pid())).expect("the VMM runs");
        let layer = File::options().read(true).write(true).open(self.path(LAYER)).expect("the machine's files exist");
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

    /// Asserts that the VMM stops using the processor after its guest has.
    ///
    /// # Panics
    /// Panics if it keeps using the processor.
    pub fn assert_at_rest(&self) {
        assert!(
            vitals::comes_to_rest(self.pid()),
            "the guest halted and its VMM did not come to rest\n{}",
            self.said()
        );
    }

    /// Asserts that the event loop of the VMM becomes idle, whatever the vCPUs do.
    ///
    /// # Panics
    /// Panics if it does not.
    pub fn assert_loop_at_rest(&self) {
        assert!(vitals::loop_comes_to_rest(self.pid()), "the VMM's event loop does not come to rest\n{}", self.said());
    }

    /// Asserts that the event loop of the VMM uses the processor at some moment.
    ///
    /// # Panics
    /// Panics if it does not.
    pub fn assert_loop_at_work(&self) {
        assert!(vitals::loop_works(self.pid()), "the VMM's event loop has nothing to do\n{}", self.said());
    }

    /// Asserts that the VMM has stayed within its bounds in all measurements since its start.
    ///
    /// # Panics
    /// Panics if it has not.
    pub fn assert_within_bounds(&self) {
        let bounds = self.shape.bounds;
        let peaks = self.watcher.peaks();
        let threads = 1 + usize::from(self.shape.vcpus);
        let kept = peaks.private_kib <= bounds.private_kib
            && peaks.descriptors <= bounds.descriptors
            && peaks.threads <= threads;
        assert!(kept, "{peaks:?} exceeds {bounds:?} and {threads} threads\n{}", self.said());
        let console = fs::metadata(self.path(CONSOLE)).expect("the machine's files exist").len();
        let limit = self.shape.console_limit;
        assert!(console <= limit, "the console log has {console} bytes, the limit is {limit}");
    }

    /// Stops the machine from outside, as the manager would.
    #[must_use]
    pub fn stop(mut self) -> Ending {
        let _ = self.channel.ask(&ControlRequest::Stop, ANSWER * cli::patience());
        self.finish()
    }

    /// Waits for the end of the machine.
    ///
    /// # Panics
    /// Panics if it does not end by itself, or if the VMM did not stay within its bounds.
    #[must_use]
    pub fn finish(mut self) -> Ending {
        let within = END * cli::patience();
        assert!(self.channel.wait_for_end(within), "the machine did not end within {within:?}\n{}", self.said());
        let exit = self.child.wait().expect("a child can be waited for");
        self.assert_within_bounds();
        Ending { reason: self.channel.ended.clone(), exit, console: self.read(CONSOLE), log: self.read(LOG) }
    }
}

impl Drop for BareMachine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.said());
        }
        // If the process has already been waited for, both calls fail, and nothing is left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ending {
    /// Returns the reason, after checking what must hold for every end. The VMM has reported the
    /// reason and exited with the matching exit code, without a signal and without a panic.
    ///
    /// # Panics
    /// Panics if one of these does not hold.
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

    /// As [`Ending::typed`], and asserts that the guest reached the end of its script.
    #[track_caller]
    pub fn assert_script_completed(&self) {
        assert_eq!(self.typed(), &ExitReason::GuestShutdown, "{self:#?}");
    }
}
