//! proptest strategies for every message of both wires.

use crate::samples::REFUSALS;
use proptest::{collection::vec, option, prelude::*};
use sandboxvm_protocol::{
    agent::details::*, agent::files::*, agent::limits::*, agent::main_process::*, agent::mounts::*, agent::port::*,
    agent::process::*, agent::share::*, agent::workspace::*, agent::*, ids::*, machine::*, network::*, vmm::*,
};

pub fn ctext() -> impl Strategy<Value = CText> {
    vec(1..=u8::MAX, 0..64).prop_map(|bytes| CText::try_from(bytes).expect("no NUL, short"))
}

pub fn sandbox_id() -> impl Strategy<Value = SandboxId> {
    "[a-z0-9]{8,32}".prop_map(|text| SandboxId::try_from(text).expect("matches the grammar"))
}

pub fn sandbox_name() -> impl Strategy<Value = SandboxName> {
    "[a-z0-9][a-z0-9-]{0,62}".prop_map(|text| SandboxName::try_from(text).expect("matches the grammar"))
}

fn signal() -> impl Strategy<Value = SignalNumber> {
    (1u8..=64).prop_map(|number| SignalNumber::try_from(number).expect("in range"))
}

fn terminal() -> impl Strategy<Value = TerminalSize> {
    any::<(u16, u16)>().prop_map(|(rows, columns)| TerminalSize { rows, columns })
}

fn exec() -> impl Strategy<Value = ExecRequest> {
    (
        vec(ctext(), 0..20),
        vec(ctext(), 0..20),
        option::of(ctext()),
        option::of(ctext()),
        prop_oneof![Just(StdinSource::Null), Just(StdinSource::Connection)],
        option::of(terminal()),
        any::<Option<u64>>(),
        prop_oneof![Just(OnDisconnect::Kill), Just(OnDisconnect::RunOn), Just(OnDisconnect::Keep)],
    )
        .prop_map(|(argv, env, cwd, user, stdin, terminal, timeout_ms, on_disconnect)| ExecRequest {
            argv,
            env,
            cwd,
            user,
            stdin,
            terminal,
            timeout_ms,
            on_disconnect,
        })
}

fn identity() -> impl Strategy<Value = GuestIdentity> {
    (any::<u64>(), any::<[u8; 32]>(), sandbox_name(), any::<[u8; 16]>()).prop_map(
        |(wall_clock_ns, entropy, hostname, machine_id)| GuestIdentity { wall_clock_ns, entropy, hostname, machine_id },
    )
}

fn limits() -> impl Strategy<Value = ProcessLimits> {
    let processes = (ProcessCount::MIN..=ProcessCount::MAX).prop_map(|n| ProcessCount::try_from(n).expect("in range"));
    let files = (FileCount::MIN..=FileCount::MAX).prop_map(|n| FileCount::try_from(n).expect("in range"));
    (processes, option::of(files)).prop_map(|(processes, files)| ProcessLimits { processes, files })
}

pub fn host_message() -> impl Strategy<Value = HostMessage> {
    prop_oneof![
        any::<(u8, u8)>().prop_map(|(oldest, newest)| HostMessage::Hello { oldest, newest }),
        Just(HostMessage::Ping),
        exec().prop_map(HostMessage::Exec),
        Just(HostMessage::StdinEof),
        signal().prop_map(HostMessage::Signal),
        terminal().prop_map(HostMessage::Resize),
        identity().prop_map(HostMessage::SetIdentity),
        any::<u32>().prop_map(|grace_ms| HostMessage::Shutdown { grace_ms }),
        any::<u32>().prop_map(|after| HostMessage::ListProcesses { after }),
        attach().prop_map(HostMessage::Attach),
        (any::<u32>(), signal()).prop_map(|(pid, signal)| HostMessage::SignalProcess { pid, signal }),
        (option::of(ctext()), file_operation())
            .prop_map(|(user, operation)| HostMessage::Files(FileRequest { user, operation })),
        (1..=u16::MAX).prop_map(|port| {
            let port = PortNumber::try_from(port).expect("a port");
            HostMessage::Connect(PortRequest { port })
        }),
        limits().prop_map(HostMessage::SetLimits),
        (exec(), signal(), any::<bool>()).prop_map(|(process, stop_signal, is_init)| {
            HostMessage::ExecMain(MainRequest { process, main: MainProcess { stop_signal, is_init } })
        }),
    ]
}

