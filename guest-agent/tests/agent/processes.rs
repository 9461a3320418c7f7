//! Processes that outlive their connection, and are found again by their PID.

use crate::host::{Agent, Event, command, exists, hello, script, wait_until};
use sandboxvm_protocol::agent::process::{AttachRequest, ProcessInfo, ProcessState, View};
use sandboxvm_protocol::agent::{
    AgentMessage, ExecRequest, ExitStatus, FailureKind, HostMessage, OnDisconnect, STDIN_WINDOW, SignalNumber,
    StdinSource, TerminalSize,
};
use std::fs;

fn fed(mut request: ExecRequest) -> ExecRequest {
    request.stdin = StdinSource::Connection;
    request
}

/// Returns the entry of `pid` in the list.
fn listed(agent: &Agent, pid: u32) -> ProcessInfo {
    let all = agent.list();
    all.iter().find(|process| process.pid == pid).unwrap_or_else(|| panic!("{pid} is not in {all:?}")).clone()
}

fn has_ended(agent: &Agent, pid: u32) -> bool {
    listed(agent, pid).state != ProcessState::Running
}

fn wait_for_end(agent: &Agent, pid: u32) {
    wait_until("the process ends", || has_ended(agent, pid));
}

/// Returns a file, and a function that creates it, by which a test lets its process continue.
fn gate(agent: &Agent) -> (String, impl Fn()) {
    let path = agent.directory().join("gate");
    let shown = path.to_str().unwrap().to_owned();
    (shown, move || fs::write(&path, "").unwrap())
}

fn signal(pid: u32, signal: SignalNumber) -> HostMessage {
    HostMessage::SignalProcess { pid, signal }
}

#[test]
fn kept_output_is_shown_before_later_output() {
    let agent = Agent::start();
    let (path, open) = gate(&agent);
    let wait = format!("; while [ ! -e {path} ]; do sleep 0.02; done; rm {path};");
    let pid = agent.detach(script(&format!("echo one{wait} echo two >&2{wait} echo three{wait} echo four; exit 7")));
    for (written, goes_on) in [(4, true), (8, true), (14, false)] {
        wait_until("the next part was written", || listed(&agent, pid).kept_bytes == written);
        if goes_on {
            open();
        }
    }
    let mut host = agent.attach(pid, View::Attend);
    assert_eq!(host.read_until("one\n"), "one\n");
    assert_eq!(host.next(), Event::Stderr(b"two\n".to_vec()), "the streams are not in their order");
    assert_eq!(host.read_until("three\n"), "three\n");
    open();
    let finished = host.finish();
    assert_eq!((finished.text(), finished.status, finished.dropped), ("four\n", ExitStatus::Code(7), 0));
    // And again for a client that attaches after the end.
    for view in [View::Attend, View::Follow, View::Kept] {
        let finished = agent.attach(pid, view).finish();
        assert_eq!((finished.text(), &finished.stderr[..]), ("one\nthree\nfour\n", &b"two\n"[..]));
        assert_eq!(finished.status, ExitStatus::Code(7));
    }
    let finished = agent.attach(pid, View::End).finish();
    assert_eq!((finished.text(), finished.status), ("", ExitStatus::Code(7)));
}

#[test]
fn the_last_of_a_long_output_is_kept_and_what_is_missing_is_counted() {
    let agent = Agent::start();
    let pid = agent.detach(script("seq 1 200000; echo end >&2"));
    wait_for_end(&agent, pid);
    let all: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
    let finished = agent.attach(pid, View::Kept).finish();
    assert_eq!(finished.dropped + (finished.stdout.len() + finished.stderr.len()) as u64, all.len() as u64 + 4);
    assert!(all.ends_with(finished.text()), "the kept output is not the end of all output");
    assert!((200 << 10..=256 << 10).contains(&finished.stdout.len()), "{}", finished.stdout.len());
    assert_eq!(finished.stderr, b"end\n");
    let info = listed(&agent, pid);
    assert_eq!((info.kept_bytes, info.dropped_bytes), (finished.stdout.len() as u64 + 4, finished.dropped));
}

