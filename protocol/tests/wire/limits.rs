//! Every maximum length, at the maximum and one beyond it.

use crate::samples::text;
use sandboxvm_protocol::{
    agent::{self, details::*, files::*, limits::*, main_process::*, port::*, process::*, *},
    frame::{FrameDecoder, FrameError, FrameKind, HEADER_LEN, MAX_STREAM_BODY, Wire},
    ids::*,
    machine::*,
    vmm::{self, *},
};

const STREAMS: [FrameKind; 3] = [FrameKind::Stdin, FrameKind::Stdout, FrameKind::Stderr];

/// Returns a header as a peer without these limits would write it.
fn header(wire: Wire, kind: u8, len: u32) -> [u8; HEADER_LEN] {
    let [a, b, c, d] = len.to_le_bytes();
    [wire.magic[0], wire.magic[1], wire.version, kind, a, b, c, d]
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("test lengths fit")
}

#[test]
fn a_stream_frame_beyond_its_maximum_size_is_refused() {
    for wire in [agent::WIRE, vmm::WIRE] {
        for kind in STREAMS {
            let at_cap = header(wire, kind as u8, length(MAX_STREAM_BODY));
            // The maximum size of messages does not apply to stream frames.
            assert_eq!(wire.parse_header(&at_cap, 0).expect("at the cap").len, MAX_STREAM_BODY);
            let over = header(wire, kind as u8, length(MAX_STREAM_BODY + 1));
            let refused = FrameError::TooLong { kind, len: MAX_STREAM_BODY + 1, cap: MAX_STREAM_BODY };
            assert_eq!(wire.parse_header(&over, usize::MAX), Err(refused));
        }
    }
}

#[test]
fn a_message_frame_beyond_its_maximum_size_is_refused() {
    for (wire, cap) in [
        (agent::WIRE, MAX_HOST_MESSAGE),
        (agent::WIRE, MAX_AGENT_MESSAGE),
        (vmm::WIRE, MAX_MESSAGE),
        (vmm::WIRE, 0),
        (agent::WIRE, 1),
    ] {
        let kind = FrameKind::Message;
        assert_eq!(wire.parse_header(&header(wire, kind as u8, length(cap)), cap).expect("at the cap").len, cap);
        for len in [cap + 1, u32::MAX as usize] {
            let refused = FrameError::TooLong { kind, len, cap };
            assert_eq!(wire.parse_header(&header(wire, kind as u8, length(len)), cap), Err(refused.clone()));
            // The decoder refuses the header alone, before any byte of the body arrives.
            let mut decoder = FrameDecoder::new(wire, cap);
            decoder.push(&header(wire, kind as u8, length(len)));
            assert_eq!(decoder.next_frame(), Err(refused));
        }
    }
}

#[test]
fn the_sender_refuses_a_message_over_the_cap_and_writes_nothing() {
    let message = HostMessage::Signal(SignalNumber::TERM);
    let mut frame = Vec::new();
    agent::WIRE.append_message(&mut frame, &message, usize::MAX).expect("no cap");
    let body = frame.len() - HEADER_LEN;
    let mut out = b"before".to_vec();
    let refused = FrameError::TooLong { kind: FrameKind::Message, len: body, cap: body - 1 };
    assert_eq!(agent::WIRE.append_message(&mut out, &message, body - 1), Err(refused));
    assert_eq!(out, b"before");
    agent::WIRE.append_message(&mut out, &message, body).expect("at the cap");
    assert_eq!(out[b"before".len()..], frame);
}

#[test]
fn the_length_field_holds_32_bits() {
    assert!(agent::WIRE.header(FrameKind::Stdin, u32::MAX as usize).is_ok());
    assert!(matches!(
        agent::WIRE.header(FrameKind::Stdin, u32::MAX as usize + 1),
        Err(FrameError::TooLong { len, .. }) if len == 1 << 32
    ));
}

#[test]
fn versions_outside_the_range_are_refused() {
    let wire = Wire { magic: *b"SA", version: 5, oldest: 3 };
    for (version, accepted) in [(0, false), (2, false), (3, true), (4, true), (5, true), (6, false), (255, false)] {
        let mut bytes = header(wire, FrameKind::Message as u8, 0);
        bytes[2] = version;
        match wire.parse_header(&bytes, 0) {
            Ok(header) => assert!(accepted && header.version == version),
            Err(error) => {
                assert!(!accepted);
                assert_eq!(error, FrameError::Version { found: version, oldest: 3, newest: 5 });
            }
        }
    }
}

