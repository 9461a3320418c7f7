//! One sample value per message variant of both wires, and the list of all variants.
//!
//! The `match` of `variants!` has no wildcard. So a new variant of any enum below does not compile
//! until it is listed there, and then the golden test fails until it has a sample.

mod files;

use files::{file_operations, file_replies};
use sandboxvm_protocol::{
    agent::files::*,
    agent::limits::*,
    agent::main_process::*,
    agent::port::*,
    agent::process::*,
    agent::*,
    frame::Message,
    ids::*,
    machine::*,
    network::*,
    vmm::{self, *},
};
use serde::de::DeserializeOwned;
use std::{collections::BTreeSet, fmt::Debug};

/// A type that travels as the body of a message frame.
pub trait WireMessage: Message + DeserializeOwned + Debug + PartialEq {}
impl<T: Message + DeserializeOwned + Debug + PartialEq> WireMessage for T {}

macro_rules! variants {
    ($($enum:ident { $($variant:ident $fields:tt),+ $(,)? })+) => {
        /// `Enum::Variant` of every enum on the wires.
        pub fn every_variant() -> BTreeSet<&'static str> {
            [$($(concat!(stringify!($enum), "::", stringify!($variant))),+),+].into()
        }

        $(impl Named for $enum {
            fn variant(&self) -> &'static str {
                match self {
                    $(variants!(@pattern $enum $variant $fields) =>
                        concat!(stringify!($enum), "::", stringify!($variant)),)+
                }
            }
        })+
    };
    (@pattern $enum:ident $variant:ident ()) => { $enum::$variant };
    (@pattern $enum:ident $variant:ident (_)) => { $enum::$variant(_) };
    (@pattern $enum:ident $variant:ident {}) => { $enum::$variant { .. } };
}

/// An enum whose values know the name of their variant.
pub trait Named {
    fn variant(&self) -> &'static str;
}

variants! {
    HostMessage {
        Hello {}, Ping (), Exec (_), StdinEof (), Signal (_), Resize (_), SetIdentity (_), Shutdown {},
        ListProcesses {}, Attach (_), SignalProcess {}, Files (_), Connect (_), SetLimits (_),
        ExecMain (_),
    }
    AgentMessage {
        Hello {}, Pong (), Started {}, StdinCredit {}, Exited (_), IdentitySet (), ShuttingDown (), Failed (_),
        Processes (_), Attached (_), OutputDropped {}, RunsOn (), Signalled (), File (_), Connected (),
        LimitsSet (), LimitsHit (_),
    }
    View { Attend (), Follow (), Kept (), End () }
    ProcessState { Running (), Ended {} }
    StdinSource { Null (), Connection () }
    OnDisconnect { Kill (), RunOn (), Keep () }
    ExitStatus { Code (_), Signal (_), TimedOut () }
    FailureKind {
        NotFound (), NotExecutable (), BadWorkingDirectory (), NoSuchUser (), Resources (), BadRequest (),
        UnsupportedVersion (), Internal (), NoSuchProcess (), ConnectionRefused (),
    }
    FileOperation {
        Stat {}, List {}, Read {}, Write {}, MakeDirectory {}, Move {}, Remove {}, SetMode {}, SetOwner {}, Watch {},
        Archive {}, Extract {}, Describe {}, ListDetails {}, WriteWithMetadata {}, Observe {}, PackChanges (),
        ExtractBelowMounts (), MountWorkspace (_), PackWorkspace {}, Mount (_), MountShare (_),
    }
    FileReply { Begun (_), Entry (_), Entries (_), Changes (_), Done (_), Failed (_), Details (_), DetailsPage (_), Observed (_) }
    FileKind {
        File (), Directory (), Symlink (), Fifo (), Socket (), CharacterDevice (), BlockDevice (),
    }
    ChangeKind { Created (), Written (), Removed (), Renamed (), AttributesChanged (), Missed () }
    FileErrorKind {
        NotFound (), AlreadyExists (), IsADirectory (), NotADirectory (), NotEmpty (), PermissionDenied (), NoSpace (),
        ReadOnly (), NotAFile (), NoSuchUser (), BadPath (), BadArchive (), Resources (), BadRequest (), Other (),
        NetworkMount (),
    }
    DeviceConfig { Block (_), Vsock (_), Rng (), Balloon (), Net (_) }
    DiskConfig { ReadOnly {}, Writable {}, Slot {}, Volume {} }
    ChildDevice { Block {}, Vsock {} }
    ResetDevice { Block {} }
    MachineSource { Boot {}, Snapshot {} }
    ControlRequest { Start (), Pause (), Resume (), Stop (), Stats (), Watch (), Snapshot (_), ForkV1 (_), ResetV1 (_), Timeline (), Untie (), MergeLayers (_), UseMerged (), LimitOutput (_), LimitDisk (_), Fork (_), Reset (_), AttachNetwork {}, NetworkStats () }
    VmmMessage { Reply (_), Event (_) }
    ControlReply { Done (), Stats (_), Failed {}, Snapshot (_), Fork (_), Timeline (_), Reset (_), Refused (_), NetworkStats (_) }
    RefusalKind {
        BadRequest (), WrongPhase (), Busy (), Superseded (), BadSnapshot (), NoSpace (), Resources (), Host (),
    }
    VmmEvent { Phase (_), Ended (_) }
    Phase { Created (), Booting (), Ready (), Paused (), Ended () }
    HostMode { Vmx (), Svm (), Pvm () }
    ExitReason {
        GuestShutdown (), Stopped (), LauncherGone (), GuestPanic (), GuestReset (), TripleFault (), InternalError {},
        EntryFailure {}, UnknownPort {}, UnknownMmio {}, UnexpectedExit {}, HostFailure {}, BadConfig {}, ForbiddenCall {},
        GuestPowerOff (), GuestHalt (), VcpusHalted (),
    }
}

