//! The start of a process, and how its end is reported.

use crate::host::{Agent, Event, command, exists, hello, script, text, wait_until};
use sandboxvm_protocol::agent::{AgentMessage, ExitStatus, FailureKind, HostMessage, OnDisconnect, SignalNumber, WIRE};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

fn signal(number: u8) -> SignalNumber {
    SignalNumber::try_from(number).unwrap()
}

/// Writes a program by a process of the agent. If this process wrote it, a fork in the thread of
/// another test could hold the file open for writing, and then no process could execute it
/// (ETXTBSY).
fn write_program(agent: &Agent, path: &Path, content: &str, mode: &str) -> String {
    let path = path.to_str().unwrap();
    let written = agent.run(command(&[
        "sh",
        "-c",
        "printf '%s\n' \"$2\" >\"$1\"; chmod \"$3\" \"$1\"",
        "sh",
        path,
        content,
        mode,
    ]));
    assert_eq!(written.status, ExitStatus::Code(0));
    path.to_owned()
}

#[test]
fn stdout_and_stderr_are_separate_and_complete() {
    let finished = Agent::start().run(script("echo out; echo err >&2; echo more"));
    assert_eq!(finished.text(), "out\nmore\n");
    assert_eq!(finished.stderr, b"err\n");
    assert_eq!(finished.status, ExitStatus::Code(0));
}

#[test]
fn exit_codes_of_processes_are_reported() {
    let agent = Agent::start();
    for code in [0, 1, 2, 124, 125, 126, 127, 128, 137, 255] {
        assert_eq!(agent.run(script(&format!("exit {code}"))).status, ExitStatus::Code(code));
    }
}

#[test]
fn an_end_by_a_signal_is_distinguished_from_an_exit_code() {
    let agent = Agent::start();
    for number in [1, 2, 6, 9, 11, 13, 15, 34, 64] {
        let finished = agent.run(script(&format!("kill -{number} $$")));
        assert_eq!(finished.status, ExitStatus::Signal(signal(number)));
    }
}

#[test]
fn a_missing_program_is_exit_code_127() {
    let agent = Agent::start();
    for name in ["no-such-program", "/no/such/program", "./no-such-program", "/etc/passwd/sub", ""] {
        let failure = agent.refusal(command(&[name]));
        assert_eq!(failure.kind, FailureKind::NotFound, "{name:?}: {}", failure.message);
    }
    let mut request = command(&["sh"]);
    request.env = vec![text("PATH=/nonexistent")];
    assert_eq!(agent.refusal(request).kind, FailureKind::NotFound);
}

#[test]
fn a_program_that_cannot_be_executed_is_exit_code_126() {
    let agent = Agent::start();
    let directory = agent.directory();
    let not_executable = [
        write_program(&agent, &directory.join("data"), "echo hello", "644"),
        write_program(&agent, &directory.join("no-format"), "echo hello", "755"),
        write_program(&agent, &directory.join("no-interpreter"), "#!/no/such/interpreter", "755"),
        directory.to_str().unwrap().to_owned(),
    ];
    for path in &not_executable {
        let failure = agent.refusal(command(&[path]));
        assert_eq!(failure.kind, FailureKind::NotExecutable, "{path}: {}", failure.message);
    }
    for name in ["data", "no-format", "no-interpreter"] {
        let mut request = command(&[name]);
        request.env = vec![text(&format!("PATH={}", directory.display()))];
        let failure = agent.refusal(request);
        assert_eq!(failure.kind, FailureKind::NotExecutable, "{name}: {}", failure.message);
    }
    let mut relative = command(&["./no-interpreter"]);
    relative.cwd = Some(text(directory.to_str().unwrap()));
    assert_eq!(agent.refusal(relative).kind, FailureKind::NotExecutable);
}

#[test]
fn path_of_the_request_is_searched_in_order() {
    let agent = Agent::start();
    let directory = agent.directory();
    for (name, mode) in [("first", "644"), ("second", "755"), ("third", "755")] {
        fs::create_dir(directory.join(name)).unwrap();
        write_program(&agent, &directory.join(name).join("tool"), &format!("#!/bin/sh\necho {name}"), mode);
    }
    let at = |name: &str| directory.join(name).display().to_string();
    let mut request = command(&["tool"]);
    request.env = vec![text(&format!("PATH=/nonexistent:{}:{}:{}", at("first"), at("second"), at("third")))];
    assert_eq!(agent.run(request).text(), "second\n");
    // An empty entry is the working directory.
    let mut request = command(&["tool"]);
    request.env = vec![text(&format!("PATH=/nonexistent::{}", at("second")))];
    request.cwd = Some(text(&at("third")));
    assert_eq!(agent.run(request).text(), "third\n");
}