fn file_path() -> impl Strategy<Value = FilePath> {
    vec(1u8.., 1..200).prop_map(|bytes| FilePath::try_from(bytes).expect("no NUL"))
}

fn file_operation() -> impl Strategy<Value = FileOperation> {
    let mode = || any::<Option<u32>>();
    prop_oneof![
        (file_path(), any::<bool>()).prop_map(|(path, follow)| FileOperation::Stat { path, follow }),
        (file_path(), any::<u32>()).prop_map(|(path, depth)| FileOperation::List { path, depth }),
        file_path().prop_map(|path| FileOperation::Read { path }),
        (file_path(), mode(), any::<bool>()).prop_map(|(path, mode, parents)| FileOperation::Write {
            path,
            mode,
            parents
        }),
        (file_path(), mode(), any::<bool>()).prop_map(|(path, mode, must_be_new)| FileOperation::MakeDirectory {
            path,
            mode,
            must_be_new
        }),
        (file_path(), file_path()).prop_map(|(from, to)| FileOperation::Move { from, to }),
        (file_path(), any::<bool>()).prop_map(|(path, recursive)| FileOperation::Remove { path, recursive }),
        (file_path(), any::<u32>(), any::<bool>()).prop_map(|(path, mode, recursive)| FileOperation::SetMode {
            path,
            mode,
            recursive
        }),
        (file_path(), ctext(), any::<bool>()).prop_map(|(path, owner, recursive)| FileOperation::SetOwner {
            path,
            owner,
            recursive
        }),
        (file_path(), any::<bool>()).prop_map(|(path, recursive)| FileOperation::Watch { path, recursive }),
        file_path().prop_map(|path| FileOperation::Describe { path }),
        (file_path(), any::<u32>()).prop_map(|(path, depth)| FileOperation::ListDetails { path, depth }),
        (file_path(), mode(), any::<bool>(), metadata()).prop_map(|(path, mode, parents, metadata)| {
            FileOperation::WriteWithMetadata { path, mode, parents, metadata }
        }),
        (file_path(), any::<[bool; 3]>()).prop_map(|(path, [recursive, details, network])| FileOperation::Observe {
            path,
            recursive,
            details,
            network
        }),
        Just(FileOperation::PackChanges),
        Just(FileOperation::ExtractBelowMounts),
        slot().prop_map(|lowest| FileOperation::PackWorkspace { lowest }),
        (vec(mount(), 0..=4), any::<bool>())
            .prop_map(|(mounts, read_only_root)| FileOperation::Mount(MountTable { mounts, read_only_root })),
        (0..ShareNumber::COUNT, file_path(), any::<bool>(), any::<bool>()).prop_map(
            |(number, at, is_directory, read_only)| {
                let number = ShareNumber::try_from(number).expect("it is below the maximum");
                FileOperation::MountShare(ShareMount { number, at, is_directory, read_only })
            }
        ),
        (vec(slot(), 0..=MAX_SLOTS), file_path(), any::<[u32; 2]>()).prop_map(|(slots, at, [uid, gid])| {
            FileOperation::MountWorkspace(WorkspaceMount { slots, at, uid, gid })
        }),
        (file_path(), file_path(), any::<bool>()).prop_map(|(path, name, follow)| FileOperation::Archive {
            path,
            name,
            follow
        }),
        (file_path(), any::<bool>(), any::<bool>()).prop_map(|(path, create, keep_owner)| FileOperation::Extract {
            path,
            create,
            keep_owner
        }),
    ]
}

fn mount() -> impl Strategy<Value = Mount> {
    let disk = (0..DiskNumber::COUNT).prop_map(|number| DiskNumber::try_from(number).expect("in range"));
    let source = prop_oneof![
        (disk, any::<bool>()).prop_map(|(disk, read_only)| MountedSource::Volume { disk, read_only }),
        (any::<Option<u64>>(), any::<u32>(), any::<bool>()).prop_map(|(size, mode, exec)| MountedSource::Tmpfs {
            size,
            mode,
            exec
        }),
    ];
    (file_path(), source).prop_map(|(at, source)| Mount { at, source })
}