fn exec(argv: Vec<CText>, env: Vec<CText>) -> ExecRequest {
    ExecRequest {
        argv,
        env,
        cwd: None,
        user: None,
        stdin: StdinSource::Null,
        terminal: None,
        timeout_ms: None,
        on_disconnect: OnDisconnect::Kill,
    }
}

/// Encodes `at_cap` and expects to decode it. Then asserts that `over` cannot be encoded, and that
/// `forged`, which a peer may send anyway, cannot be decoded.
fn capped<T>(at_cap: &T, over: &T, forged: &[u8])
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq,
{
    let bytes = postcard::to_stdvec(at_cap).expect("at the cap");
    assert!(postcard::from_bytes::<T>(&bytes).expect("at the cap") == *at_cap);
    assert!(postcard::to_stdvec(over).is_err(), "one over the cap was encoded");
    assert!(postcard::from_bytes::<T>(forged).is_err(), "one over the cap was decoded");
}

/// Returns postcard's encoding of a list of `count` equal elements.
fn forged_list(count: usize, element: &[u8]) -> Vec<u8> {
    let mut bytes = postcard::to_stdvec(&count).expect("encodes");
    bytes.extend(element.repeat(count));
    bytes
}

#[test]
fn argv_and_environment_are_capped_in_number() {
    let list = |count: usize| vec![text(""); count];
    let forged = |argv: usize, env: usize| {
        let mut bytes = forged_list(argv, &[0]);
        bytes.extend(forged_list(env, &[0]));
        bytes.extend([0, 0, 0, 0, 0, 0]);
        bytes
    };
    let cap = MAX_ARGUMENT_COUNT;
    assert_eq!(postcard::from_bytes::<ExecRequest>(&forged(1, 2)).expect("well forged"), exec(list(1), list(2)));
    capped(&exec(list(cap), list(0)), &exec(list(cap + 1), list(0)), &forged(cap + 1, 0));
    capped(&exec(list(0), list(cap)), &exec(list(0), list(cap + 1)), &forged(0, cap + 1));
}

#[test]
fn the_largest_request_fits_the_host_message_cap() {
    // MAX_ARGUMENTS_TOTAL bytes in the maximum number of elements: the largest framing overhead.
    let each = MAX_ARGUMENTS_TOTAL / (2 * MAX_ARGUMENT_COUNT);
    let list = vec![text(&"x".repeat(each)); MAX_ARGUMENT_COUNT];
    let message = HostMessage::Exec(ExecRequest {
        cwd: Some(text(&"/".repeat(MAX_ARGUMENT))),
        user: Some(text(&"u".repeat(MAX_ARGUMENT))),
        ..exec(list.clone(), list)
    });
    agent::WIRE.append_message(&mut Vec::new(), &message, MAX_HOST_MESSAGE).expect("fits");
}

fn launch(devices: Vec<DeviceConfig>, cmdline_extra: String) -> LaunchConfig {
    LaunchConfig {
        sandbox: SandboxId::from_entropy([7; 10]),
        vcpus: VcpuCount::ONE,
        memory: MemorySize::try_from(64 * MIB).expect("the smallest"),
        source: MachineSource::Boot { kernel: FdIndex(0), cmdline_extra },
        devices,
        console: ConsoleConfig { log: FdIndex(2), limit: 0 },
        control: FdIndex(3),
        status: FdIndex(4),
        lock: FdIndex(5),
        start: true,
        tie_to_launcher: true,
    }
}

fn launch_v1(disks: Vec<DiskConfig>, cmdline_extra: String) -> v1::LaunchConfig {
    let LaunchConfig { sandbox, vcpus, memory, source, console, control, status, lock, start, tie_to_launcher, .. } =
        launch(vec![], cmdline_extra);
    let vsock = VsockConfig { listener: FdIndex(1), cid: GuestCid::DEFAULT };
    v1::LaunchConfig {
        sandbox,
        vcpus,
        memory,
        source,
        disks,
        vsock,
        console,
        control,
        status,
        lock,
        start,
        tie_to_launcher,
    }
}

