//! Drills: attacks of a VMM on its own confinement. A separate build of the VMM
//! (`sandboxvm-vmm-drills`, see `vmm/src/drills/mod.rs`) runs a machine whose guest consists of a
//! few instructions and requests a drill. The VMM is started as the manager starts it, except for
//! the protections that a test omits.

use crate::{artefacts::kvm_is_wanted, waiting::eventually};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use sandboxvm_protocol::{
    frame::{FrameDecoder, Message},
    ids::{GuestCid, SandboxId},
    machine::{MIB, MemorySize, VcpuCount},
    vmm::{
        ConsoleConfig, ControlReply, ControlRequest, DeviceConfig, DiskConfig, ExitReason, FdIndex, LaunchConfig,
        MAX_FDS, MAX_MESSAGE, MachineSource, SnapshotRequest, Timeline, VmStatus, VmmMessage, VmmThread, VsockConfig,
        WIRE,
    },
};
use std::{
    fs::{self, File, OpenOptions},
    io::{IoSlice, Read},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            net::{UnixListener, UnixStream},
            process::ExitStatusExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};
use tempfile::TempDir;

/// Memory of the guest of a drill.
pub const MEMORY: u64 = 64 * MIB;
/// Longest time for a drill. It takes milliseconds, but the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(20);

/// The drills in the order of `vmm/src/drills/attacks.rs`: the guest requests them by number.
const NAMES: &[&str] = &[
    "read-file",
    "open-socket",
    "ptrace",
    "kill",
    "tkill",
    "fork-bomb",
    "exec",
    "mount",
    "steal-descriptor",
    "read-inherited",
    "exhaust-memory",
    "write-file",
    "map-file-shared",
    "map-code",
    "make-code",
    "set-owner",
    "unused-kvm-request",
    "accept",
    "catch-refusals",
    "block-refusals",
    "open-files",
    "grow-file",
    "merge-pages",
    "new-namespace",
    "become-root",
    "write-guest-memory",
    "outrank",
    "run-in-real-time",
    "close-lock",
    "leave-child",
    "fill-status",
];

/// Returns the command by which root of a guest requests this drill from the event loop of its VMM.
///
/// # Panics
/// Panics if there is no such drill.
#[must_use]
pub fn asked_from_within(name: &str) -> String {
    let number = 1 + NAMES.iter().position(|known| *known == name).expect("the drill exists");
    format!("printf '\\{number:03o}' | dd of=/dev/port bs=1 seek={} conv=notrunc 2>/dev/null", 0x5d2)
}

/// The result of an attack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The attack succeeded.
    Done,
    /// The call failed with this error number.
    Failed(i32),
    /// The system call filter ended the VMM, which reported the call and the kind of thread.
    Refused(&'static str, VmmThread),
    /// The system call filter ended the VMM, which could not report anything.
    Killed,
}

/// A drill: what it attacks, from which thread, and without which protections.
#[derive(Debug, Clone)]
pub struct Drill {
    name: &'static str,
    thread: VmmThread,
    target: String,
    without: &'static str,
    wrapper: Option<PathBuf>,
    memory_files_writable: bool,
}

impl Drill {
    /// Returns a drill in the thread of the vCPU, with all protections.
    #[must_use]
    pub fn of(name: &'static str) -> Self {
        let target = String::new();
        Self { name, thread: VmmThread::Vcpu, target, without: "", wrapper: None, memory_files_writable: false }
    }

    /// Sets the target of the attack.
    #[must_use]
    pub fn at(mut self, target: impl ToString) -> Self {
        self.target = target.to_string();
        self
    }

    /// Makes the event loop perform the attack.
    #[must_use]
    pub fn by_event_loop(mut self) -> Self {
        self.thread = VmmThread::EventLoop;
        self
    }

    /// Turns these protections off (`vmm/src/confine/switches.rs`).
    #[must_use]
    pub fn without(mut self, protections: &'static str) -> Self {
        self.without = protections;
        self
    }

    /// Starts the VMM by a program that receives its command line.
    #[must_use]
    pub fn wrapped_by(mut self, program: &Path) -> Self {
        self.wrapper = Some(program.to_owned());
        self
    }