fn slot() -> impl Strategy<Value = SlotNumber> {
    (0..SlotNumber::COUNT).prop_map(|number| SlotNumber::try_from(number).expect("in range"))
}

fn metadata() -> impl Strategy<Value = FileMetadata> {
    vec(("[a-z]{1,20}", "[ -~]{0,40}"), 0..4).prop_map(|pairs| {
        let mut metadata = FileMetadata::default();
        for (key, value) in pairs {
            // A key may occur twice.
            let _ = metadata.insert(key, value);
        }
        metadata
    })
}

fn file_details() -> impl Strategy<Value = FileDetails> {
    let found = option::of(any::<u32>().prop_map(|mode| FoundTarget { kind: FileKind::Directory, mode }));
    let target = (file_path(), found).prop_map(|(path, found)| LinkTarget { path, found });
    (file_entry(), option::of(target), metadata()).prop_map(|(entry, target, metadata)| FileDetails {
        entry,
        target,
        metadata,
    })
}

fn file_entry() -> impl Strategy<Value = FileEntry> {
    let kind = prop_oneof![Just(FileKind::File), Just(FileKind::Directory), Just(FileKind::Symlink)];
    let numbers = (any::<u64>(), any::<[u32; 3]>(), any::<(i64, u32)>());
    (file_path(), kind, numbers, ".{0,16}", ".{0,16}", option::of(file_path())).prop_map(
        |(path, kind, (size, [mode, uid, gid], (seconds, nanoseconds)), owner, group, link_target)| {
            let modified = FileTime { seconds, nanoseconds };
            FileEntry { path, kind, size, mode, uid, gid, owner, group, modified, link_target }
        },
    )
}

fn file_reply() -> impl Strategy<Value = FileReply> {
    let change = || {
        let kind = prop_oneof![Just(ChangeKind::Created), Just(ChangeKind::Missed)];
        (kind, option::of(file_path())).prop_map(|(kind, path)| FileChange { kind, path })
    };
    let kind = prop_oneof![Just(FileErrorKind::NotFound), Just(FileErrorKind::Other)];
    prop_oneof![
        option::of(file_entry()).prop_map(FileReply::Begun),
        file_entry().prop_map(FileReply::Entry),
        vec(file_entry(), 0..4).prop_map(FileReply::Entries),
        vec(change(), 0..8).prop_map(FileReply::Changes),
        file_details().prop_map(FileReply::Details),
        vec(file_details(), 0..4).prop_map(FileReply::DetailsPage),
        vec((change(), option::of(file_details().prop_map(Box::new))), 0..4).prop_map(|observed| {
            FileReply::Observed(observed.into_iter().map(|(change, details)| Observation { change, details }).collect())
        }),
        any::<[u64; 4]>().prop_map(|[entries, bytes, left_out, attributes_lost]| {
            FileReply::Done(FileTotals { entries, bytes, left_out, attributes_lost })
        }),
        (kind, any::<Option<i32>>(), option::of(file_path()), ".{0,200}")
            .prop_map(|(kind, errno, path, message)| { FileReply::Failed(FileFailure { kind, errno, path, message }) }),
    ]
}

fn attach() -> impl Strategy<Value = AttachRequest> {
    let view = prop_oneof![Just(View::Attend), Just(View::Follow), Just(View::Kept), Just(View::End)];
    (any::<u32>(), view, any::<bool>(), option::of(terminal())).prop_map(|(pid, view, stdin, terminal)| AttachRequest {
        pid,
        view,
        stdin,
        terminal,
    })
}