/// Replaces the empty command line and the empty list after it in `valid`.
fn forge_launch(valid: &[u8], line: &[u8], list: &[u8]) -> Vec<u8> {
    let head = postcard::to_stdvec(&(SandboxId::from_entropy([7; 10]), 1u32, 64 * MIB, 0u8, 0u8)).expect("encodes");
    assert_eq!(valid[..head.len()], head);
    [&head, line, list, &valid[head.len() + 2..]].concat()
}

#[test]
fn a_launch_config_is_capped() {
    let disk = || DeviceConfig::Block(DiskConfig::ReadOnly { image: FdIndex(9) });
    let devices = |count: usize| launch(vec![disk(); count], String::new());
    let line = |len: usize| launch(vec![], "c".repeat(len));
    let valid = postcard::to_stdvec(&devices(0)).expect("encodes");
    let forge = |line: &[u8], devices: &[u8]| forge_launch(&valid, line, devices);
    assert_eq!(
        postcard::from_bytes::<LaunchConfig>(&forge(&[0], &forged_list(2, &[0, 0, 9]))).expect("well forged"),
        devices(2)
    );
    let many = forged_list(MAX_DEVICES + 1, &[0, 0, 9]);
    capped(&devices(MAX_DEVICES), &devices(MAX_DEVICES + 1), &forge(&[0], &many));
    let long = forged_list(MAX_CMDLINE_EXTRA + 1, b"c");
    capped(&line(MAX_CMDLINE_EXTRA), &line(MAX_CMDLINE_EXTRA + 1), &forge(&long, &[0]));
}

#[test]
fn a_launch_config_of_version_1_is_capped() {
    let disks = |count: usize| launch_v1(vec![DiskConfig::ReadOnly { image: FdIndex(9) }; count], String::new());
    let valid = postcard::to_stdvec(&disks(0)).expect("encodes");
    let forge = |disks: &[u8]| forge_launch(&valid, &[0], disks);
    assert_eq!(
        postcard::from_bytes::<v1::LaunchConfig>(&forge(&forged_list(2, &[0, 9]))).expect("well forged"),
        disks(2)
    );
    capped(&disks(MAX_DISKS), &disks(MAX_DISKS + 1), &forge(&forged_list(MAX_DISKS + 1, &[0, 9])));
}

#[test]
fn the_largest_launch_config_fits_the_message_cap() {
    let disk = DiskConfig::Writable { template: FdIndex(255), layers: vec![FdIndex(255); MAX_FDS] };
    let config = launch(vec![DeviceConfig::Block(disk); MAX_DEVICES], "c".repeat(MAX_CMDLINE_EXTRA));
    vmm::WIRE.append_message(&mut Vec::new(), &config, MAX_MESSAGE).expect("fits");
}

#[test]
fn the_devices_of_copies_and_resets_are_capped() {
    let files = |count: usize| ResetRequest {
        state: FdIndex(0),
        devices: vec![ResetDevice::Block { layers: vec![FdIndex(1)] }; count],
    };
    let forged = [&[0][..], &forged_list(MAX_DEVICES + 1, &[0, 1, 1])].concat();
    capped(&files(MAX_DEVICES), &files(MAX_DEVICES + 1), &forged);
    let child = |count: usize| ForkChild {
        sandbox: SandboxId::from_entropy([7; 10]),
        launcher: FdIndex(0),
        devices: vec![ChildDevice::Vsock { listener: FdIndex(1) }; count],
        console: FdIndex(2),
        log: FdIndex(3),
        control: FdIndex(4),
        status: FdIndex(5),
        lock: FdIndex(6),
        tie_to_launcher: true,
    };
    let head = postcard::to_stdvec(&(SandboxId::from_entropy([7; 10]), 0u8)).expect("encodes");
    let forged = [&head[..], &forged_list(MAX_DEVICES + 1, &[1, 1]), &[2, 3, 4, 5, 6, 1]].concat();
    capped(&child(MAX_DEVICES), &child(MAX_DEVICES + 1), &forged);
}

#[test]
fn disk_layers_are_capped() {
    let disk = |count: usize| DiskConfig::Writable { template: FdIndex(1), layers: vec![FdIndex(2); count] };
    let forged = [&[1, 1][..], &forged_list(MAX_FDS + 1, &[2])].concat();
    capped(&disk(MAX_FDS), &disk(MAX_FDS + 1), &forged);
}

