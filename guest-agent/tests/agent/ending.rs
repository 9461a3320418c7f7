//! The end of the machine, as far as an agent that is not PID 1 can show it.

use crate::host::{Agent, Event, command, script};
use sandboxvm_protocol::agent::{AgentMessage, ExitStatus, FailureKind, HostMessage, SignalNumber};
use std::time::{Duration, Instant};

pub fn shut_down(agent: &Agent, grace_ms: u32) {
    let mut host = agent.greet();
    host.send(&[HostMessage::Shutdown { grace_ms }]);
    assert_eq!(host.next(), Event::Message(AgentMessage::ShuttingDown));
}

#[test]
fn processes_get_sigterm_and_their_last_output_is_sent() {
    let mut agent = Agent::start();
    let (mut host, _) =
        agent.start_process(script("trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.05; done"));
    host.read_until("up");
    shut_down(&agent, 10_000);
    let finished = host.finish();
    assert_eq!((finished.text(), finished.status), ("bye\n", ExitStatus::Code(7)));
    assert!(agent.wait().success());
}

#[test]
fn a_process_that_ignores_sigterm_is_killed_after_the_grace_period() {
    let mut agent = Agent::start();
    let (mut host, _) = agent.start_process(script("trap '' TERM; echo up; while :; do sleep 0.05; done"));
    host.read_until("up");
    let began = Instant::now();
    shut_down(&agent, 400);
    let mut other = agent.greet();
    other.send(&[HostMessage::Exec(command(&["true"]))]);
    assert_eq!(other.expect_failure().kind, FailureKind::Internal, "nothing new is started");
    assert_eq!(host.finish().status, ExitStatus::Signal(SignalNumber::KILL));
    assert!(agent.wait().success());
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(400) && took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn a_host_that_reads_late_receives_the_last_output() {
    let mut agent = Agent::start();
    let (mut host, _) = agent.start_process(script("echo up; trap '' PIPE; head -c 3000000 /dev/zero; sleep 1000"));
    host.read_until("up\n");
    // The output is stalled now or a moment later.
    std::thread::sleep(Duration::from_millis(100));
    shut_down(&agent, 10_000);
    std::thread::sleep(Duration::from_millis(300));
    let finished = host.finish();
    assert_eq!(finished.status, ExitStatus::Signal(SignalNumber::TERM));
    assert!(!finished.stdout.is_empty() && finished.stdout.len() < 3_000_000, "{}", finished.stdout.len());
    assert!(agent.wait().success());
}

#[test]
fn hosts_that_read_nothing_do_not_delay_the_end() {
    let mut agent = Agent::start();
    let (_host, _) = agent.start_process(script("yes"));
    std::thread::sleep(Duration::from_millis(100));
    let began = Instant::now();
    shut_down(&agent, 10_000);
    assert!(agent.wait().success());
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn without_processes_the_end_is_immediate() {
    let mut agent = Agent::start();
    let began = Instant::now();
    shut_down(&agent, 60_000);
    assert!(agent.wait().success());
    assert!(began.elapsed() < Duration::from_secs(5));
}
