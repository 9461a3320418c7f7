//! Processes that outlive the command that started them can be found again by any client, in the
//! sandbox and in its copies.

use rustix::process::Signal;
use sandboxvm_tests::{
    cli::Running,
    home::{Home, SMALL, Sandbox, eventually},
};
use serde_json::Value;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

/// Starts a shell script in the background. Returns its PID, which must be the only output.
#[track_caller]
fn detach(sandbox: &Sandbox<'_>, script: &str) -> String {
    let made = sandbox.exec(["-d", "--", "sh", "-c", script]).run().succeeds();
    let out = made.out();
    let pid = out.strip_suffix('\n').unwrap_or(&out).to_owned();
    assert!(pid.parse::<u32>().is_ok_and(|pid| pid > 1), "not just a PID: {}", made.transcript());
    pid
}

/// Returns the row of a process in `ps --json`.
#[track_caller]
fn row(home: &Home, sandbox: &str, pid: &str) -> Value {
    let rows = home.cli(["ps", "--json", sandbox]).run().succeeds().json();
    let all = rows.as_array().expect("ps --json is an array");
    let row = all.iter().find(|row| row["pid"].as_u64() == pid.parse().ok());
    row.unwrap_or_else(|| panic!("ps does not show {pid}: {rows}")).clone()
}

fn said_by(running: &Running) -> String {
    String::from_utf8_lossy(&running.stdout_so_far()).into_owned()
}

#[test]
fn a_background_process_is_found_again() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL, "--name", "demo"]);
    let pid =
        detach(&sandbox, "mkfifo /tmp/go; echo begun; echo trouble >&2; read x </tmp/go; echo resumed $x; exit 7");

    // `ps` shows the command line, and `logs` shows the output of both streams while the process
    // still runs.
    let written = || (row(&home, "demo", &pid)["kept_bytes"] == 14).then_some(());
    assert!(eventually(SOON, written).is_some(), "{}", row(&home, "demo", &pid));
    let shown = row(&home, "demo", &pid);
    assert_eq!((&shown["state"], &shown["argv"][0]), (&Value::from("running"), &Value::from("sh")), "{shown}");
    let logs = home.cli(["logs", "demo", &pid]).run().succeeds();
    assert_eq!((logs.out().as_str(), logs.err().as_str()), ("begun\n", "trouble\n"));

    // A client that attaches may end in any way, and the process keeps running.
    let mut looker = home.cli(["attach", "demo", &pid]).spawn();
    looker.wait_for_stdout("begun\n");
    looker.signal(Signal::TERM);
    let _ = looker.finish().exits(143);
    looker = home.cli(["attach", "demo", &pid]).spawn();
    looker.wait_for_stdout("begun\n");
    looker.signal(Signal::KILL);
    assert_eq!(looker.finish().signal(), Some(9));
    let mut attached = home.cli(["attach", "demo", &pid]).spawn();
    let mut followed = home.cli(["logs", "-f", "demo", &pid]).spawn();
    let waited = home.cli(["wait", "demo", &pid]).spawn();
    attached.wait_for_stdout("begun\n");
    followed.wait_for_stdout("begun\n");
    let _ = sandbox.sh("echo on > /tmp/go").succeeds();
    let attached = attached.finish().exits(7);
    assert_eq!((attached.out().as_str(), attached.err().as_str()), ("begun\nresumed on\n", "trouble\n"));
    assert_eq!(followed.finish().succeeds().out(), "begun\nresumed on\n");
    assert_eq!(waited.finish().exits(7).out(), "");

    // All of it can still be read after the end of the process.
    let _ = home.cli(["wait", "demo", &pid]).run().exits(7);
    assert_eq!(home.cli(["attach", "demo", &pid]).run().exits(7).out(), "begun\nresumed on\n");
    assert_eq!(row(&home, "demo", &pid)["exit_code"], 7);

    // `kill` accepts a signal as a name or a number. Unknown PIDs are refused.
    for (signal, code) in [("KILL", 137), ("15", 143)] {
        let pid = detach(&sandbox, "exec sleep 615");
        assert!(home.cli(["ps", "-q", "demo"]).run().succeeds().out().contains(&pid));
        assert_eq!(home.cli(["kill", "demo", &pid, "-s", signal]).run().succeeds().out(), "");
        let _ = home.cli(["wait", "demo", &pid]).run().exits(code);
        let table = home.cli(["ps", "demo"]).run().succeeds().out();
        let line = table.lines().find(|line| line.starts_with(&format!("{pid} "))).unwrap_or_default();
        assert!(line.contains(&format!("killed by signal {}", code - 128)) && line.contains("sleep 615"), "{table}");
        let _ = home.cli(["kill", "demo", &pid]).run().fails_with(&[&pid, "ended"]);
    }
    for command in [&["kill", "demo", "1"][..], &["attach", "demo", "1"], &["wait", "demo", "99999"]] {
        let _ = home.cli(command).run().fails_with(&["no process", command[2]]);
    }

    // Input can be sent later.
    let made = sandbox.exec(["-d", "-i", "--", "cat"]).run().succeeds().out();
    let fed = home.cli(["attach", "-i", "demo", made.trim()]).input("hello\n").run().succeeds();
    assert_eq!(fed.out(), "hello\n");
    let _ = home.cli(["attach", "-i", "demo", &detach(&sandbox, "exec sleep 616")]).run().fails_with(&["no input"]);

    sandbox.remove();
    home.assert_nothing_left();
}