/// A sample: its unique label in the golden file, and the variants that it shows.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample<T> {
    pub label: String,
    pub covers: Vec<&'static str>,
    pub message: T,
}

fn sample<T>(label: &str, covers: Vec<&'static str>, message: T) -> Sample<T> {
    Sample { label: label.to_owned(), covers, message }
}

pub fn text(text: &str) -> CText {
    CText::try_from(text).expect("a valid sample")
}

fn signal(number: u8) -> SignalNumber {
    SignalNumber::try_from(number).expect("a valid sample")
}

fn id() -> SandboxId {
    SandboxId::try_from("abcdefgh234567zz".to_owned()).expect("a valid sample")
}

pub fn host_messages() -> Vec<Sample<HostMessage>> {
    let full = ExecRequest {
        argv: vec![text("sh"), text("-c"), text("echo \"$A\"")],
        env: vec![text("A=1"), text("EMPTY=")],
        cwd: Some(text("/tmp")),
        user: Some(text("user")),
        stdin: StdinSource::Connection,
        terminal: Some(TerminalSize { rows: 24, columns: 80 }),
        timeout_ms: Some(30_000),
        on_disconnect: OnDisconnect::RunOn,
    };
    let bare = ExecRequest {
        argv: vec![text("true")],
        env: vec![],
        cwd: None,
        user: None,
        stdin: StdinSource::Null,
        terminal: None,
        timeout_ms: None,
        on_disconnect: OnDisconnect::Kill,
    };
    let identity = GuestIdentity {
        wall_clock_ns: 1_795_312_800_123_456_789,
        entropy: std::array::from_fn(|i| u8::try_from(i).expect("32 fits") ^ 0xa5),
        hostname: SandboxName::try_from("demo-1".to_owned()).expect("a valid sample"),
        machine_id: std::array::from_fn(|i| u8::try_from(i).expect("16 fits") << 4),
    };
    let mut samples = Vec::new();
    let mut add = |label: &str, message: HostMessage| {
        let mut covers = vec![message.variant()];
        match &message {
            HostMessage::Exec(request) => covers.extend([request.stdin.variant(), request.on_disconnect.variant()]),
            HostMessage::Attach(request) => covers.push(request.view.variant()),
            HostMessage::Files(request) => covers.push(request.operation.variant()),
            _ => {}
        }
        samples.push(sample(label, covers, message));
    };
    add("hello", HostMessage::Hello { oldest: 1, newest: 3 });
    add("ping", HostMessage::Ping);
    add("exec-bare", HostMessage::Exec(bare.clone()));
    add("exec-full", HostMessage::Exec(full));
    add("stdin-eof", HostMessage::StdinEof);
    add("signal", HostMessage::Signal(SignalNumber::TERM));
    add("resize", HostMessage::Resize(TerminalSize { rows: 50, columns: 300 }));
    add("set-identity", HostMessage::SetIdentity(identity));
    add("shutdown", HostMessage::Shutdown { grace_ms: 2_000 });
    add("exec-keep", HostMessage::Exec(ExecRequest { on_disconnect: OnDisconnect::Keep, ..bare.clone() }));
    add("list-processes", HostMessage::ListProcesses { after: 4_194_304 });
    for (label, view) in [
        ("attach-attend", View::Attend),
        ("attach-follow", View::Follow),
        ("attach-kept", View::Kept),
        ("attach-end", View::End),
    ] {
        let terminal = (view == View::Attend).then_some(TerminalSize { rows: 24, columns: 80 });
        add(label, HostMessage::Attach(AttachRequest { pid: 300, view, stdin: terminal.is_some(), terminal }));
    }
    add("signal-process", HostMessage::SignalProcess { pid: 300, signal: SignalNumber::KILL });
    for (label, user, operation) in file_operations() {
        let user = user.then(|| text("user:staff"));
        add(&format!("files-{label}"), HostMessage::Files(FileRequest { user, operation }));
    }
    let port = PortNumber::try_from(8000).expect("a port");
    add("connect", HostMessage::Connect(PortRequest { port }));
    let processes = ProcessCount::try_from(256).expect("a valid sample");
    let files = FileCount::try_from(65_536).expect("a valid sample");
    add("set-limits", HostMessage::SetLimits(ProcessLimits { processes, files: None }));
    add("set-limits-of-files", HostMessage::SetLimits(ProcessLimits { processes, files: Some(files) }));
    let init = MainProcess { stop_signal: signal(37), is_init: true };
    add("exec-main-init", HostMessage::ExecMain(MainRequest { process: bare.clone(), main: init }));
    let plain = MainProcess { stop_signal: SignalNumber::TERM, is_init: false };
    add("exec-main", HostMessage::ExecMain(MainRequest { process: bare, main: plain }));
    samples
}

