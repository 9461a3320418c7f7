//! Bytes in both directions: order, flow control and ends.

use crate::host::{Agent, Event, Finished, command, noise, script, wait_until};
use sandboxvm_protocol::agent::{
    AgentMessage, ExecRequest, ExitStatus, FailureKind, HostMessage, STDIN_WINDOW, SignalNumber, StdinSource,
};
use sandboxvm_protocol::frame::MAX_STREAM_BODY;
use std::fs;
use std::time::{Duration, Instant};

fn fed(mut request: ExecRequest) -> ExecRequest {
    request.stdin = StdinSource::Connection;
    request
}

/// Sends `input` within the credit and ends it. Reads all the time, with `pause` before each read.
fn feed(agent: &Agent, request: ExecRequest, input: &[u8], pause: Duration) -> Finished {
    let (mut host, _) = agent.start_process(fed(request));
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut rest = input;
    let mut ended = false;
    loop {
        while !rest.is_empty() && host.credit > 0 {
            let (now, later) = rest.split_at(rest.len().min(host.credit).min(MAX_STREAM_BODY));
            host.send_stdin(now);
            host.credit -= now.len();
            rest = later;
        }
        if rest.is_empty() && !ended {
            host.send(&[HostMessage::StdinEof]);
            ended = true;
        }
        std::thread::sleep(pause);
        match host.next() {
            Event::Stdout(bytes) => stdout.extend(bytes),
            Event::Stderr(bytes) => stderr.extend(bytes),
            Event::Message(AgentMessage::StdinCredit { .. }) => {}
            Event::Message(AgentMessage::Exited(status)) => return Finished { stdout, stderr, status, dropped: 0 },
            other => panic!("unexpected {other:?}"),
        }
    }
}

#[test]
fn megabytes_come_back_byte_for_byte_to_a_slow_reader() {
    let agent = Agent::start();
    let input = noise(8 << 20, 42);
    let finished = feed(&agent, command(&["cat"]), &input, Duration::from_millis(1));
    assert!(finished.stdout == input, "{} bytes came back", finished.stdout.len());
    assert_eq!(finished.status, ExitStatus::Code(0));
}

#[test]
fn a_slow_process_gets_everything_too() {
    let agent = Agent::start();
    let input = noise(3 << 20, 7);
    let reads = script("while dd bs=100000 count=1 2>/dev/null | grep -q .; do sleep 0.01; done; echo done");
    let sum = script("sleep 0.3; sha256sum");
    assert_eq!(feed(&agent, reads, &input, Duration::ZERO).text(), "done\n");
    let finished = feed(&agent, sum.clone(), &input, Duration::ZERO);
    let again = feed(&agent, sum, &input, Duration::ZERO);
    assert_eq!(finished.stdout, again.stdout);
    let other = feed(&agent, script("sha256sum"), &input[1..], Duration::ZERO);
    assert_ne!(finished.stdout, other.stdout);
}

#[test]
fn output_continues_after_the_end_of_stdin() {
    let agent = Agent::start();
    let finished = feed(&agent, script("cat; echo after; sleep 0.1; echo last >&2"), b"before\n", Duration::ZERO);
    assert_eq!(finished.text(), "before\nafter\n");
    assert_eq!(finished.stderr, b"last\n");
    let finished = feed(&agent, command(&["cat"]), b"", Duration::ZERO);
    assert_eq!((finished.text(), finished.status), ("", ExitStatus::Code(0)));
}

#[test]
fn a_process_without_stdin_reads_the_end_immediately() {
    assert_eq!(Agent::start().run(command(&["cat"])).status, ExitStatus::Code(0));
}

#[test]
fn input_that_no_process_reads_is_credited() {
    let agent = Agent::start();
    // The process has closed its stdin, and much more than the window is sent.
    let finished = feed(&agent, script("exec <&-; sleep 0.5; echo ok"), &noise(2 << 20, 1), Duration::ZERO);
    assert_eq!(finished.text(), "ok\n");
}

#[test]
fn stdin_beyond_the_credit_ends_the_connection() {
    let agent = Agent::start();
    let (mut host, pid) = agent.start_process(fed(command(&["sleep", "1000"])));
    // The pipe accepts some bytes and the window stores the rest. Less than half is credited, so
    // one byte more is too many.
    host.send_stdin(&noise(STDIN_WINDOW as usize, 3));
    std::thread::sleep(Duration::from_millis(100));
    host.send_stdin(&[0]);
    assert_eq!(host.expect_failure().kind, FailureKind::BadRequest);
    wait_until("the process went with its connection", || !crate::host::exists(pid));
}