#[test]
fn input_of_one_host_is_kept_when_the_next_takes_over() {
    let agent = Agent::start();
    let request = ExecRequest { on_disconnect: OnDisconnect::Keep, ..fed(command(&["cat"])) };
    let (mut first, pid) = agent.start_process(request);
    let mut next = agent.while_stopped(|| {
        first.send_stdin(b"one\n");
        first.send(&[HostMessage::Ping]);
        let mut next = agent.connect();
        let attach = AttachRequest { pid, view: View::Attend, stdin: true, terminal: None };
        next.send(&[hello(), HostMessage::Attach(attach)]);
        next
    });
    assert_eq!(
        first.next(),
        Event::Message(AgentMessage::Pong),
        "the other messages of the first host are not answered"
    );
    drop(first);
    assert!(matches!(next.next(), Event::Message(AgentMessage::Hello { .. })));
    assert!(matches!(next.next(), Event::Message(AgentMessage::Attached(_))));
    next.send_stdin(b"two\n");
    next.send(&[HostMessage::StdinEof]);
    assert_eq!(next.finish().text(), "one\ntwo\n");
}

#[test]
fn input_that_a_host_sent_before_it_closed_counts() {
    let agent = Agent::start();
    let said = agent.directory().join("said");
    let request = script(&format!("head -c 3000000 /dev/zero; read line; echo $line > {}", said.display()));
    let request = ExecRequest { on_disconnect: OnDisconnect::Keep, ..fed(request) };
    let (mut host, _) = agent.start_process(request);
    // No client reads the output. The agent receives both events together: there is room again, and
    // the host is gone.
    std::thread::sleep(std::time::Duration::from_millis(300));
    agent.while_stopped(|| {
        host.send_stdin(b"yes\n");
        drop(host);
    });
    wait_until("the process received the line", || fs::read(&said).is_ok_and(|said| said == b"yes\n"));
}

#[test]
fn a_hundred_megabytes_of_unread_output_block_nothing_and_use_no_memory() {
    let agent = Agent::start();
    let warm = agent.detach(script("head -c 3000000 /dev/zero"));
    wait_for_end(&agent, warm);
    let before = agent.resident();
    let pid = agent.detach(script("head -c 104857600 /dev/zero"));
    wait_for_end(&agent, pid);
    let grown = agent.resident().saturating_sub(before);
    assert!(grown < 1024, "the agent grew by {grown} KiB");
    let finished = agent.attach(pid, View::Attend).finish();
    assert_eq!(finished.dropped + finished.stdout.len() as u64, 100 << 20);
    assert_eq!(finished.status, ExitStatus::Code(0));
}

#[test]
fn a_host_that_attends_stalls_the_process_and_misses_nothing() {
    let agent = Agent::start();
    let (path, open) = gate(&agent);
    let (mut owner, pid) = agent.start_process(ExecRequest {
        on_disconnect: OnDisconnect::Keep,
        ..script(&format!("while [ ! -e {path} ]; do sleep 0.02; done; seq 1 1000000"))
    });
    let end_seen = agent.attach(pid, View::End);
    open();
    // The process cannot end: neither its owner nor another client reads its output.
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert!(!has_ended(&agent, pid));
    let mut last = String::new();
    while !last.ends_with("\n1000000\n") {
        match owner.next() {
            Event::Stdout(bytes) => last.push_str(std::str::from_utf8(&bytes).unwrap()),
            other => panic!("{other:?}"),
        }
    }
    let all: String = (1..=1_000_000).map(|number| format!("{number}\n")).collect();
    assert!(last == all, "{} bytes came", last.len());
    assert_eq!(owner.finish().status, ExitStatus::Code(0));
    assert_eq!(end_seen.finish().status, ExitStatus::Code(0));
}

#[test]
fn a_host_that_follows_stalls_nothing_and_learns_how_much_it_missed() {
    let agent = Agent::start();
    let (path, open) = gate(&agent);
    let pid = agent.detach(script(&format!(
        "echo first; while [ ! -e {path} ]; do sleep 0.02; done; head -c 20000000 /dev/zero; echo last"
    )));
    let mut slow = agent.attach(pid, View::Follow);
    slow.read_until("first\n");
    open();
    wait_for_end(&agent, pid);
    let finished = slow.finish();
    assert!(finished.dropped > 0 && finished.stdout.ends_with(b"\0last\n"));
    assert_eq!(finished.dropped + finished.stdout.len() as u64, 20_000_005);
}