pub fn path(text: &str) -> FilePath {
    FilePath::try_from(text).expect("a valid sample")
}

pub fn agent_messages() -> Vec<Sample<AgentMessage>> {
    let mut samples = Vec::new();
    let mut add = |label: &str, message: AgentMessage| {
        let mut covers = vec![message.variant()];
        match &message {
            AgentMessage::Exited(status) => covers.push(status.variant()),
            AgentMessage::Failed(failure) => covers.push(failure.kind.variant()),
            AgentMessage::Processes(page) => {
                covers.extend(page.processes.iter().map(|process| process.state.variant()));
            }
            _ => {}
        }
        samples.push(sample(label, covers, message));
    };
    add("hello", AgentMessage::Hello { version: 1 });
    add("pong", AgentMessage::Pong);
    add("started", AgentMessage::Started { pid: 4_194_304 });
    add("stdin-credit", AgentMessage::StdinCredit { bytes: STDIN_WINDOW });
    add("exited-code", AgentMessage::Exited(ExitStatus::Code(3)));
    add("exited-signal", AgentMessage::Exited(ExitStatus::Signal(SignalNumber::KILL)));
    add("exited-signal-highest", AgentMessage::Exited(ExitStatus::Signal(signal(64))));
    add("exited-timed-out", AgentMessage::Exited(ExitStatus::TimedOut));
    add("identity-set", AgentMessage::IdentitySet);
    add("shutting-down", AgentMessage::ShuttingDown);
    for (label, kind, message) in [
        ("failed-not-found", FailureKind::NotFound, "no such program: nope"),
        ("failed-not-executable", FailureKind::NotExecutable, "/etc/passwd is not executable"),
        ("failed-bad-working-directory", FailureKind::BadWorkingDirectory, "/nowhere"),
        ("failed-no-such-user", FailureKind::NoSuchUser, "nobody-here"),
        ("failed-resources", FailureKind::Resources, "argument list too long"),
        ("failed-bad-request", FailureKind::BadRequest, ""),
        ("failed-unsupported-version", FailureKind::UnsupportedVersion, "1 to 1"),
        ("failed-no-such-process", FailureKind::NoSuchProcess, "no process 42"),
        ("failed-connection-refused", FailureKind::ConnectionRefused, "nothing listens on port 8000"),
        ("failed-internal", FailureKind::Internal, "pipe2: Too many open files \u{2014} \u{fc}"),
    ] {
        add(label, AgentMessage::Failed(Failure { kind, message: message.to_owned() }));
    }
    let process = |pid, state| ProcessInfo {
        pid,
        argv: vec![ShownText("sh".to_owned()), ShownText("-c".to_owned())],
        argv_is_cut: true,
        age_ms: 90_000,
        state,
        stdin_is_open: true,
        has_terminal: false,
        connections: 1,
        kept_bytes: 70_000,
        dropped_bytes: 300,
    };
    let ended = ProcessState::Ended { status: ExitStatus::Code(3), ago_ms: 200 };
    let processes = vec![process(300, ProcessState::Running), process(301, ended)];
    add("processes", AgentMessage::Processes(ProcessPage { processes, more: true }));
    add("attached", AgentMessage::Attached(Attached { stdin_credit: None }));
    add("attached-to-stdin", AgentMessage::Attached(Attached { stdin_credit: Some(STDIN_WINDOW) }));
    add("output-dropped", AgentMessage::OutputDropped { bytes: 1 << 40 });
    add("runs-on", AgentMessage::RunsOn);
    add("signalled", AgentMessage::Signalled);
    add("connected", AgentMessage::Connected);
    add("limits-set", AgentMessage::LimitsSet);
    let hit = LimitsHit { processes_refused: 300, killed_for_memory: 1, disk_is_full: true };
    add("limits-hit", AgentMessage::LimitsHit(hit));
    for (label, reply, mut covers) in file_replies() {
        covers.extend(["AgentMessage::File", reply.variant()]);
        samples.push(sample(&format!("file-{label}"), covers, AgentMessage::File(reply)));
    }
    samples
}

