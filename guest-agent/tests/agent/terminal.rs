//! Processes with a terminal.

use crate::host::{Agent, command, script};
use sandboxvm_protocol::agent::{ExecRequest, ExitStatus, HostMessage, SignalNumber, StdinSource, TerminalSize};

fn on_terminal(mut request: ExecRequest, rows: u16, columns: u16) -> ExecRequest {
    request.terminal = Some(TerminalSize { rows, columns });
    request.stdin = StdinSource::Connection;
    request
}

#[test]
fn all_three_streams_are_one_terminal_of_the_size_asked_for() {
    let request = script("tty; tty <&1 >&2; tty <&2; stty size; echo $TERM; ps -o tty= -p $$ | grep -c pts");
    let finished = Agent::start().run(on_terminal(request, 31, 97));
    let lines: Vec<&str> = finished.text().lines().collect();
    assert!(lines[0].starts_with("/dev/pts/"), "{lines:?}");
    assert_eq!((lines[0], lines[0]), (lines[1], lines[2]));
    assert_eq!(lines[3..], ["31 97", "xterm-256color", "1"]);
    assert!(finished.stderr.is_empty());
    assert_eq!(finished.status, ExitStatus::Code(0));
}

#[test]
fn a_resize_reaches_the_process() {
    let agent = Agent::start();
    let request = script("trap 'stty size; exit 4' WINCH; echo ready; while :; do sleep 0.05; done");
    let (mut host, _) = agent.start_process(on_terminal(request, 24, 80));
    host.read_until("ready");
    host.send(&[HostMessage::Resize(TerminalSize { rows: 50, columns: 132 })]);
    host.read_until("50 132");
    assert_eq!(host.finish().status, ExitStatus::Code(4));
}

#[test]
fn control_c_interrupts_the_foreground() {
    let agent = Agent::start();
    let (mut host, _) = agent.start_process(on_terminal(command(&["cat"]), 24, 80));
    host.send_stdin(b"x\n");
    host.read_until("x\r\nx\r\n");
    host.send_stdin(&[3]);
    assert_eq!(host.finish().status, ExitStatus::Signal(SignalNumber::try_from(2).unwrap()));
}

#[test]
fn lines_are_echoed_and_the_end_of_stdin_is_control_d() {
    let agent = Agent::start();
    for (input, output) in [("hello\n", "hello\r\nhello\r\n"), ("half a line", "half a linehalf a line")] {
        let (mut host, _) = agent.start_process(on_terminal(command(&["cat"]), 24, 80));
        host.send_stdin(input.as_bytes());
        host.send(&[HostMessage::StdinEof]);
        let finished = host.finish();
        // The terminal may echo the control character.
        assert_eq!(finished.text().replace("^D\u{8}\u{8}", ""), output);
        assert_eq!(finished.status, ExitStatus::Code(0));
    }
}

#[test]
fn the_last_lines_are_not_lost() {
    let agent = Agent::start();
    for _ in 0..20 {
        let finished = agent.run(on_terminal(script("seq 3000; echo last; exit 3"), 24, 80));
        assert!(finished.text().ends_with("3000\r\nlast\r\n"));
        assert_eq!(finished.text().lines().count(), 3001);
        assert_eq!(finished.status, ExitStatus::Code(3));
    }
}

#[test]
fn an_interactive_shell_has_job_control() {
    let agent = Agent::start();
    let (mut host, _) = agent.start_process(on_terminal(command(&["bash", "--norc", "-i"]), 24, 80));
    host.send_stdin(b"PS1=; echo $((40+2))\n");
    host.read_until("42\r\n");
    host.send_stdin(b"sleep 1000\n");
    std::thread::sleep(std::time::Duration::from_millis(300));
    host.send_stdin(&[26]);
    host.read_until("Stopped");
    host.send_stdin(b"kill %1; exit 9\n");
    host.send_stdin(b"exit 9\n");
    assert_eq!(host.finish().status, ExitStatus::Code(9));
}