#[test]
fn the_command_of_run_d_is_found_again_and_a_terminal_can_be_detached_and_attached() {
    let Some(home) = Home::with_kvm() else { return };
    let made =
        home.cli(["run", "-d", "-m", SMALL, "--", "sh", "-c", "echo out; echo err >&2; exit 3"]).run().succeeds();
    let sandbox = Sandbox::printed(&home, &made);
    let rows = home.cli(["ps", "--json", &sandbox.id]).run().succeeds().json();
    let pid = rows[0]["pid"].to_string();
    assert_eq!(rows.as_array().map(Vec::len), Some(1), "{rows}");
    let _ = home.cli(["wait", &sandbox.id, &pid]).run().exits(3);
    let logs = home.cli(["logs", &sandbox.id, &pid]).run().succeeds();
    assert_eq!((logs.out().as_str(), logs.err().as_str()), ("out\n", "err\n"));

    let made = sandbox.exec(["-d", "-it", "--", "sh"]).run().succeeds().out();
    let pid = made.trim();
    let mut terminal = home.cli_on_terminal(&["attach", "-it", &sandbox.id, pid], 31, 99);
    terminal.expect("# ");
    terminal.keys("stty size; echo $((40+2))\r");
    terminal.expect("31 99");
    terminal.expect("42");
    terminal.keys("\x10\x11");
    assert_eq!(terminal.wait().code(), Some(0));
    assert!(terminal.is_cooked(), "the caller's terminal is left in raw mode");
    let mut terminal = home.cli_on_terminal(&["attach", "-it", &sandbox.id, pid], 31, 99);
    // The client sees what the terminal showed before, and what it shows now.
    terminal.expect("42");
    // A client can detach from a process that reads no input, too.
    let stuck = sandbox.exec(["-d", "-it", "--", "sh", "-c", "stty raw -echo; echo deaf; sleep 600"]).run().succeeds();
    let mut deaf = home.cli_on_terminal(&["attach", "-it", &sandbox.id, stuck.out().trim()], 31, 99);
    deaf.expect("deaf");
    deaf.keys(&"x".repeat(600_000));
    deaf.keys("\x10\x11");
    assert_eq!(deaf.wait().code(), Some(0));
    terminal.keys("exit $((1+4))\r");
    assert_eq!(terminal.wait().code(), Some(5));
    sandbox.remove();
    home.assert_nothing_left();
}

/// Returns the numbers in a text, one per line, without an incomplete last line.
fn numbers(text: &str) -> Vec<u64> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| line.parse().unwrap_or_else(|_| panic!("not a number: {line:?}"))).collect()
}