fn process() -> impl Strategy<Value = ProcessInfo> {
    let state = prop_oneof![
        Just(ProcessState::Running),
        (exit_status(), any::<u64>()).prop_map(|(status, ago_ms)| ProcessState::Ended { status, ago_ms }),
    ];
    let argv = vec(".{0,40}".prop_map(ShownText), 0..=MAX_SHOWN_ARGUMENTS);
    (argv, state, any::<[u32; 2]>(), any::<[u64; 3]>(), any::<[bool; 3]>()).prop_map(
        |(
            argv,
            state,
            [pid, connections],
            [age_ms, kept_bytes, dropped_bytes],
            [argv_is_cut, stdin_is_open, has_terminal],
        )| {
            ProcessInfo {
                pid,
                argv,
                argv_is_cut,
                age_ms,
                state,
                stdin_is_open,
                has_terminal,
                connections,
                kept_bytes,
                dropped_bytes,
            }
        },
    )
}

fn exit_status() -> impl Strategy<Value = ExitStatus> {
    prop_oneof![
        any::<u8>().prop_map(ExitStatus::Code),
        signal().prop_map(ExitStatus::Signal),
        Just(ExitStatus::TimedOut)
    ]
}

fn failure() -> impl Strategy<Value = Failure> {
    let kind = prop_oneof![
        Just(FailureKind::NotFound),
        Just(FailureKind::NotExecutable),
        Just(FailureKind::BadWorkingDirectory),
        Just(FailureKind::NoSuchUser),
        Just(FailureKind::Resources),
        Just(FailureKind::BadRequest),
        Just(FailureKind::UnsupportedVersion),
        Just(FailureKind::Internal),
        Just(FailureKind::NoSuchProcess),
        Just(FailureKind::ConnectionRefused),
    ];
    (kind, ".{0,200}").prop_map(|(kind, message)| Failure { kind, message })
}

pub fn agent_message() -> impl Strategy<Value = AgentMessage> {
    prop_oneof![
        any::<u8>().prop_map(|version| AgentMessage::Hello { version }),
        Just(AgentMessage::Pong),
        any::<u32>().prop_map(|pid| AgentMessage::Started { pid }),
        any::<u32>().prop_map(|bytes| AgentMessage::StdinCredit { bytes }),
        exit_status().prop_map(AgentMessage::Exited),
        Just(AgentMessage::IdentitySet),
        Just(AgentMessage::ShuttingDown),
        failure().prop_map(AgentMessage::Failed),
        (vec(process(), 0..4), any::<bool>())
            .prop_map(|(processes, more)| AgentMessage::Processes(ProcessPage { processes, more })),
        any::<Option<u32>>().prop_map(|stdin_credit| AgentMessage::Attached(Attached { stdin_credit })),
        any::<u64>().prop_map(|bytes| AgentMessage::OutputDropped { bytes }),
        Just(AgentMessage::RunsOn),
        Just(AgentMessage::Signalled),
        file_reply().prop_map(AgentMessage::File),
        Just(AgentMessage::Connected),
        Just(AgentMessage::LimitsSet),
        any::<(u64, u64, bool)>().prop_map(|(processes_refused, killed_for_memory, disk_is_full)| {
            AgentMessage::LimitsHit(LimitsHit { processes_refused, killed_for_memory, disk_is_full })
        }),
    ]
}

fn fd() -> impl Strategy<Value = FdIndex> {
    any::<u8>().prop_map(FdIndex)
}

fn disk() -> impl Strategy<Value = DiskConfig> {
    prop_oneof![
        fd().prop_map(|image| DiskConfig::ReadOnly { image }),
        (fd(), vec(fd(), 0..10)).prop_map(|(template, layers)| DiskConfig::Writable { template, layers }),
        fd().prop_map(|file| DiskConfig::Slot { file }),
        (fd(), any::<bool>()).prop_map(|(file, read_only)| DiskConfig::Volume { file, read_only }),
    ]
}

pub fn vcpu_count() -> impl Strategy<Value = VcpuCount> {
    (1u32..=8).prop_map(|count| VcpuCount::try_from(count).expect("in range"))
}

pub fn memory_size() -> impl Strategy<Value = MemorySize> {
    (64u64..=64 * 1024).prop_map(|mib| MemorySize::try_from(mib * MIB).expect("in range"))
}

pub fn guest_cid() -> impl Strategy<Value = GuestCid> {
    (3..u32::MAX).prop_map(|cid| GuestCid::try_from(cid).expect("in range"))
}