pub fn launch_configs() -> Vec<Sample<LaunchConfig>> {
    launch_configs_v1()
        .into_iter()
        .map(|Sample { label, message, .. }| {
            let message = LaunchConfig::from(message);
            let disks = message.devices.iter().filter_map(|device| match device {
                DeviceConfig::Block(disk) => Some(disk.variant()),
                _ => None,
            });
            let covers = disks.chain(message.devices.iter().map(Named::variant)).chain([message.source.variant()]);
            Sample { label, covers: covers.collect(), message }
        })
        .chain([launch_config_with_card(), launch_config_with_slots(), launch_config_with_volumes()])
        .collect()
}

fn launch_config_with_card() -> Sample<LaunchConfig> {
    let card = DeviceConfig::Net(NetConfig { mac: MacAddress::GUEST, mtu: Mtu::GUEST });
    let covers = vec![card.variant()];
    let config = launch_configs_v1().remove(0).message;
    let mut config = LaunchConfig::from(config);
    config.devices.push(card);
    sample("launch-network", covers, config)
}

fn launch_config_with_slots() -> Sample<LaunchConfig> {
    let mut config = LaunchConfig::from(launch_configs_v1().remove(0).message);
    for file in [10, 11] {
        config.devices.push(DeviceConfig::Block(DiskConfig::Slot { file: FdIndex(file) }));
    }
    sample("launch-slots", vec!["DiskConfig::Slot"], config)
}

fn launch_config_with_volumes() -> Sample<LaunchConfig> {
    let mut config = LaunchConfig::from(launch_configs_v1().remove(0).message);
    for (file, read_only) in [(10, false), (11, true)] {
        config.devices.push(DeviceConfig::Block(DiskConfig::Volume { file: FdIndex(file), read_only }));
    }
    sample("launch-volumes", vec!["DiskConfig::Volume"], config)
}