    /// Passes the memory files of a snapshot with write access, which the manager never does.
    #[must_use]
    pub fn with_writable_memory_files(mut self) -> Self {
        self.memory_files_writable = true;
        self
    }

    /// Performs the drill in a new machine, and returns its result.
    #[track_caller]
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.start(None).outcome(self.name)
    }

    /// As [`Self::outcome`], in a machine restored from `snapshot`. Its guest repeats the request
    /// that it made when it was saved.
    #[track_caller]
    #[must_use]
    pub fn outcome_from(&self, snapshot: &Snapshot) -> Outcome {
        self.start(Some(snapshot)).outcome(self.name)
    }

    /// Starts the machine.
    ///
    /// # Panics
    /// Panics if there is no VMM for drills, or if it does not start.
    #[track_caller]
    #[must_use]
    pub fn start(&self, from: Option<&Snapshot>) -> DrillVmm {
        let directory = tempfile::Builder::new().prefix("sandboxvm-drill-").tempdir().expect("a temporary directory");
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let path = |name: &str| directory.path().join(name);
        let log = File::create(path("vmm.log")).expect("a new file");
        let mut command = match &self.wrapper {
            Some(wrapper) => Command::new(wrapper),
            None => Command::new(program()),
        };
        if self.wrapper.is_some() {
            command.arg(program());
        }
        command.env_clear().env("SANDBOXVM_DRILL_TARGET", &self.target).env("SANDBOXVM_DRILL_WITHOUT", self.without);
        command.current_dir("/").stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().expect("the VMM starts");

        let mut files = Files::default();
        let new = |name: &str| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(true).open(path(name)).expect("a new file")
        };
        let source = match from {
            None => {
                let kernel = path("kernel");
                fs::write(&kernel, guest(self.thread, self.name)).expect("a new file");
                let kernel = files.add(File::open(kernel).expect("the file exists"));
                MachineSource::Boot { kernel, cmdline_extra: String::new() }
            }
            Some(snapshot) => {
                let open = |name: &str, write| {
                    OpenOptions::new().read(true).write(write).open(snapshot.directory.path().join(name))
                };
                let state = files.add(open("state", false).expect("the file exists"));
                let memory = open("memory", self.memory_files_writable).expect("the file exists");
                MachineSource::Snapshot { state, memory: vec![files.add(memory)] }
            }
        };
        let image = path("image");
        fs::write(&image, vec![0; 4096]).expect("a new file");
        let config = LaunchConfig {
            sandbox: SandboxId::try_from("abcdefgh".to_owned()).expect("an ID"),
            vcpus: VcpuCount::ONE,
            memory: MemorySize::try_from(MEMORY).expect("a size"),
            source,
            devices: vec![
                DeviceConfig::Block(DiskConfig::ReadOnly { image: files.add(File::open(image).expect("it is there")) }),
                DeviceConfig::Rng,
                DeviceConfig::Vsock(VsockConfig {
                    listener: files.add(UnixListener::bind(path("vsock")).expect("a new socket")),
                    cid: GuestCid::DEFAULT,
                }),
                DeviceConfig::Balloon,
            ],
            console: ConsoleConfig { log: files.add(new("console.log")), limit: 1 << 20 },
            control: files.add(UnixListener::bind(path("control")).expect("a new socket")),
            status: files.add(new("status.json")),
            lock: files.add(new("lock")),
            start: true,
            tie_to_launcher: true,
        };
        send(&ours, &config, &files);
        DrillVmm { child, directory, channel: ours }
    }
}

/// Returns the path of `sandboxvm-vmm-drills`, which `scripts/test` builds.
///
/// # Panics
/// Panics if the file is missing.
#[must_use]
pub fn program() -> PathBuf {
    let stated = std::env::var_os("SANDBOXVM_DRILLS").map(PathBuf::from);
    let built = "x86_64-unknown-linux-musl/machine/sandboxvm-vmm-drills";
    let program = stated.unwrap_or_else(|| crate::artefacts::target_directory().join(built));
    assert!(program.is_file(), "{} is missing: scripts/test builds it and sets SANDBOXVM_DRILLS", program.display());
    program
}

/// Returns false with `SANDBOXVM_NO_KVM=1`. The test then returns immediately.
#[must_use]
pub fn are_wanted() -> bool {
    kvm_is_wanted()
}