fn machine_source() -> impl Strategy<Value = MachineSource> {
    prop_oneof![
        (fd(), "[ -~]{0,100}").prop_map(|(kernel, cmdline_extra)| MachineSource::Boot { kernel, cmdline_extra }),
        (fd(), vec(fd(), 0..=MAX_MEMORY_FILES)).prop_map(|(state, memory)| MachineSource::Snapshot { state, memory }),
    ]
}

fn child_device() -> impl Strategy<Value = ChildDevice> {
    prop_oneof![
        fd().prop_map(|top| ChildDevice::Block { top }),
        fd().prop_map(|listener| ChildDevice::Vsock { listener }),
    ]
}

fn fork_child() -> impl Strategy<Value = ForkChild> {
    let fds = any::<[u8; 6]>().prop_map(|fds| fds.map(FdIndex));
    (sandbox_id(), fds, vec(child_device(), 0..=MAX_DEVICES), any::<bool>()).prop_map(
        |(sandbox, [launcher, console, log, control, status, lock], devices, tie_to_launcher)| ForkChild {
            sandbox,
            launcher,
            devices,
            console,
            log,
            control,
            status,
            lock,
            tie_to_launcher,
        },
    )
}

fn fork_child_v1() -> impl Strategy<Value = v1::ForkChild> {
    (sandbox_id(), any::<[u8; 7]>().prop_map(|fds| fds.map(FdIndex)), vec(fd(), 0..3), any::<bool>()).prop_map(
        |(sandbox, [launcher, vsock, console, log, control, status, lock], disk_tops, tie_to_launcher)| v1::ForkChild {
            sandbox,
            launcher,
            disk_tops,
            vsock,
            console,
            log,
            control,
            status,
            lock,
            tie_to_launcher,
        },
    )
}

fn device() -> impl Strategy<Value = DeviceConfig> {
    prop_oneof![
        disk().prop_map(DeviceConfig::Block),
        (fd(), guest_cid()).prop_map(|(listener, cid)| DeviceConfig::Vsock(VsockConfig { listener, cid })),
        Just(DeviceConfig::Rng),
        Just(DeviceConfig::Balloon),
        (any::<[u8; 5]>(), Mtu::MIN..=Mtu::MAX).prop_map(|([a, b, c, d, e], mtu)| {
            let mac = MacAddress::try_from([2, a, b, c, d, e]).expect("of a single device");
            DeviceConfig::Net(NetConfig { mac, mtu: Mtu::try_from(mtu).expect("in range") })
        }),
    ]
}

pub fn launch_config() -> impl Strategy<Value = LaunchConfig> {
    let machine = (sandbox_id(), vcpu_count(), memory_size(), machine_source(), vec(device(), 0..=MAX_DEVICES));
    let channels = (fd(), any::<u64>(), fd(), fd(), fd());
    (machine, channels, any::<bool>(), any::<bool>()).prop_map(
        |((sandbox, vcpus, memory, source, devices), (log, limit, control, status, lock), start, tie_to_launcher)| {
            let console = ConsoleConfig { log, limit };
            LaunchConfig {
                sandbox,
                vcpus,
                memory,
                source,
                devices,
                console,
                control,
                status,
                lock,
                start,
                tie_to_launcher,
            }
        },
    )
}

pub fn launch_config_v1() -> impl Strategy<Value = v1::LaunchConfig> {
    let machine = (sandbox_id(), vcpu_count(), memory_size(), machine_source(), vec(disk(), 0..=MAX_DISKS));
    let channels = (fd(), guest_cid(), fd(), any::<u64>(), fd(), fd(), fd());
    (machine, channels, any::<bool>(), any::<bool>()).prop_map(
        |(
            (sandbox, vcpus, memory, source, disks),
            (listener, cid, log, limit, control, status, lock),
            start,
            tie_to_launcher,
        )| v1::LaunchConfig {
            sandbox,
            vcpus,
            memory,
            source,
            disks,
            vsock: VsockConfig { listener, cid },
            console: ConsoleConfig { log, limit },
            control,
            status,
            lock,
            start,
            tie_to_launcher,
        },
    )
}

