//! The main process of a sandbox: its stop signal, and init systems in their namespaces. The latter needs
//! root, as which the agent runs in a guest.

use crate::ending::shut_down;
use crate::host::{Agent, Event, command, script, text};
use sandboxvm_protocol::agent::files::{FileOperation, FilePath, FileReply, FileRequest};
use sandboxvm_protocol::agent::main_process::{MainProcess, MainRequest};
use sandboxvm_protocol::agent::{AgentMessage, ExitStatus, FailureKind, HostMessage, SignalNumber, TerminalSize};

/// SIGRTMIN+3, at which systemd shuts down.
const SHUT_DOWN: u8 = 37;

fn main(stop_signal: u8, is_init: bool) -> MainProcess {
    MainProcess { stop_signal: SignalNumber::try_from(stop_signal).unwrap(), is_init }
}

fn can_make_namespaces() -> bool {
    let can = rustix::process::geteuid().is_root();
    if !can {
        eprintln!("skipped: namespaces need root");
    }
    can
}

#[test]
fn the_main_process_gets_its_stop_signal_and_the_others_end_after_it() {
    let agent = Agent::start();
    let others = script("trap 'echo asked; exit 3' TERM; echo up; while :; do sleep 0.05; done");
    let (mut other, _) = agent.start_process(others);
    other.read_until("up\n");
    // Its child gets nothing: the main process decides what happens to it.
    let own = "sh -c 'trap \"echo wrong\" INT; while :; do sleep 0.05; done' & \
               trap 'sleep 0.5; echo done; exit 7' INT; trap 'echo wrong' TERM; echo up; while :; do sleep 0.05; done";
    let (mut host, _) = agent.start_main(script(own), main(2, false));
    host.read_until("up\n");
    let second = HostMessage::ExecMain(MainRequest { process: script("true"), main: main(15, false) });
    assert_eq!(agent.ask(second).expect_failure().kind, FailureKind::BadRequest, "there is one main process");
    shut_down(&agent, 10_000);
    other.stop_waiting_after(std::time::Duration::from_millis(200));
    assert_eq!(other.try_next(), None, "it is asked when the main process has ended");
    host.read_until("done\n");
    other.stop_waiting_after(crate::host::PATIENCE);
    let other = other.finish();
    assert_eq!((other.text(), other.status), ("asked\n", ExitStatus::Code(3)));
}

#[test]
fn a_sandbox_whose_main_process_has_ended_can_have_another() {
    let mut agent = Agent::start();
    for _ in 0..2 {
        let (host, _) = agent.start_main(command(&["true"]), main(2, false));
        assert_eq!(host.finish().status, ExitStatus::Code(0));
    }
    let (mut host, _) = agent.start_process(script("trap 'exit 5' TERM; echo up; while :; do sleep 0.05; done"));
    host.read_until("up\n");
    shut_down(&agent, 10_000);
    assert_eq!(host.finish().status, ExitStatus::Code(5));
    assert!(agent.wait().success());
}

const INIT: &str = "echo $$ $container; readlink /proc/self; cat /proc/1/comm; cat /proc/self/cgroup | tail -n 1; \
 mount -t tmpfs own /mnt && echo inside > /mnt/file; \
    ls /dev | tr '\\n' ' '; echo x > /dev/null && test -w /sys/fs/cgroup/cgroup.procs && ! mkdir /sys/x 2>/dev/null && \
    echo ready; trap 'echo bye; exit 9' 37; while :; do sleep 0.05; done";

#[test]
fn an_init_is_pid_1_of_namespaces_that_later_processes_and_files_enter() {
    if !can_make_namespaces() {
        return;
    }
    let mut agent = Agent::start();
    let outside = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let (mut init, _) = agent.start_main(script(INIT), main(SHUT_DOWN, true));
    let told = init.read_until("ready\n");
    let told: Vec<_> = told.lines().collect();
    assert_eq!(told[0], "1 sandboxvm");
    assert_eq!(told[2], "sh");
    assert_eq!(told[3], "0::/");
    assert!(told[1].parse::<u32>().is_ok_and(|pid| pid < 10), "{told:?}");
    assert_eq!(told[4], "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero ready");
    assert_eq!(std::fs::read_to_string("/proc/self/mountinfo").unwrap(), outside, "nothing is mounted outside");

    let beside = agent.run(script("cat /proc/1/comm /mnt/file; kill -0 1 && echo $container"));
    assert_eq!(beside.text(), "sh\ninside\nsandboxvm\n");
    let mut request = script("tty; test -t 0 && echo terminal");
    request.terminal = Some(TerminalSize { rows: 24, columns: 80 });
    let seen = agent.run(request).text().to_owned();
    assert!(seen.starts_with("/dev/pts/") && seen.ends_with("terminal\r\n"), "{seen}");
    let path = FilePath::try_from("/mnt/file").unwrap();
    let request = FileRequest { user: None, operation: FileOperation::Stat { path, follow: true } };
    match agent.ask(HostMessage::Files(request)).next() {
        Event::Message(AgentMessage::File(FileReply::Entry(entry))) => assert_eq!(entry.size, 7),
        other => panic!("expected the file of the init's mount, got {other:?}"),
    }
    // An orphan belongs to the init, and so ends with it.
    let (_orphan, pid) = agent.start_process(command(&["sleep", "1000"]));
    shut_down(&agent, 10_000);
    let init = init.finish();
    assert_eq!((init.text(), init.status), ("bye\n", ExitStatus::Code(9)));
    assert!(agent.wait().success());
    assert!(!crate::host::exists(pid));
}

#[test]
fn an_init_with_a_terminal_has_a_console_and_processes_run_without_it_after_its_end() {
    if !can_make_namespaces() {
        return;
    }
    let agent = Agent::start();
    let mut request = script("echo to the console > /dev/console; exit 4");
    request.terminal = Some(TerminalSize { rows: 24, columns: 80 });
    request.env = vec![text("container=other")];
    let (init, _) = agent.start_main(request, main(SHUT_DOWN, true));
    let ended = init.finish();
    assert_eq!((ended.text(), ended.status), ("to the console\r\n", ExitStatus::Code(4)));
    let after = agent.run(script("readlink /proc/self/ns/pid; echo ${container-none}"));
    let own = std::fs::read_link("/proc/self/ns/pid").unwrap();
    assert_eq!(after.text(), format!("{}\nnone\n", own.display()));
    let refused = HostMessage::ExecMain(MainRequest { process: command(&["/no"]), main: main(SHUT_DOWN, true) });
    assert_eq!(agent.ask(refused).expect_failure().kind, FailureKind::NotFound);
    assert_eq!(agent.run(script("echo still")).text(), "still\n");
}