#[track_caller]
fn assert_no_gap(numbers: &[u64]) {
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
}

/// The streams of the parent continue. In the copy the processes continue, and any client can
/// attach to them.
#[test]
fn processes_with_open_streams_are_found_again_in_a_fork() {
    let Some(home) = Home::with_kvm() else { return };
    let parent = home.create(&["-m", SMALL, "--name", "parent"]);
    let mut counting = parent.spawn_sh("n=0; while :; do n=$((n+1)); echo $n; sleep 0.3; done");
    counting.wait_for_stdout("\n3\n");
    // The client reads nothing, so the process blocks while output is on its way.
    let mut stalled = parent.exec(["--", "sh", "-c", "seq 1 200000; echo end >&2"]).spawn_unread();
    let rows = || home.cli(["ps", "--json", "parent"]).run().succeeds().json();
    let both = eventually(SOON, || Some(rows()).filter(|rows| rows.as_array().is_some_and(|all| all.len() == 2)));
    let both = both.unwrap_or_else(|| panic!("two processes are not listed: {}", rows()));
    let pids: Vec<String> = both.as_array().into_iter().flatten().map(|row| row["pid"].to_string()).collect();
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(row(&home, "parent", &pids[1])["state"], "running", "the process does not block");

    let forked = home.cli(["fork", "parent", "-n", "1"]).deadline(Duration::from_secs(240)).run().succeeds();
    let copy = Sandbox::called(&home, forked.out().trim());

    // In the copy both are listed and run. The one that was blocked runs to its end.
    for pid in &pids {
        assert_eq!(row(&home, &copy.id, pid)["argv"][1], "-c");
        // No client has attached since the fork, so the agent keeps the output.
        let kept = || (row(&home, &copy.id, pid)["kept_bytes"].as_u64() > Some(0)).then_some(());
        assert!(eventually(SOON, kept).is_some(), "{}", row(&home, &copy.id, pid));
    }
    let _ = home.cli(["wait", &copy.id, &pids[1]]).run().succeeds();
    let logs = home.cli(["logs", &copy.id, &pids[1]]).run().succeeds();
    assert!(
        logs.err().contains("bytes of output are missing") && logs.err().ends_with("end\n"),
        "{}",
        logs.transcript()
    );
    let seen: Vec<u64> = logs.out().lines().skip(1).filter_map(|line| line.parse().ok()).collect();
    assert_no_gap(&seen);
    assert_eq!(seen.last(), Some(&200_000));
    let mut attached = home.cli(["attach", &copy.id, &pids[0]]).spawn();
    let first = eventually(SOON, || numbers(&said_by(&attached)).first().copied())
        .expect("the process keeps counting in the copy");
    assert!(first > 1, "the process starts counting again");
    attached.wait_for_stdout(&format!("\n{}\n", first + 3));
    let _ = home.cli(["kill", &copy.id, &pids[0]]).run().succeeds();
    let attached = attached.finish().exits(143);
    assert_no_gap(&numbers(&attached.out()));

    // The processes of the parent are not affected.
    let reached = numbers(&said_by(&counting)).last().copied().unwrap_or(0);
    counting.wait_for_stdout(&format!("\n{}\n", reached + 3));
    assert_eq!(row(&home, "parent", &pids[0])["state"], "running");
    stalled.read_output();
    let finished = stalled.finish().succeeds();
    assert_eq!(finished.err(), "end\n");
    let all = numbers(&finished.out());
    assert_no_gap(&all);
    assert_eq!((all.first(), all.last()), (Some(&1), Some(&200_000)));
    let _ = home.cli(["kill", "parent", &pids[0]]).run().succeeds();
    let counting = counting.finish().exits(143);
    let counted = numbers(&counting.out());
    assert_no_gap(&counted);
    assert_eq!(counted.first(), Some(&1));

    copy.remove();
    parent.remove();
    home.assert_nothing_left();
}