#[test]
fn the_environment_of_the_request_overrides_the_defaults() {
    let agent = Agent::start();
    let mut request = command(&["env"]);
    request.env = vec![text("A=1"), text("LANG=C"), text("A=two words")];
    let finished = agent.run(request);
    let mut lines: Vec<&str> = finished.text().lines().collect();
    lines.sort_unstable();
    let expected = [
        "A=two words",
        "HOME=/root",
        "LANG=C",
        "LOGNAME=root",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "SHELL=/bin/sh",
        "USER=root",
    ];
    assert_eq!(lines, expected);
    let mut request = command(&["env"]);
    request.env = vec![text("=x")];
    assert_eq!(agent.refusal(request).kind, FailureKind::BadRequest);
}

#[test]
fn the_working_directory_is_the_requested_one_or_home() {
    let agent = Agent::start();
    let mut request = command(&["pwd"]);
    request.cwd = Some(text("/usr/bin"));
    assert_eq!(agent.run(request).text(), "/usr/bin\n");
    assert_eq!(agent.run(command(&["pwd"])).text(), "/root\n");
    for missing in ["/no/such/directory", "/etc/passwd", ""] {
        let mut request = command(&["pwd"]);
        request.cwd = Some(text(missing));
        let failure = agent.refusal(request);
        assert_eq!(failure.kind, FailureKind::BadWorkingDirectory, "{missing:?}: {}", failure.message);
    }
}

#[test]
fn processes_of_another_user_have_its_ids_groups_and_home() {
    let agent = Agent::start();
    let accounts = fs::read_to_string("/etc/passwd").unwrap();
    for name in accounts.lines().filter_map(|line| line.split(':').next()).take(8) {
        let sorted = |text: &str| {
            let mut groups: Vec<u32> = text.split_ascii_whitespace().map(|group| group.parse().unwrap()).collect();
            groups.sort_unstable();
            groups
        };
        let expected = std::process::Command::new("id").args(["-G", name]).output().unwrap();
        let mut request = script("id -G; id -u; echo $USER:$LOGNAME; pwd");
        request.user = Some(text(name));
        let finished = agent.run(request);
        let lines: Vec<&str> = finished.text().lines().collect();
        assert_eq!(sorted(lines[0]), sorted(std::str::from_utf8(&expected.stdout).unwrap()), "{name}");
        let uid = std::process::Command::new("id").args(["-u", name]).output().unwrap();
        assert_eq!(lines[1].as_bytes(), uid.stdout.trim_ascii_end());
        assert_eq!(lines[2], format!("{name}:{name}"));
    }
    let mut request = script("id -u; id -g; id -G; grep ^Cap[PE] /proc/self/status");
    request.user = Some(text("54321:12345"));
    let none = "CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n";
    assert_eq!(agent.run(request).text(), format!("54321\n12345\n12345\n{none}"));
    for stranger in ["no-such-user", "root:no-such-group", "4294967295"] {
        let mut request = command(&["id"]);
        request.user = Some(text(stranger));
        assert_eq!(agent.refusal(request).kind, FailureKind::NoSuchUser, "{stranger}");
    }
}

#[test]
fn another_user_cannot_execute_programs_of_root() {
    let agent = Agent::start();
    let path = agent.directory().join("private");
    write_program(&agent, &path, "#!/bin/sh", "700");
    let mut request = command(&[path.to_str().unwrap()]);
    request.cwd = Some(text("/"));
    assert_eq!(agent.run(request.clone()).status, ExitStatus::Code(0));
    request.user = Some(text("54321"));
    assert_eq!(agent.refusal(request.clone()).kind, FailureKind::NotExecutable);
    // Root finds the program in PATH, but the user may not execute it. The rest of PATH is then
    // tried.
    request.argv = vec![text("private")];
    request.env = vec![text(&format!("PATH={}", agent.directory().display()))];
    assert_eq!(agent.refusal(request).kind, FailureKind::NotExecutable);
}

#[test]
fn a_process_inherits_nothing_from_the_agent() {
    let agent = Agent::start();
    // Without a shell, which would change the handling of signals.
    let signals = agent.run(command(&["grep", "-E", "^(SigBlk|SigIgn|ShdPnd|SigPnd)", "/proc/self/status"]));
    let sets = signals.text().lines().filter_map(|line| u64::from_str_radix(line.split('\t').nth(1)?, 16).ok());
    // Except the two signals that libc reserves, and those that the test runner may ignore.
    let sets: Vec<u64> = sets.map(|set| set & !(3 << 31)).collect();
    assert_eq!(sets, [0; 4], "{}", signals.text());
    let finished = agent.run(command(&["ls", "-l", "/proc/self/fd"]));
    let links: Vec<&str> = finished.text().lines().skip(1).filter_map(|line| line.rsplit(" -> ").next()).collect();
    // Three standard streams, and the directory that the program reads.
    assert_eq!(links.len(), 4, "{links:?}");
    assert_eq!(links[0], "/dev/null");
    assert!(links[1].starts_with("pipe:") && links[2].starts_with("pipe:") && links[1] != links[2]);
    let finished = agent.run(command(&["cut", "-d ", "-f1,5,6,7", "/proc/self/stat"]));
    // The process leads its process group and session, without a terminal.
    let numbers: Vec<&str> = finished.text().trim().split(' ').collect();
    assert_eq!(numbers[0], numbers[1]);
    assert_eq!(numbers[0], numbers[2]);
    assert_eq!(numbers[3], "0");
}