/// A machine in a VMM for drills. It ends when the value is dropped.
#[derive(Debug)]
pub struct DrillVmm {
    child: Child,
    directory: TempDir,
    channel: UnixStream,
}

impl DrillVmm {
    /// Returns the PID of the VMM.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the path of a file of the machine.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Returns the status that the VMM last wrote.
    #[must_use]
    pub fn status(&self) -> Option<VmStatus> {
        serde_json::from_slice(&fs::read(self.file("status.json")).ok()?).ok()
    }

    /// Returns the log of the VMM.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.file("vmm.log")).expect("the log is there")
    }

    /// Waits until the machine runs.
    #[track_caller]
    pub fn runs(&self) {
        let running = || self.status().filter(|status| status.phase != sandboxvm_protocol::vmm::Phase::Created);
        assert!(eventually(PATIENCE, running).is_some(), "the machine does not run: {}", self.log());
    }

    /// Returns how the process ended, or `None` while it runs.
    #[must_use]
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// Waits for the end of the drill.
    #[track_caller]
    fn outcome(mut self, name: &str) -> Outcome {
        let prefix = format!("drill {name}: ");
        let over = eventually(PATIENCE, || {
            let log = self.log();
            if let Some(outcome) = result(&log, &prefix) {
                return Some(outcome);
            }
            let ended = self.ended()?;
            Some(match ended.signal() {
                Some(signal) if signal == rustix::process::Signal::SYS.as_raw() => self.refused(),
                // The VMM was replaced by another program, which succeeded.
                None if ended.success() => Outcome::Done,
                _ => panic!("the VMM ended by itself ({ended}): {log}"),
            })
        });
        over.unwrap_or_else(|| panic!("the drill {name} did not end: {}", self.log()))
    }

    /// Returns what the status file and the log report about an end by SIGSYS.
    #[track_caller]
    fn refused(&self) -> Outcome {
        let Some(VmStatus { reason: Some(ExitReason::ForbiddenCall { number, thread }), .. }) = self.status() else {
            return Outcome::Killed;
        };
        let said = format!("sandboxvm-vmm: the system call filter refused call {number} in {thread}\n");
        assert!(self.log().contains(&said), "{}", self.log());
        Outcome::Refused(sandboxvm_protocol::vmm::system_call_name(number), thread)
    }

    /// Takes a snapshot of the machine.
    ///
    /// # Panics
    /// Panics if the VMM takes no snapshot.
    #[track_caller]
    #[must_use]
    pub fn snapshot(&mut self) -> Snapshot {
        let directory = tempfile::Builder::new().prefix("sandboxvm-drill-").tempdir().expect("a temporary directory");
        let mut files = Files::default();
        let new = |name: &str| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(true);
            options.open(directory.path().join(name)).expect("a new file")
        };
        let request = ControlRequest::Snapshot(SnapshotRequest {
            state: files.add(new("state")),
            memory: files.add(new("memory")),
            pagemap: files.add(File::open(format!("/proc/{}/pagemap", self.pid())).expect("the pagemap can be read")),
            disk_tops: Vec::new(),
            full: false,
        });
        match self.ask(&request, &files) {
            ControlReply::Snapshot(_) => Snapshot { directory },
            other => panic!("no snapshot: {other:?}"),
        }
    }

    /// Returns when the phases of the machine's start happened. Waits until the machine runs.
    ///
    /// # Panics
    /// Panics if it does not run.
    #[track_caller]
    #[must_use]
    pub fn timeline(&mut self) -> Timeline {
        loop {
            match self.ask(&ControlRequest::Timeline, &Files::default()) {
                ControlReply::Timeline(timeline) if timeline.first_run.is_some() => return timeline,
                ControlReply::Timeline(_) => {}
                other => panic!("no timeline: {other:?}"),
            }
        }
    }

    #[track_caller]
    fn ask(&mut self, request: &ControlRequest, files: &Files) -> ControlReply {
        send(&self.channel, request, files);
        let mut decoder = FrameDecoder::new(WIRE, MAX_MESSAGE);
        loop {
            while let Some(frame) = decoder.next_frame().expect("the VMM's frames") {
                match WIRE.decode_message(frame.body).expect("the VMM's messages") {
                    VmmMessage::Reply(reply) => return reply,
                    VmmMessage::Event(_) => {}
                }
            }
            let mut bytes = [0; 4096];
            let count = self.channel.read(&mut bytes).expect("the VMM responds");
            assert!(count > 0, "the VMM ended: {}", self.log());
            decoder.push(&bytes[..count]);
        }
    }
}