#[test]
fn several_hosts_see_the_same_process_and_may_leave_at_any_time() {
    let agent = Agent::start();
    let (path, open) = gate(&agent);
    let pid = agent.detach(script(&format!("echo a; while [ ! -e {path} ]; do sleep 0.02; done; echo b")));
    let hosts: Vec<_> = (0..3).map(|_| agent.attach(pid, View::Attend)).collect();
    wait_until("all three are counted", || listed(&agent, pid).connections == 3);
    drop(agent.attach(pid, View::Attend));
    wait_until("the fourth is gone", || listed(&agent, pid).connections == 3);
    open();
    for host in hosts {
        assert_eq!(host.finish().text(), "a\nb\n");
    }
}

#[test]
fn the_kept_output_of_a_running_process_is_shown_without_waiting() {
    let agent = Agent::start();
    let pid = agent.detach(script("echo so far; sleep 1000"));
    wait_until("it was written", || listed(&agent, pid).kept_bytes > 0);
    let mut host = agent.attach(pid, View::Kept);
    host.read_until("so far\n");
    assert_eq!(host.next(), Event::Message(AgentMessage::RunsOn));
    assert_eq!(host.next(), Event::Closed);
    assert!(!has_ended(&agent, pid));
}

#[test]
fn a_host_can_attach_to_the_process_of_another_connection() {
    let agent = Agent::start();
    let (path, open) = gate(&agent);
    let (mut owner, pid) =
        agent.start_process(script(&format!("echo a; while [ ! -e {path} ]; do sleep 0.02; done; echo b; exit 4")));
    owner.read_until("a\n");
    let joined = agent.attach(pid, View::Attend);
    open();
    for host in [owner, joined] {
        let finished = host.finish();
        assert_eq!((finished.text(), finished.status), ("b\n", ExitStatus::Code(4)));
    }
    // A process with an owner ends with the owner's connection, and clients that joined see that.
    let (owner, pid) = agent.start_process(script("sleep 1000"));
    let joined = agent.attach(pid, View::Attend);
    drop(owner);
    assert_eq!(joined.finish().status, ExitStatus::Signal(SignalNumber::KILL));
    assert!(!exists(pid));
}

#[test]
fn a_process_is_signalled_by_its_pid_with_all_its_children() {
    let agent = Agent::start();
    let pid = agent.detach(script("trap 'echo caught; exit 3' USR1; sleep 1000 & echo $!; wait"));
    let mut host = agent.attach(pid, View::Attend);
    let child: u32 = host.read_until("\n").trim().parse().unwrap();
    // The child is still a shell until then, and traps the same signal as its parent.
    wait_until("the child sleeps", || fs::read_to_string(format!("/proc/{child}/comm")).unwrap() == "sleep\n");
    let mut asked = agent.ask(signal(pid, SignalNumber::try_from(10).unwrap()));
    assert_eq!(asked.next(), Event::Message(AgentMessage::Signalled));
    let finished = host.finish();
    assert_eq!((finished.text(), finished.status), ("caught\n", ExitStatus::Code(3)));
    // No process may have reaped it yet, because it is not a child of the agent.
    let is_gone = || fs::read_to_string(format!("/proc/{child}/stat")).map_or(true, |stat| stat.contains(") Z"));
    wait_until("the child got it too", is_gone);

    let other = agent.detach(command(&["sleep", "1000"]));
    let mut asked = agent.ask(signal(other, SignalNumber::KILL));
    assert_eq!(asked.next(), Event::Message(AgentMessage::Signalled));
    assert_eq!(agent.attach(other, View::End).finish().status, ExitStatus::Signal(SignalNumber::KILL));
    let failure = agent.ask(signal(other, SignalNumber::KILL)).expect_failure();
    assert_eq!(failure.kind, FailureKind::NoSuchProcess);
    assert!(failure.message.contains("has ended"), "{}", failure.message);
}

#[test]
fn processes_that_no_host_started_cannot_be_found() {
    let agent = Agent::start();
    let pid = agent.detach(script("sleep 1000 & echo $!; wait"));
    let mut host = agent.attach(pid, View::Follow);
    let child: u32 = host.read_until("\n").trim().parse().unwrap();
    // A child of the process, the agent itself, its parent, and PIDs that do not exist.
    for stranger in [child, agent.pid(), std::process::id(), 1, 0, u32::MAX] {
        let attach = AttachRequest { pid: stranger, view: View::Kept, stdin: false, terminal: None };
        for request in [signal(stranger, SignalNumber::KILL), HostMessage::Attach(attach)] {
            let failure = agent.ask(request).expect_failure();
            assert_eq!(failure.kind, FailureKind::NoSuchProcess);
            assert!(failure.message.contains(&stranger.to_string()), "{}", failure.message);
        }
    }
    assert!(exists(child));
    assert_eq!(agent.list().iter().map(|process| process.pid).collect::<Vec<_>>(), [pid]);
}