#[test]
fn vcpu_counters_are_capped() {
    let stats = |count: usize| VmStats {
        phase: Phase::Ready,
        host_mode: HostMode::Pvm,
        vcpus: vec![VcpuStats::default(); count],
        first_run_ns: None,
        boot: None,
        int3_emulated: 0,
        fwait_skipped: 0,
    };
    let cap = usize::from(VcpuCount::MAX);
    let forged = [&[2, 2][..], &forged_list(cap + 1, &[0; 5]), &[0, 0, 0, 0]].concat();
    capped(&stats(cap), &stats(cap + 1), &forged);
}

/// The sender cuts texts for users at a character boundary, so that no failure is too long to be
/// sent. A receiver refuses texts beyond the maximum.
#[test]
fn texts_for_users_are_cut_when_sent_and_refused_when_longer() {
    let failure = |message: String| Failure { kind: FailureKind::Internal, message };
    let trip = |message: String| -> Failure {
        postcard::from_bytes(&postcard::to_stdvec(&failure(message)).expect("encodes")).expect("decodes")
    };
    assert_eq!(trip("x".repeat(MAX_FAILURE_TEXT)).message, "x".repeat(MAX_FAILURE_TEXT));
    assert_eq!(trip("x".repeat(MAX_FAILURE_TEXT + 1)).message, "x".repeat(MAX_FAILURE_TEXT));
    // Each character has two bytes, and the maximum is between the two bytes of the last one.
    assert_eq!(trip(format!("x{}", "\u{fc}".repeat(MAX_FAILURE_TEXT))).message.len(), MAX_FAILURE_TEXT - 1);
    let forged = [&[7][..], &forged_list(MAX_FAILURE_TEXT + 1, b"x")].concat();
    assert!(postcard::from_bytes::<Failure>(&forged).is_err());

    let long = "x".repeat(MAX_TEXT + 1);
    for message in [
        VmmMessage::Reply(ControlReply::Failed { message: long.clone() }),
        VmmMessage::Event(VmmEvent::Ended(ExitReason::HostFailure { message: long.clone() })),
        VmmMessage::Event(VmmEvent::Ended(ExitReason::BadConfig { message: long.clone() })),
        VmmMessage::Event(VmmEvent::Ended(ExitReason::UnexpectedExit { name: long.clone() })),
        VmmMessage::Event(VmmEvent::Ended(ExitReason::InternalError { suberror: 1, rip: 2, bytes: long.clone() })),
    ] {
        let bytes = postcard::to_stdvec(&message).expect("encodes");
        assert!(bytes.len() < MAX_TEXT + 32, "{} bytes", bytes.len());
        let shown = format!("{:?}", postcard::from_bytes::<VmmMessage>(&bytes).expect("decodes"));
        assert!(shown.contains(&"x".repeat(MAX_TEXT)) && !shown.contains(&long));
    }
}

#[test]
fn the_longest_failure_fits_the_agent_message_cap() {
    let failure = Failure { kind: FailureKind::Internal, message: "x".repeat(MAX_FAILURE_TEXT) };
    agent::WIRE.append_message(&mut Vec::new(), &AgentMessage::Failed(failure), MAX_AGENT_MESSAGE).expect("fits");
}

fn process(argv: Vec<ShownText>) -> ProcessInfo {
    ProcessInfo {
        pid: u32::MAX,
        argv,
        argv_is_cut: true,
        age_ms: u64::MAX,
        state: ProcessState::Ended { status: ExitStatus::Signal(SignalNumber::KILL), ago_ms: u64::MAX },
        stdin_is_open: true,
        has_terminal: true,
        connections: u32::MAX,
        kept_bytes: u64::MAX,
        dropped_bytes: u64::MAX,
    }
}