#[test]
fn twenty_concurrent_processes_do_not_mix() {
    let agent = Agent::start();
    assert!(agent.answers_ping());
    let files = agent.open_files();
    std::thread::scope(|scope| {
        for index in 0..20 {
            let agent = &agent;
            scope.spawn(move || {
                let text = format!("{index} ").repeat(20_000);
                let finished = agent.run(script(&format!(
                    "i=0; while [ $i -lt 20000 ]; do echo -n '{index} '; i=$((i+1)); done; echo -n {index} >&2; exit {index}"
                )));
                assert_eq!(finished.text(), text);
                assert_eq!(finished.stderr, index.to_string().into_bytes());
                assert_eq!(finished.status, ExitStatus::Code(index));
            });
        }
    });
    wait_until("all files are closed", || agent.open_files() <= files);
}

#[test]
fn a_signal_reaches_the_whole_group() {
    let agent = Agent::start();
    let (mut host, pid) = agent.start_process(script("sleep 1000 & echo $!; wait"));
    let child: u32 = host.read_until("\n").trim().parse().unwrap();
    assert!(exists(pid) && exists(child));
    host.send(&[HostMessage::Signal(SignalNumber::TERM)]);
    assert_eq!(host.finish().status, ExitStatus::Signal(SignalNumber::TERM));
    wait_until("the grandchild is gone", || !is_running(child));
}

/// Returns true while the process `pid` executes. An orphan of a test is reaped later by another
/// process.
fn is_running(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| !rest.starts_with('Z')))
}

#[test]
fn a_timeout_kills_the_group_and_is_reported() {
    let agent = Agent::start();
    let mut request = script("sleep 1000 & echo $!; trap '' TERM; wait; sleep 1000");
    request.timeout_ms = Some(300);
    let began = Instant::now();
    let (mut host, _) = agent.start_process(request);
    let child: u32 = host.read_until("\n").trim().parse().unwrap();
    assert_eq!(host.finish().status, ExitStatus::TimedOut);
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(5), "{took:?}");
    wait_until("the grandchild is gone", || !is_running(child));
    let mut request = script("exit 3");
    request.timeout_ms = Some(u64::MAX);
    assert_eq!(agent.run(request).status, ExitStatus::Code(3));
}

#[test]
fn the_end_of_a_host_kills_the_process_or_keeps_it_running() {
    let agent = Agent::start();
    let (mut host, pid) = agent.start_process(script("sleep 1000 & echo $!; wait"));
    let child: u32 = host.read_until("\n").trim().parse().unwrap();
    let began = Instant::now();
    drop(host);
    wait_until("the process is reaped", || !exists(pid));
    wait_until("its child is gone", || !is_running(child));
    assert!(began.elapsed() < Duration::from_secs(5));

    // More output than any buffer holds, without a reader. Then the process creates a file.
    let sign = agent.directory().join("sign");
    let mut request = script(&format!("echo ready; head -c 3000000 /dev/zero; touch {}; sleep 1000", sign.display()));
    request.on_disconnect = OnDisconnect::RunOn;
    let (mut host, pid) = agent.start_process(request);
    host.read_until("ready");
    drop(host);
    wait_until("the process got through its output", || sign.exists());
    assert!(exists(pid));
    // SAFETY: kill(2) of a process this test had started.
    unsafe { libc::kill(pid.cast_signed(), libc::SIGKILL) };
    wait_until("the process is reaped", || !exists(pid));
}

#[test]
fn a_kill_by_another_process_is_reported() {
    let agent = Agent::start();
    let (host, pid) = agent.start_process(command(&["sleep", "1000"]));
    // SAFETY: kill(2) of a process this test had started.
    unsafe { libc::kill(pid.cast_signed(), libc::SIGKILL) };
    assert_eq!(host.finish().status, ExitStatus::Signal(SignalNumber::KILL));
}

#[test]
fn hello_and_started_arrive_together() {
    let agent = Agent::start();
    let mut host = agent.connect();
    host.send(&[hello(), HostMessage::Exec(command(&["sleep", "1000"]))]);
    assert_eq!(host.next(), Event::Message(AgentMessage::Hello { version: WIRE.version }));
    assert!(host.holds_a_frame(), "Started is not in the packet of Hello");
    assert!(matches!(host.next(), Event::Message(AgentMessage::Started { .. })));
}