#[test]
fn the_list_has_running_and_ended_processes() {
    let agent = Agent::start();
    assert!(agent.list().is_empty());
    let (_owner, attended) = agent.start_process(fed(command(&["cat", "-"])));
    let long = "x".repeat(3000);
    let detached = agent.detach(command(&["sh", "-c", "sleep 1000", &long]));
    let ended = agent.detach(script("exit 9"));
    // A process whose end its host has seen is not listed.
    agent.run(command(&["true"]));
    wait_for_end(&agent, ended);
    let all = agent.list();
    assert_eq!(all.len(), 3, "{all:?}");
    assert!(all.windows(2).all(|pair| pair[0].pid < pair[1].pid), "in ascending order");

    let argv = |info: &ProcessInfo| info.argv.iter().map(|text| text.0.clone()).collect::<Vec<_>>();
    let info = listed(&agent, attended);
    assert_eq!((argv(&info), info.argv_is_cut), (vec!["cat".to_owned(), "-".to_owned()], false));
    assert_eq!((info.stdin_is_open, info.has_terminal, info.connections), (true, false, 1));
    let info = listed(&agent, detached);
    assert_eq!(argv(&info)[..3], ["sh", "-c", "sleep 1000"]);
    assert!(info.argv_is_cut && argv(&info)[3].len() < 1024);
    assert_eq!((info.state, info.stdin_is_open, info.connections), (ProcessState::Running, false, 0));
    let info = listed(&agent, ended);
    assert!(matches!(info.state, ProcessState::Ended { status: ExitStatus::Code(9), ago_ms } if ago_ms <= info.age_ms));
}

#[test]
fn the_last_host_that_asked_to_feed_a_process_feeds_it() {
    let agent = Agent::start();
    let pid = agent.detach(fed(script("while read line; do echo got $line; done; echo end")));
    let feed = AttachRequest { pid, view: View::Attend, stdin: true, terminal: None };
    let mut first = agent.attach_as(feed);
    first.send_stdin(b"one\n");
    first.read_until("got one\n");
    // A client that did not ask to feed the process may not.
    let mut looker = agent.attach(pid, View::Follow);
    looker.send_stdin(b"x\n");
    assert_eq!(looker.expect_failure().kind, FailureKind::BadRequest);
    let mut looker = agent.attach(pid, View::Follow);
    looker.send(&[HostMessage::StdinEof]);
    // Another client takes over. Neither the first one's later input nor its end reaches the
    // process.
    let mut second = agent.attach_as(feed);
    assert_eq!(second.credit, STDIN_WINDOW as usize);
    first.send_stdin(b"lost\n");
    first.send(&[HostMessage::StdinEof, HostMessage::Ping]);
    while first.next() != Event::Message(AgentMessage::Pong) {}
    drop(first);
    second.send_stdin(b"two\n");
    second.send(&[HostMessage::StdinEof]);
    assert_eq!(second.finish().text(), "got one\ngot two\nend\n");
    assert_eq!(looker.finish().text(), "got one\ngot two\nend\n");

    // A process without stdin, or whose input has ended, cannot be fed.
    for request in [script("sleep 1000"), fed(script("exec sleep 1000"))] {
        let had_stdin = request.stdin == StdinSource::Connection;
        let pid = agent.detach(request);
        if had_stdin {
            agent.attach_as(AttachRequest { pid, ..feed }).send(&[HostMessage::StdinEof]);
            wait_until("its input ended", || !listed(&agent, pid).stdin_is_open);
        }
        let failure = agent.ask(HostMessage::Attach(AttachRequest { pid, ..feed })).expect_failure();
        assert!(failure.message.contains("takes no input"), "{}", failure.message);
    }
}

