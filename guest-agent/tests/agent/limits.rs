//! Many, large and too many requests.

use crate::host::{Agent, Event, command, script, text, wait_until};
use sandboxvm_protocol::agent::{AgentMessage, ExitStatus, FailureKind, HostMessage, MAX_ARGUMENT};
use std::time::Duration;

#[test]
fn large_arguments_arrive_complete_and_larger_ones_are_refused() {
    let agent = Agent::start();
    let longest = "x".repeat(MAX_ARGUMENT);
    let mut argv = vec!["sh", "-c", "echo $# ${#1} ${#7}", "sh"];
    argv.extend([longest.as_str(); 7]);
    assert_eq!(agent.run(command(&argv)).text(), format!("7 {MAX_ARGUMENT} {MAX_ARGUMENT}\n"));
    argv.push(&longest);
    let failure = agent.refusal(command(&argv));
    assert_eq!(failure.kind, FailureKind::Resources, "{}", failure.message);
}

#[test]
fn many_variables_take_no_time() {
    let agent = Agent::start();
    let mut request = script("env | grep -c ^V");
    request.env = (0..30_000).map(|index| text(&format!("V{index}=1"))).collect();
    assert_eq!(agent.run(request).text(), "30000\n");
}

#[test]
fn a_large_request_leaves_no_memory_behind() {
    let agent = Agent::start();
    let longest = "x".repeat(MAX_ARGUMENT);
    let mut request = command(&["sleep", "1000"]);
    agent.run(command(&["true"]));
    let before = agent.resident();
    request.env = (0..7).map(|index| text(&format!("V{index}={}", &longest[4..]))).collect();
    let hosts: Vec<_> = (0..10).map(|_| agent.start_process(request.clone())).collect();
    let grown = agent.resident().saturating_sub(before);
    assert!(grown < 4096, "ten requests of 900 KiB each left {grown} KiB behind");
    drop(hosts);
}

#[test]
fn hosts_beyond_the_last_file_wait_and_are_served_later() {
    let agent = Agent::start_with_open_files(40);
    let idle: Vec<_> = (0..100).map(|_| agent.connect()).collect();
    std::thread::sleep(Duration::from_millis(300));
    let used = cpu_ticks(&agent);
    std::thread::sleep(Duration::from_millis(500));
    assert!(cpu_ticks(&agent) - used < 10, "the agent spins");
    drop(idle);
    assert!(agent.answers_ping());
    assert_eq!(agent.run(script("echo served")).text(), "served\n");
}

#[test]
fn a_process_without_a_free_descriptor_is_refused_for_lack_of_resources() {
    let agent = Agent::start_with_open_files(40);
    let mut host = agent.greet();
    let mut idle = Vec::new();
    while agent.open_files() < 38 {
        idle.push(agent.greet());
    }
    host.send(&[HostMessage::Exec(command(&["true"]))]);
    assert_eq!(host.expect_failure().kind, FailureKind::Resources);
    drop(idle);
    wait_until("there are files again", || agent.open_files() < 20);
    assert_eq!(agent.run(command(&["true"])).status, ExitStatus::Code(0));
}

#[test]
fn a_connection_beyond_the_limit_receives_a_failure() {
    let agent = Agent::start_with_open_files(2000);
    let mut idle = Vec::new();
    let refused = loop {
        assert!(idle.len() <= 1024, "no connection was refused");
        let mut host = agent.connect();
        // An additional connection receives this immediately. All others wait for a Hello.
        host.stop_waiting_after(Duration::from_millis(if idle.len() < 1024 { 1 } else { 5000 }));
        match host.try_next() {
            None => idle.push(host),
            Some(event) => break event,
        }
    };
    assert_eq!(idle.len(), 1024);
    assert!(matches!(refused, Event::Message(AgentMessage::Failed(failure)) if failure.kind == FailureKind::Resources));
    let files = agent.open_files();
    idle.pop();
    wait_until("the place is free", || agent.open_files() < files);
    assert!(agent.answers_ping());
}

#[test]
fn a_thousand_processes_leave_nothing() {
    let agent = Agent::start();
    agent.run(command(&["true"]));
    let (files, memory) = (agent.open_files(), agent.resident());
    for _ in 0..1000 {
        assert_eq!(agent.run(command(&["true"])).status, ExitStatus::Code(0));
    }
    wait_until("all files are closed", || agent.open_files() <= files);
    let grown = agent.resident().saturating_sub(memory);
    assert!(grown < 256, "the agent grew by {grown} KiB");
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", agent.pid())).unwrap();
    assert_eq!(children, "");
}

#[test]
fn unread_responses_to_pings_do_not_pile_up() {
    let agent = Agent::start();
    let before = agent.resident();
    let mut host = agent.greet();
    let pings = crate::host::encode(&vec![HostMessage::Ping; 4096]);
    // Until the agent closes the connection. Otherwise it would read everything.
    let sent = (0..1000).take_while(|_| host.try_send_raw(&pings)).count();
    assert!(sent < 1000);
    let grown = agent.resident().saturating_sub(before);
    assert!(grown < 2048, "the agent grew by {grown} KiB");
    assert!(agent.answers_ping());
}

fn cpu_ticks(agent: &Agent) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", agent.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}