#[test]
fn a_page_of_processes_is_capped_in_each_direction() {
    let bare = ProcessInfo { state: ProcessState::Running, ..process(vec![]) };
    let page = |count: usize| ProcessPage { processes: vec![bare.clone(); count], more: false };
    let element = postcard::to_stdvec(&bare).expect("encodes");
    let forged = |count: usize| [forged_list(count, &element), vec![0]].concat();
    assert_eq!(postcard::from_bytes::<ProcessPage>(&forged(2)).expect("well forged"), page(2));
    capped(&page(MAX_PAGE), &page(MAX_PAGE + 1), &forged(MAX_PAGE + 1));

    let shown = |count: usize| process(vec![ShownText("x".to_owned()); count]);
    let tail = &postcard::to_stdvec(&process(vec![])).expect("encodes")[6..];
    let forged = |count: usize| {
        let pid = postcard::to_stdvec(&u32::MAX).expect("encodes");
        [&pid[..], &forged_list(count, b"\x01x"), tail].concat()
    };
    assert_eq!(postcard::from_bytes::<ProcessInfo>(&forged(2)).expect("well forged"), shown(2));
    capped(&shown(MAX_SHOWN_ARGUMENTS), &shown(MAX_SHOWN_ARGUMENTS + 1), &forged(MAX_SHOWN_ARGUMENTS + 1));

    let text = |len: usize| ShownText("x".repeat(len));
    let trip = |text: &ShownText| -> ShownText {
        postcard::from_bytes(&postcard::to_stdvec(text).expect("encodes")).expect("decodes")
    };
    assert_eq!(trip(&text(MAX_SHOWN_TEXT + 1)), text(MAX_SHOWN_TEXT), "the text was not cut when it was sent");
    assert!(postcard::from_bytes::<ShownText>(&forged_list(MAX_SHOWN_TEXT + 1, b"x")).is_err());
}

/// All arguments that are shown of one process have at most [`MAX_SHOWN_TEXT`] bytes, so that a
/// page fits its message.
#[test]
fn the_largest_page_fits_the_agent_message_cap() {
    let argv = vec![ShownText("x".repeat(MAX_SHOWN_TEXT / MAX_SHOWN_ARGUMENTS)); MAX_SHOWN_ARGUMENTS];
    let page = ProcessPage { processes: vec![process(argv); MAX_PAGE], more: true };
    agent::WIRE.append_message(&mut Vec::new(), &AgentMessage::Processes(page), MAX_AGENT_MESSAGE).expect("fits");
}

fn files_request() -> FileRequest {
    let path = FilePath::try_from("/a").expect("a path");
    FileRequest { user: None, operation: FileOperation::Read { path } }
}

/// An old agent in a snapshot reads the messages that it knows from hosts of every version. It
/// refuses the others by their header alone.
#[test]
fn a_frame_states_the_oldest_version_that_has_its_content() {
    let old = Wire { version: 1, ..agent::WIRE };
    let processes = ProcessCount::try_from(256).expect("in range");
    let path = || FilePath::try_from("/a").expect("a path");
    let main = MainProcess { stop_signal: SignalNumber::TERM, is_init: false };
    let request = |on_disconnect| HostMessage::Exec(ExecRequest { on_disconnect, ..exec(vec![text("true")], vec![]) });
    let cases = [
        (HostMessage::Hello { oldest: 1, newest: agent::WIRE.version }, 1),
        (request(OnDisconnect::Kill), 1),
        (request(OnDisconnect::RunOn), 1),
        (request(OnDisconnect::Keep), 2),
        (HostMessage::ListProcesses { after: 0 }, 2),
        (HostMessage::SignalProcess { pid: 1, signal: SignalNumber::TERM }, 2),
        (HostMessage::Files(files_request()), 3),
        (HostMessage::Files(FileRequest { user: None, operation: FileOperation::Describe { path: path() } }), 5),
        (HostMessage::Connect(PortRequest { port: PortNumber::try_from(80).expect("a port") }), 3),
        (HostMessage::SetLimits(ProcessLimits { processes, files: None }), 3),
        (HostMessage::ExecMain(MainRequest { process: exec(vec![text("true")], vec![]), main }), 7),
    ];
    for (message, since) in cases {
        let mut frame = Vec::new();
        agent::WIRE.append_message(&mut frame, &message, MAX_HOST_MESSAGE).expect("below the cap");
        let mut decoder = FrameDecoder::new(old, MAX_HOST_MESSAGE);
        decoder.push(&frame);
        match decoder.next_frame() {
            Ok(read) => assert!(since == 1 && read.is_some(), "{message:?}"),
            Err(error) => {
                assert!(since > 1, "{message:?}");
                assert_eq!(error, FrameError::Version { found: since, oldest: 1, newest: 1 });
            }
        }
    }
    let header = agent::WIRE.header(FrameKind::Stdin, 3).expect("fits");
    assert!(old.parse_header(&header, 0).is_ok(), "the oldest version has stream frames");
}