pub fn control_request() -> impl Strategy<Value = ControlRequest> {
    prop_oneof![
        Just(ControlRequest::Start),
        Just(ControlRequest::Pause),
        Just(ControlRequest::Resume),
        Just(ControlRequest::Stop),
        Just(ControlRequest::Stats),
        Just(ControlRequest::Watch),
        (fd(), fd(), fd(), vec(fd(), 0..=MAX_DISKS), any::<bool>()).prop_map(
            |(state, memory, pagemap, disk_tops, full)| {
                ControlRequest::Snapshot(SnapshotRequest { state, memory, pagemap, disk_tops, full })
            }
        ),
        (vec(fd(), 0..3), vec(fork_child_v1(), 0..4))
            .prop_map(|(disk_tops, children)| ControlRequest::ForkV1(v1::ForkRequest { disk_tops, children })),
        (fd(), vec(vec(fd(), 0..9).prop_map(v1::DiskLayers), 0..3))
            .prop_map(|(state, disks)| ControlRequest::ResetV1(v1::ResetRequest { state, disks })),
        (vec(fd(), 0..3), vec(fork_child(), 0..4))
            .prop_map(|(disk_tops, children)| ControlRequest::Fork(ForkRequest { disk_tops, children })),
        (fd(), vec(vec(fd(), 0..9).prop_map(|layers| ResetDevice::Block { layers }), 0..=MAX_DEVICES))
            .prop_map(|(state, devices)| ControlRequest::Reset(ResetRequest { state, devices })),
        Just(ControlRequest::Timeline),
        Just(ControlRequest::Untie),
        vec(fd(), 0..=MAX_DISKS).prop_map(|files| ControlRequest::MergeLayers(MergeLayersRequest { files })),
        Just(ControlRequest::UseMerged),
        fd().prop_map(|frames| ControlRequest::AttachNetwork { frames }),
        Just(ControlRequest::NetworkStats),
        (OutputRate::MIN..=OutputRate::MAX)
            .prop_map(|bytes| ControlRequest::LimitOutput(OutputRate::try_from(bytes).expect("in range"))),
        (option::of(DiskRate::MIN..=DiskRate::MAX), option::of(DiskOperations::MIN..=DiskOperations::MAX)).prop_map(
            |(rate, operations)| ControlRequest::LimitDisk(DiskLimits {
                rate: rate.map(|bytes| DiskRate::try_from(bytes).expect("in range")),
                operations: operations.map(|count| DiskOperations::try_from(count).expect("in range")),
            })
        ),
    ]
}

fn phase() -> impl Strategy<Value = Phase> {
    prop_oneof![Just(Phase::Created), Just(Phase::Booting), Just(Phase::Ready), Just(Phase::Paused), Just(Phase::Ended)]
}

fn host_mode() -> impl Strategy<Value = HostMode> {
    prop_oneof![Just(HostMode::Vmx), Just(HostMode::Svm), Just(HostMode::Pvm)]
}

fn vmm_thread() -> impl Strategy<Value = VmmThread> {
    prop_oneof![Just(VmmThread::EventLoop), Just(VmmThread::Vcpu), Just(VmmThread::Writer)]
}

fn exit_reason() -> impl Strategy<Value = ExitReason> {
    let text = || ".{0,100}";
    prop_oneof![
        Just(ExitReason::GuestShutdown),
        Just(ExitReason::Stopped),
        Just(ExitReason::LauncherGone),
        Just(ExitReason::GuestPanic),
        Just(ExitReason::GuestReset),
        Just(ExitReason::TripleFault),
        Just(ExitReason::GuestPowerOff),
        Just(ExitReason::GuestHalt),
        Just(ExitReason::VcpusHalted),
        (any::<(u32, u64)>(), text()).prop_map(|((suberror, rip), bytes)| ExitReason::InternalError {
            suberror,
            rip,
            bytes
        }),
        any::<u64>().prop_map(|reason| ExitReason::EntryFailure { reason }),
        any::<(u16, bool, u8)>().prop_map(|(port, write, size)| ExitReason::UnknownPort { port, write, size }),
        any::<(u64, bool, u8)>().prop_map(|(address, write, size)| ExitReason::UnknownMmio { address, write, size }),
        text().prop_map(|name| ExitReason::UnexpectedExit { name }),
        text().prop_map(|message| ExitReason::HostFailure { message }),
        text().prop_map(|message| ExitReason::BadConfig { message }),
        (any::<u32>(), vmm_thread()).prop_map(|(number, thread)| ExitReason::ForbiddenCall { number, thread }),
    ]
}