/// What servers send that have run since before an upgrade.
pub fn launch_configs_v1() -> Vec<Sample<vmm::v1::LaunchConfig>> {
    let config = vmm::v1::LaunchConfig {
        sandbox: id(),
        vcpus: VcpuCount::try_from(2).expect("a valid sample"),
        memory: MemorySize::try_from(256 * MIB).expect("a valid sample"),
        source: MachineSource::Boot { kernel: FdIndex(0), cmdline_extra: "sandboxvm.test=1".to_owned() },
        disks: vec![
            DiskConfig::ReadOnly { image: FdIndex(1) },
            DiskConfig::Writable { template: FdIndex(2), layers: vec![FdIndex(3), FdIndex(4)] },
        ],
        vsock: VsockConfig { listener: FdIndex(5), cid: GuestCid::DEFAULT },
        console: ConsoleConfig { log: FdIndex(6), limit: 1 << 20 },
        control: FdIndex(7),
        status: FdIndex(8),
        lock: FdIndex(9),
        start: true,
        tie_to_launcher: false,
    };
    let restore = vmm::v1::LaunchConfig {
        source: MachineSource::Snapshot { state: FdIndex(0), memory: vec![FdIndex(10), FdIndex(11)] },
        ..config.clone()
    };
    vec![sample("launch", Vec::new(), config), sample("launch-snapshot", Vec::new(), restore)]
}

pub fn control_requests() -> Vec<Sample<ControlRequest>> {
    [
        ("start", ControlRequest::Start),
        ("pause", ControlRequest::Pause),
        ("resume", ControlRequest::Resume),
        ("stop", ControlRequest::Stop),
        ("stats", ControlRequest::Stats),
        ("watch", ControlRequest::Watch),
        (
            "snapshot",
            ControlRequest::Snapshot(SnapshotRequest {
                state: FdIndex(0),
                memory: FdIndex(1),
                pagemap: FdIndex(2),
                disk_tops: vec![FdIndex(3)],
                full: true,
            }),
        ),
        (
            "fork",
            ControlRequest::ForkV1(vmm::v1::ForkRequest {
                disk_tops: vec![FdIndex(0)],
                children: vec![vmm::v1::ForkChild {
                    sandbox: id(),
                    launcher: FdIndex(1),
                    disk_tops: vec![FdIndex(2)],
                    vsock: FdIndex(3),
                    console: FdIndex(4),
                    log: FdIndex(5),
                    control: FdIndex(6),
                    status: FdIndex(7),
                    lock: FdIndex(8),
                    tie_to_launcher: false,
                }],
            }),
        ),
        (
            "reset",
            ControlRequest::ResetV1(vmm::v1::ResetRequest {
                state: FdIndex(0),
                disks: vec![vmm::v1::DiskLayers(vec![FdIndex(1), FdIndex(2)])],
            }),
        ),
        (
            "fork-devices",
            ControlRequest::Fork(ForkRequest {
                disk_tops: vec![FdIndex(0)],
                children: vec![ForkChild {
                    sandbox: id(),
                    launcher: FdIndex(1),
                    devices: vec![ChildDevice::Block { top: FdIndex(2) }, ChildDevice::Vsock { listener: FdIndex(3) }],
                    console: FdIndex(4),
                    log: FdIndex(5),
                    control: FdIndex(6),
                    status: FdIndex(7),
                    lock: FdIndex(8),
                    tie_to_launcher: false,
                }],
            }),
        ),
        (
            "reset-devices",
            ControlRequest::Reset(ResetRequest {
                state: FdIndex(0),
                devices: vec![ResetDevice::Block { layers: vec![FdIndex(1), FdIndex(2)] }],
            }),
        ),
        ("timeline", ControlRequest::Timeline),
        ("untie", ControlRequest::Untie),
        ("merge-layers", ControlRequest::MergeLayers(MergeLayersRequest { files: vec![FdIndex(0)] })),
        ("use-merged", ControlRequest::UseMerged),
        ("limit-output", ControlRequest::LimitOutput(OutputRate::try_from(4 * MIB).expect("a valid sample"))),
        (
            "limit-disk",
            ControlRequest::LimitDisk(DiskLimits {
                rate: Some(DiskRate::try_from(8 * MIB).expect("a valid sample")),
                operations: Some(DiskOperations::try_from(500).expect("a valid sample")),
            }),
        ),
        ("limit-disk-not", ControlRequest::LimitDisk(DiskLimits::default())),
        ("attach-network", ControlRequest::AttachNetwork { frames: FdIndex(0) }),
        ("network-stats", ControlRequest::NetworkStats),
    ]
    .map(|(label, request)| {
        let mut covers = vec![request.variant()];
        match &request {
            ControlRequest::Fork(request) => {
                covers.extend(request.children.iter().flat_map(|child| &child.devices).map(Named::variant));
            }
            ControlRequest::Reset(request) => covers.extend(request.devices.iter().map(Named::variant)),
            _ => {}
        }
        sample(label, covers, request)
    })
    .into()
}