#[test]
fn a_path_is_valid_if_linux_accepts_it() {
    let path = |bytes: Vec<u8>| FilePath::try_from(bytes);
    assert_eq!(path(vec![]), Err(FilePathError::Empty));
    assert_eq!(path(vec![b'a', 0]), Err(FilePathError::Nul));
    assert_eq!(path(vec![b'a'; MAX_PATH + 1]), Err(FilePathError::TooLong(MAX_PATH + 1)));
    let longest = path(vec![0xff; MAX_PATH]).expect("any other byte may be in it");
    let mut forged = postcard::to_stdvec(&longest).expect("encodes");
    assert_eq!(postcard::from_bytes(&forged), Ok(longest));
    *forged.last_mut().expect("not empty") = 0;
    assert!(postcard::from_bytes::<FilePath>(&forged).is_err(), "nor from the wire");
}

fn file_entry(path_len: usize, target: Option<usize>) -> FileEntry {
    let path = |len| FilePath::try_from(vec![b'x'; len]).expect("short enough");
    FileEntry {
        path: path(path_len),
        kind: FileKind::Symlink,
        size: u64::MAX,
        mode: u32::MAX,
        uid: u32::MAX,
        gid: u32::MAX,
        owner: "o".repeat(MAX_OWNER),
        group: "g".repeat(MAX_OWNER),
        modified: FileTime { seconds: i64::MIN, nanoseconds: u32::MAX },
        link_target: target.map(path),
    }
}

/// A sender fills a message until its paths pass [`PAGE_BUDGET`]. The last entry may exceed it by
/// its whole length.
#[test]
fn the_largest_list_of_files_fits_the_agent_message_cap() {
    let fits = |reply| {
        agent::WIRE.append_message(&mut Vec::new(), &AgentMessage::File(reply), MAX_AGENT_MESSAGE).expect("fits");
    };
    let mut entries = vec![file_entry(PAGE_BUDGET / MAX_ENTRIES - 3, Some(1)); MAX_ENTRIES - 1];
    entries.push(file_entry(MAX_PATH, Some(MAX_PATH)));
    fits(FileReply::Entries(entries.clone()));
    capped(
        &FileReply::Entries(vec![file_entry(1, None); MAX_ENTRIES]),
        &FileReply::Entries(vec![file_entry(1, None); MAX_ENTRIES + 1]),
        &[vec![2], forged_list(MAX_ENTRIES + 1, &postcard::to_stdvec(&file_entry(1, None)).expect("encodes"))].concat(),
    );
    let mut metadata = FileMetadata::default();
    let largest = MAX_METADATA - METADATA_PREFIX.len() - 1;
    metadata.insert("k".to_owned(), "x".repeat(largest)).expect("below the cap");
    let details = |path_len, target, metadata| FileDetails {
        entry: file_entry(path_len, target),
        target: Some(LinkTarget {
            path: FilePath::try_from(vec![b'x'; target.unwrap_or(1)]).expect("short enough"),
            found: Some(FoundTarget { kind: FileKind::Directory, mode: u32::MAX }),
        }),
        metadata,
    };
    let small = |paths| details(DETAILS_BUDGET / MAX_DETAILS / paths - 4, Some(1), FileMetadata::default());
    let mut page = vec![small(1); MAX_DETAILS - 1];
    page.push(details(MAX_PATH, Some(MAX_PATH), metadata.clone()));
    fits(FileReply::DetailsPage(page));
    let over = FileReply::DetailsPage(vec![small(1); MAX_DETAILS + 1]);
    assert!(postcard::to_stdvec(&over).is_err(), "more than one message has");
    let path = FilePath::try_from(vec![b'x'; MAX_PATH]).expect("short enough");
    let observed = |details: FileDetails| Observation {
        change: FileChange { kind: ChangeKind::Created, path: Some(details.entry.path.clone()) },
        details: Some(Box::new(details)),
    };
    let mut page: Vec<_> = vec![observed(small(2)); MAX_DETAILS - 1];
    page.push(observed(details(MAX_PATH, Some(MAX_PATH), metadata)));
    fits(FileReply::Observed(page));
    let change = FileChange { kind: ChangeKind::Created, path: Some(path.clone()) };
    fits(FileReply::Changes(vec![change; PAGE_BUDGET / MAX_PATH + 2]));
    let failure =
        FileFailure { kind: FileErrorKind::Other, errno: Some(i32::MIN), path: Some(path), message: "x".repeat(5000) };
    fits(FileReply::Failed(failure));
}