#[test]
fn a_host_that_does_not_read_stalls_the_process_and_nothing_grows() {
    let agent = Agent::start();
    assert!(agent.answers_ping());
    // Runs once before, so that memory that is allocated only once is not counted.
    agent.run(script("head -c 1000000 /dev/zero"));
    let before = agent.resident();
    let (mut host, pid) = agent.start_process(command(&["cat", "/dev/zero"]));
    let written = || {
        let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
        io.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap().parse::<u64>().unwrap()
    };
    let mut last = 0;
    wait_until("the process stalls", || {
        std::thread::sleep(Duration::from_millis(100));
        let now = written();
        let stalled = now == last && now > 0;
        last = now;
        stalled
    });
    assert!(last < 2 << 20, "{last} bytes were taken from the process");
    let grown = agent.resident().saturating_sub(before);
    assert!(grown < 512, "the agent grew by {grown} KiB");
    assert!(agent.answers_ping(), "the agent does not serve others meanwhile");

    // The process continues when the host reads again. A signal reaches it while its output is
    // stalled.
    let mut received = 0;
    while received < 16 << 20 {
        match host.next() {
            Event::Stdout(bytes) => received += bytes.len(),
            other => panic!("{other:?}"),
        }
    }
    std::thread::sleep(Duration::from_millis(100));
    host.send(&[HostMessage::Signal(SignalNumber::KILL)]);
    wait_until("the process ended although its host does not read", || {
        fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z"))
    });
    assert_eq!(host.finish().status, ExitStatus::Signal(SignalNumber::KILL));
    let grown = agent.resident().saturating_sub(before);
    assert!(grown < 512, "the agent grew by {grown} KiB");
}

#[test]
fn fifty_stalled_hosts_cost_a_buffer_each_at_most() {
    let agent = Agent::start();
    let before = agent.resident();
    let hosts: Vec<_> = (0..50).map(|_| agent.start_process(command(&["cat", "/dev/zero"])).0).collect();
    std::thread::sleep(Duration::from_millis(500));
    let grown = agent.resident().saturating_sub(before);
    assert!(grown < 50 * 80, "the agent grew by {grown} KiB");
    assert!(agent.answers_ping());
    drop(hosts);
}

#[test]
fn both_streams_flow_when_both_are_full() {
    let agent = Agent::start();
    let finished = agent.run(script("head -c 3000000 /dev/zero & head -c 3000000 /dev/zero >&2; wait"));
    assert_eq!((finished.stdout.len(), finished.stderr.len()), (3_000_000, 3_000_000));
}

#[test]
fn the_last_output_is_complete_for_every_size_of_the_pipe() {
    let agent = Agent::start();
    // The process ends while its pipe is full.
    for len in [1, 4096, 65_535, 65_536] {
        let finished = agent.run(script(&format!("head -c {len} /dev/zero")));
        assert_eq!(finished.stdout.len(), len);
    }
    let grown = "import fcntl,os; fcntl.fcntl(1, 1031, 1<<20); os.write(1, b'x'*(1<<20))";
    let finished = agent.run(command(&["python3", "-c", grown]));
    assert_eq!((finished.stdout.len(), finished.status), (1 << 20, ExitStatus::Code(0)));
}

#[test]
fn a_grandchild_that_keeps_stdout_delays_nothing() {
    let agent = Agent::start();
    let began = Instant::now();
    let (mut host, pid) = agent.start_process(script("sleep 1000 & echo $!; exit 5"));
    let child: i32 = host.read_until("\n").trim().parse().unwrap();
    assert_eq!(host.finish().status, ExitStatus::Code(5));
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(!crate::host::exists(pid));
    // SAFETY: kill(2) of a process this test had started.
    unsafe { libc::kill(child, libc::SIGKILL) };
}

#[test]
fn a_grandchild_that_writes_without_end_delays_nothing() {
    let agent = Agent::start();
    let (mut host, _) = agent.start_process(script("yes & echo $!; exit 6"));
    let mut output = String::new();
    while !output.contains('\n') {
        match host.next() {
            Event::Stdout(bytes) => output.push_str(std::str::from_utf8(&bytes).unwrap()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(host.finish().status, ExitStatus::Code(6));
}

#[test]
fn sparse_output_arrives_as_it_is_written() {
    let agent = Agent::start();
    let (mut host, _) = agent.start_process(script("echo one; sleep 0.3; echo two; sleep 1000"));
    let began = Instant::now();
    host.read_until("one\n");
    host.read_until("two\n");
    assert!(began.elapsed() < Duration::from_secs(5));
}