pub const REFUSALS: [(&str, RefusalKind); 8] = [
    ("bad-request", RefusalKind::BadRequest),
    ("wrong-phase", RefusalKind::WrongPhase),
    ("busy", RefusalKind::Busy),
    ("superseded", RefusalKind::Superseded),
    ("bad-snapshot", RefusalKind::BadSnapshot),
    ("no-space", RefusalKind::NoSpace),
    ("resources", RefusalKind::Resources),
    ("host", RefusalKind::Host),
];

pub fn exit_reasons() -> Vec<(&'static str, ExitReason)> {
    vec![
        ("guest-shutdown", ExitReason::GuestShutdown),
        ("stopped", ExitReason::Stopped),
        ("launcher-gone", ExitReason::LauncherGone),
        ("guest-panic", ExitReason::GuestPanic),
        ("guest-reset", ExitReason::GuestReset),
        ("triple-fault", ExitReason::TripleFault),
        (
            "internal-error",
            ExitReason::InternalError { suberror: 1, rip: 0xffff_ffff_8100_0000, bytes: "0f01cb".to_owned() },
        ),
        ("entry-failure", ExitReason::EntryFailure { reason: 0x8000_0021 }),
        ("unknown-port", ExitReason::UnknownPort { port: 0xcf8, write: true, size: 4 }),
        ("unknown-mmio", ExitReason::UnknownMmio { address: 0xfee0_0000_0000, write: false, size: 8 }),
        ("unexpected-exit", ExitReason::UnexpectedExit { name: "KVM_EXIT_HYPERV".to_owned() }),
        ("host-failure", ExitReason::HostFailure { message: "KVM_RUN: Bad address".to_owned() }),
        ("bad-config", ExitReason::BadConfig { message: "the kernel is not an ELF file".to_owned() }),
        ("forbidden-call", ExitReason::ForbiddenCall { number: 59, thread: VmmThread::Vcpu }),
        ("guest-power-off", ExitReason::GuestPowerOff),
        ("guest-halt", ExitReason::GuestHalt),
        ("vcpus-halted", ExitReason::VcpusHalted),
    ]
}

pub const PHASES: [(&str, Phase); 5] = [
    ("created", Phase::Created),
    ("booting", Phase::Booting),
    ("ready", Phase::Ready),
    ("paused", Phase::Paused),
    ("ended", Phase::Ended),
];

pub const HOST_MODES: [(&str, HostMode); 3] = [("vmx", HostMode::Vmx), ("svm", HostMode::Svm), ("pvm", HostMode::Pvm)];

fn stats(host_mode: HostMode) -> VmStats {
    VmStats {
        phase: Phase::Ready,
        host_mode,
        vcpus: vec![
            VcpuStats {
                exits: 123_456,
                insn_emulation: 11_900_000,
                irq_injections: 777,
                port_exits: 12,
                mmio_exits: 3_456,
            },
            VcpuStats::default(),
        ],
        first_run_ns: Some(830_000),
        boot: Some(BootMark { elapsed_ns: 3_200_000_000, insn_emulation: 11_000_000, exits: 100_000 }),
        int3_emulated: 2,
        fwait_skipped: 1,
    }
}