impl Drop for DrillVmm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns what a log says after `prefix`. The VMM writes a line in several pieces, so one without its end is not read yet.
fn result(log: &str, prefix: &str) -> Option<Outcome> {
    let mut complete = log.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    let result = complete.find_map(|line| line.strip_prefix(prefix))?;
    Some(match result.strip_prefix("errno ").map(str::parse) {
        Some(Ok(number)) => Outcome::Failed(number),
        None if result == "done" => Outcome::Done,
        _ => panic!("the drill reported {result:?}"),
    })
}

/// A snapshot of a machine.
#[derive(Debug)]
pub struct Snapshot {
    directory: TempDir,
}

impl Snapshot {
    /// Returns the path of its memory file.
    #[must_use]
    pub fn memory(&self) -> PathBuf {
        self.directory.path().join("memory")
    }
}

/// Files that are sent with a message.
#[derive(Debug, Default)]
struct Files(Vec<OwnedFd>);

impl Files {
    fn add(&mut self, file: impl Into<OwnedFd>) -> FdIndex {
        self.0.push(file.into());
        FdIndex(u8::try_from(self.0.len() - 1).expect("a few"))
    }
}

fn send(channel: &UnixStream, message: &impl Message, files: &Files) {
    let mut frame = Vec::new();
    WIRE.append_message(&mut frame, message, MAX_MESSAGE).expect("a short message");
    let fds: Vec<BorrowedFd<'_>> = files.0.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(&fds)), "a few files");
    // The test notices if the VMM has ended.
    let _ = sendmsg(channel, &[IoSlice::new(&frame)], &mut ancillary, SendFlags::NOSIGNAL);
}

/// Returns an ELF kernel that requests drill `name` repeatedly, with pauses.
fn guest(thread: VmmThread, name: &str) -> Vec<u8> {
    const LOAD: u64 = 0x20_0000;
    const HEADERS: u64 = 64 + 56;
    let port: u16 = if thread == VmmThread::EventLoop { 0x5d2 } else { 0x5d1 };
    let number = NAMES.iter().position(|known| *known == name).expect("the drill exists") + 1;
    let [low, high] = port.to_le_bytes();
    let mut code = vec![0x66, 0xba, low, high]; // mov dx, port
    code.extend([0xb0, u8::try_from(number).expect("a few")]); // 1: mov al, number
    code.push(0xee); // out dx, al
    code.extend([0xb9, 0x00, 0x80, 0x00, 0x00]); // mov ecx, 0x8000
    code.extend([0xff, 0xc9, 0x75, 0xfc]); // 2: dec ecx; jnz 2b
    code.extend([0xeb, 0xf2]); // jmp 1b
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    elf.extend(2_u16.to_le_bytes()); // executable
    elf.extend(62_u16.to_le_bytes()); // x86-64
    elf.extend(1_u32.to_le_bytes());
    elf.extend((LOAD + HEADERS).to_le_bytes()); // entry
    elf.extend(64_u64.to_le_bytes()); // program headers
    elf.extend(0_u64.to_le_bytes());
    elf.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    let size = HEADERS + code.len() as u64;
    elf.extend(1_u32.to_le_bytes()); // PT_LOAD
    elf.extend(7_u32.to_le_bytes());
    for word in [0, LOAD, LOAD, size, size, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    elf
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_counts_only_with_its_end() {
        let of = |log: &str| result(log, "drill exec: ");
        for incomplete in ["", "drill ", "drill exec: ", "drill exec: errno ", "drill exec: errno 1"] {
            assert_eq!(of(incomplete), None, "{incomplete}");
        }
        assert_eq!(of("noise\ndrill exec: errno 12\ndrill exec: do"), Some(Outcome::Failed(12)));
        assert_eq!(of("drill exec: done\n"), Some(Outcome::Done));
    }
}