#[test]
fn unread_input_of_one_host_reduces_the_credit_of_the_next() {
    let agent = Agent::start();
    let pid = agent.detach(fed(script("sleep 1000")));
    let feed = AttachRequest { pid, view: View::Attend, stdin: true, terminal: None };
    agent.attach_as(feed).send_stdin(&vec![b'x'; STDIN_WINDOW as usize]);
    wait_until("the first is gone", || listed(&agent, pid).connections == 0);
    let mut credit = 0;
    wait_until("all it sent is counted", || {
        let host = agent.attach_as(feed);
        credit = host.credit;
        drop(host);
        wait_until("gone again", || listed(&agent, pid).connections == 0);
        // The pipe has accepted 64 KiB.
        credit == 64 << 10
    });
}

#[test]
fn a_terminal_is_attached_to_and_resized() {
    let agent = Agent::start();
    let mut request = fed(script("stty size; read line; stty size; echo got $line"));
    request.terminal = Some(TerminalSize { rows: 24, columns: 80 });
    let pid = agent.detach(request);
    assert!(listed(&agent, pid).has_terminal);
    let size = TerminalSize { rows: 40, columns: 100 };
    let mut host = agent.attach_as(AttachRequest { pid, view: View::Attend, stdin: true, terminal: Some(size) });
    host.send_stdin(b"hello\n");
    let text = host.read_until("got hello");
    assert!(text.contains("40 100"), "{text}");
    assert_eq!(host.finish().status, ExitStatus::Code(0));

    let pid = agent.detach(script("sleep 1000"));
    let attach = AttachRequest { pid, view: View::Attend, stdin: false, terminal: Some(size) };
    let failure = agent.ask(HostMessage::Attach(attach)).expect_failure();
    assert!(failure.message.contains("no terminal"), "{}", failure.message);
}

#[test]
fn a_connection_has_one_process() {
    let agent = Agent::start();
    let pid = agent.detach(script("sleep 1000"));
    let again = HostMessage::Attach(AttachRequest { pid, view: View::Follow, stdin: false, terminal: None });
    for next in [again, HostMessage::Exec(script("true"))] {
        let mut host = agent.attach(pid, View::Follow);
        host.send(&[next]);
        assert_eq!(host.expect_failure().kind, FailureKind::BadRequest);
    }
    assert!(!has_ended(&agent, pid), "a client that was refused ended the process");
    let mut host = agent.attach(pid, View::Follow);
    host.send(&[HostMessage::Signal(SignalNumber::TERM)]);
    assert_eq!(host.finish().status, ExitStatus::Signal(SignalNumber::TERM));
}

#[test]
fn a_detached_process_ends_at_its_timeout() {
    let agent = Agent::start();
    let mut request = script("echo begun; sleep 1000");
    request.timeout_ms = Some(300);
    let pid = agent.detach(request);
    let finished = agent.attach(pid, View::Attend).finish();
    assert_eq!((finished.text(), finished.status), ("begun\n", ExitStatus::TimedOut));
}

#[test]
fn a_process_that_outlives_its_connection_is_found_again() {
    let agent = Agent::start();
    let (path, open) = gate(&agent);
    let (mut owner, pid) = agent.start_process(ExecRequest {
        on_disconnect: OnDisconnect::RunOn,
        ..fed(script(&format!("echo a; cat; while [ ! -e {path} ]; do sleep 0.02; done; echo b")))
    });
    owner.read_until("a\n");
    drop(owner);
    wait_until("its owner is gone", || listed(&agent, pid).connections == 0);
    open();
    let finished = agent.attach(pid, View::Attend).finish();
    assert_eq!((finished.text(), finished.status), ("b\n", ExitStatus::Code(0)));
}

#[test]
fn a_connection_of_a_process_takes_what_is_for_that_process_alone() {
    let agent = Agent::start();
    for other in [
        HostMessage::Exec(script("true")),
        HostMessage::ListProcesses { after: 0 },
        signal(1, SignalNumber::TERM),
        HostMessage::Shutdown { grace_ms: 0 },
    ] {
        let pid = agent.detach(script("sleep 1000"));
        let mut attached = agent.attach(pid, View::Follow);
        attached.send(std::slice::from_ref(&other));
        assert_eq!(attached.expect_failure().kind, FailureKind::BadRequest, "{other:?}");
        assert!(!has_ended(&agent, pid), "{other:?}");
    }
    assert!(agent.answers_ping());
}