pub fn vmm_messages() -> Vec<Sample<VmmMessage>> {
    let mut samples = Vec::new();
    let mut add = |label: &str, inner: Vec<&'static str>, message: VmmMessage| {
        let mut covers = vec![message.variant()];
        covers.push(match &message {
            VmmMessage::Reply(reply) => reply.variant(),
            VmmMessage::Event(event) => event.variant(),
        });
        covers.extend(inner);
        samples.push(sample(label, covers, message));
    };
    add("reply-done", vec![], VmmMessage::Reply(ControlReply::Done));
    for (label, mode) in HOST_MODES {
        let reply = ControlReply::Stats(Box::new(stats(mode)));
        add(&format!("reply-stats-{label}"), vec![mode.variant()], VmmMessage::Reply(reply));
    }
    let report = SnapshotReport { pause_ns: 1_900_000, memory_bytes: 4 << 20, self_contained: false };
    add("reply-snapshot", vec![], VmmMessage::Reply(ControlReply::Snapshot(report)));
    let report = ForkReport { pause_ns: 1_900_000, pids: vec![4711, 4712] };
    add("reply-fork", vec![], VmmMessage::Reply(ControlReply::Fork(report)));
    let timeline = Timeline {
        process_start: 1_000_000_000,
        confined: 1_000_900_000,
        launched: 1_001_000_000,
        built: Some(1_001_900_000),
        first_run: Some(1_002_000_000),
    };
    add("reply-timeline", vec![], VmmMessage::Reply(ControlReply::Timeline(timeline)));
    add("reply-reset", vec![], VmmMessage::Reply(ControlReply::Reset(ResetReport { pause_ns: 1_900_000 })));
    let failed = ControlReply::Failed { message: "the machine is not running".to_owned() };
    add("reply-failed", vec![], VmmMessage::Reply(failed));
    for (label, kind) in REFUSALS {
        let refusal = Refusal { kind, message: "cannot write the snapshot".to_owned() };
        let reply = VmmMessage::Reply(ControlReply::Refused(refusal));
        add(&format!("reply-refused-{label}"), vec![kind.variant()], reply);
    }
    let counters = |frames| NetworkCounters { frames, bytes: 1500 * frames, dropped: frames / 100 };
    let network = NetworkStats { sent: counters(300), received: counters(40_000) };
    add("reply-network-stats", vec![], VmmMessage::Reply(ControlReply::NetworkStats(network)));
    for (label, phase) in PHASES {
        add(&format!("event-phase-{label}"), vec![phase.variant()], VmmMessage::Event(VmmEvent::Phase(phase)));
    }
    for (label, reason) in exit_reasons() {
        let covers = vec![reason.variant()];
        add(&format!("event-ended-{label}"), covers, VmmMessage::Event(VmmEvent::Ended(reason)));
    }
    samples
}

/// One status file for each reason, phase and host mode.
pub fn statuses() -> Vec<(String, VmStatus)> {
    let status = |phase, host_mode, reason| VmStatus {
        pid: 4711,
        phase,
        host_mode,
        reason,
        missing: Vec::new(),
        clocks_jump: false,
        wire: 1,
    };
    let phases = PHASES.map(|(label, phase)| (format!("phase-{label}"), status(phase, HostMode::Vmx, None)));
    let modes = HOST_MODES.map(|(label, mode)| (format!("mode-{label}"), status(Phase::Ready, mode, None)));
    let reasons = exit_reasons()
        .into_iter()
        .map(|(label, reason)| (format!("reason-{label}"), status(Phase::Ended, HostMode::Pvm, Some(reason))));
    let parts = vec![JailPart::UserNamespace, JailPart::Namespaces, JailPart::EmptyRoot, JailPart::OwnUser];
    let missing = VmStatus { missing: parts, ..status(Phase::Ready, HostMode::Svm, None) };
    let clocks = VmStatus { clocks_jump: true, ..status(Phase::Ready, HostMode::Pvm, None) };
    let others = [
        ("missing".to_owned(), missing),
        ("clocks-jump".to_owned(), clocks),
        ("wire-2".to_owned(), VmStatus { wire: 2, ..status(Phase::Ready, HostMode::Vmx, None) }),
    ];
    phases.into_iter().chain(modes).chain(reasons).chain(others).collect()
}
