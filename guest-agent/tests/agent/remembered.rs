//! Ended processes: how many are remembered, and which are forgotten first.

use crate::host::{Agent, Event, script, wait_until};
use sandboxvm_protocol::agent::process::{AttachRequest, ProcessState, View};
use sandboxvm_protocol::agent::{AgentMessage, ExitStatus, FailureKind, HostMessage, SignalNumber};

fn run_to_its_end(agent: &Agent, text: &str) -> u32 {
    let pid = agent.detach(script(text));
    agent.attach(pid, View::End).finish();
    pid
}

fn remembered(agent: &Agent) -> Vec<u32> {
    let all = agent.list();
    let ended = all.iter().filter(|process| process.state != ProcessState::Running);
    ended.map(|process| process.pid).collect()
}

#[test]
fn the_first_to_end_are_forgotten_first() {
    let agent = Agent::start();
    let running = agent.detach(script("sleep 1000"));
    let mut ended: Vec<u32> =
        (0..70).map(|index| run_to_its_end(&agent, &format!("echo {index}; exit {index}"))).collect();
    let mut expected = ended.split_off(6);
    let last = *expected.last().unwrap();
    expected.sort_unstable();
    assert_eq!(remembered(&agent), expected, "the last 64 are not the remembered ones");
    for pid in ended {
        let attach = AttachRequest { pid, view: View::Kept, stdin: false, terminal: None };
        assert_eq!(agent.ask(HostMessage::Attach(attach)).expect_failure().kind, FailureKind::NoSuchProcess);
    }
    let finished = agent.attach(last, View::Kept).finish();
    assert_eq!((finished.text(), finished.status), ("69\n", ExitStatus::Code(69)));
    // Running processes are not forgotten because of that, and processes whose end their hosts have
    // seen do not count.
    for _ in 0..70 {
        agent.run(script("true"));
    }
    assert_eq!(remembered(&agent), expected);
    let signal = HostMessage::SignalProcess { pid: running, signal: SignalNumber::KILL };
    assert_eq!(agent.ask(signal).next(), Event::Message(AgentMessage::Signalled));
}

#[test]
fn the_output_of_remembered_processes_is_limited() {
    let agent = Agent::start();
    let before = agent.resident();
    let all: Vec<u32> = (0..40).map(|_| run_to_its_end(&agent, "head -c 300000 /dev/zero")).collect();
    let left = remembered(&agent);
    assert!((15..=17).contains(&left.len()), "{} of 40 with 256 KiB each", left.len());
    assert!(left.iter().all(|pid| all[20..].contains(pid)), "an older process is remembered");
    let grown = agent.resident().saturating_sub(before);
    assert!(grown < 6 << 10, "the agent grew by {grown} KiB");
    let files = agent.open_files();
    // Small ones replace them, and have no file open.
    for _ in 0..64 {
        run_to_its_end(&agent, "echo");
    }
    assert_eq!(remembered(&agent).len(), 64);
    wait_until("no file is held", || agent.open_files() <= files);
}

#[test]
fn running_processes_share_the_memory_for_kept_output() {
    let agent = Agent::start();
    let before = agent.resident();
    let pids: Vec<u32> = (0..100).map(|_| agent.detach(script("head -c 400000 /dev/zero; sleep 1000"))).collect();
    wait_until("all have written", || {
        agent.list().iter().all(|process| process.kept_bytes + process.dropped_bytes == 400_000)
    });
    let kept: u64 = agent.list().iter().map(|process| process.kept_bytes).sum();
    assert!((6 << 20..=8 << 20).contains(&kept), "{kept} bytes are kept");
    let grown = agent.resident().saturating_sub(before);
    assert!(grown < 12 << 10, "the agent grew by {grown} KiB");
    assert_eq!(
        agent.list().iter().map(|process| process.pid).collect::<std::collections::BTreeSet<_>>(),
        pids.into_iter().collect()
    );
    assert!(agent.answers_ping());
}

#[test]
fn a_host_that_watches_a_forgotten_process_learns_how_much_it_missed() {
    let agent = Agent::start();
    let pid = agent.detach(script("head -c 10000000 /dev/zero; exit 5"));
    // Reads so little that it cannot receive all.
    let slow = agent.attach(pid, View::Follow);
    wait_until("it ended", || remembered(&agent).contains(&pid));
    for _ in 0..64 {
        run_to_its_end(&agent, "echo");
    }
    assert!(!remembered(&agent).contains(&pid));
    let finished = slow.finish();
    assert_eq!(finished.status, ExitStatus::Code(5));
    assert_eq!(finished.dropped + finished.stdout.len() as u64, 10_000_000);
}