fn vcpu_stats() -> impl Strategy<Value = VcpuStats> {
    any::<[u64; 5]>().prop_map(|[exits, insn_emulation, irq_injections, port_exits, mmio_exits]| VcpuStats {
        exits,
        insn_emulation,
        irq_injections,
        port_exits,
        mmio_exits,
    })
}

fn network_counters() -> impl Strategy<Value = NetworkCounters> {
    any::<(u64, u64, u64)>().prop_map(|(frames, bytes, dropped)| NetworkCounters { frames, bytes, dropped })
}

fn vm_stats() -> impl Strategy<Value = VmStats> {
    let boot = any::<(u64, u64, u64)>().prop_map(|(elapsed_ns, insn_emulation, exits)| BootMark {
        elapsed_ns,
        insn_emulation,
        exits,
    });
    (phase(), host_mode(), vec(vcpu_stats(), 0..=8), any::<Option<u64>>(), option::of(boot), any::<(u64, u64)>())
        .prop_map(|(phase, host_mode, vcpus, first_run_ns, boot, (int3_emulated, fwait_skipped))| VmStats {
            phase,
            host_mode,
            vcpus,
            first_run_ns,
            boot,
            int3_emulated,
            fwait_skipped,
        })
}

pub fn vmm_message() -> impl Strategy<Value = VmmMessage> {
    prop_oneof![
        Just(VmmMessage::Reply(ControlReply::Done)),
        vm_stats().prop_map(|stats| VmmMessage::Reply(ControlReply::Stats(Box::new(stats)))),
        any::<(u64, u64, bool)>().prop_map(|(pause_ns, memory_bytes, self_contained)| {
            VmmMessage::Reply(ControlReply::Snapshot(SnapshotReport { pause_ns, memory_bytes, self_contained }))
        }),
        (any::<u64>(), vec(any::<u32>(), 0..=MAX_FORK_CHILDREN))
            .prop_map(|(pause_ns, pids)| VmmMessage::Reply(ControlReply::Fork(ForkReport { pause_ns, pids }))),
        any::<([u64; 3], [Option<u64>; 2])>().prop_map(|([process_start, confined, launched], [built, first_run])| {
            VmmMessage::Reply(ControlReply::Timeline(Timeline { process_start, confined, launched, built, first_run }))
        }),
        any::<u64>().prop_map(|pause_ns| VmmMessage::Reply(ControlReply::Reset(ResetReport { pause_ns }))),
        ".{0,200}".prop_map(|message| VmmMessage::Reply(ControlReply::Failed { message })),
        (network_counters(), network_counters()).prop_map(|(sent, received)| {
            VmmMessage::Reply(ControlReply::NetworkStats(NetworkStats { sent, received }))
        }),
        (prop::sample::select(REFUSALS.map(|(_, kind)| kind).to_vec()), ".{0,200}")
            .prop_map(|(kind, message)| { VmmMessage::Reply(ControlReply::Refused(Refusal { kind, message })) }),
        phase().prop_map(|phase| VmmMessage::Event(VmmEvent::Phase(phase))),
        exit_reason().prop_map(|reason| VmmMessage::Event(VmmEvent::Ended(reason))),
    ]
}

pub fn vm_status() -> impl Strategy<Value = VmStatus> {
    (any::<u32>(), phase(), host_mode(), option::of(exit_reason())).prop_map(|(pid, phase, host_mode, reason)| {
        VmStatus {
            pid,
            phase,
            host_mode,
            reason,
            missing: Vec::new(),
            clocks_jump: pid % 2 == 0,
            wire: 1 + u8::from(pid % 3 == 0),
        }
    })
}
