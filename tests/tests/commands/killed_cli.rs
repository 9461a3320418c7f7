//! The CLI is killed at various moments: its terminal is restored, the sandbox stays usable, and no
//! process is left.

use rustix::process::Signal;
use sandboxvm_tests::{
    cli::terminal::TerminalSession,
    home::{Home, SMALL, Sandbox, eventually},
    host::processes,
};
use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

const SOON: Duration = Duration::from_secs(60);
const SIGNALS: [Signal; 3] = [Signal::KILL, Signal::TERM, Signal::HUP];

/// Waits until a signal has ended the command and its terminal has its former settings again.
#[track_caller]
fn assert_ends_sanely(mut terminal: TerminalSession, before: &str, what: &str) {
    let _ = terminal.wait();
    let is_sane = || (terminal.settings() == before).then_some(());
    assert!(eventually(SOON, is_sane).is_some(), "{what}: the terminal is left as\n{}", terminal.settings());
    assert!(terminal.is_cooked(), "{what}");
}

/// Asserts that the sandbox responds, is listed as running, and has only the expected processes.
#[track_caller]
fn assert_usable(home: &Home, sandbox: &Sandbox<'_>, expected: &[&str]) {
    let _ = sandbox.exec(["--", "true"]).run().succeeds();
    assert_eq!(home.row(&sandbox.id)["state"], "running");
    let left = || {
        let rows = home.cli(["ps", "--json", &sandbox.id]).run().succeeds().json();
        let running = rows.as_array().into_iter().flatten().filter(|row| row["state"] == "running");
        let pids: Vec<String> = running.map(|row| row["pid"].to_string()).collect();
        (pids == expected).then_some(())
    };
    assert!(eventually(SOON, left).is_some(), "a process outlives the command that started it");
}

/// Returns the guardians of terminals whose command has ended. Guardians of other tests are not
/// included.
fn orphaned_guardians(home: &Home) -> Vec<PathBuf> {
    let program = fs::canonicalize(&home.artefacts().program).expect("the program is there");
    let is_it = |proc: &Path| fs::read_link(proc.join("exe")).is_ok_and(|exe| exe == program);
    let parent = |proc: &Path| {
        let status = fs::read_to_string(proc.join("status")).ok()?;
        Some(Path::new("/proc").join(status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim()))
    };
    let guards =
        |proc: &Path| fs::read_to_string(proc.join("cmdline")).is_ok_and(|line| line.contains("guard-terminal"));
    let all = fs::read_dir("/proc").expect("/proc is mounted").flatten().map(|entry| entry.path());
    all.filter(|proc| is_it(proc) && guards(proc) && !parent(proc).is_some_and(|parent| is_it(&parent))).collect()
}

#[test]
fn killed_commands_restore_their_terminal_at_any_moment() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL, "--name", "demo"]);
    let started = sandbox.exec(["-d", "-i", "-t", "--", "sh"]).run().succeeds().out();
    let shell = started.trim();
    let attach = ["attach", "-it", "demo", shell];
    let exec = ["exec", "-it", "demo", "--", "sh", "-c", "echo u''p; exec cat"];
    let run = ["run", "-it", "-m", SMALL, "--", "sh", "-c", "echo u''p; exec cat"];
    // These are killed when keys already reach the guest. There, a key that was passed on ends the
    // process or detaches from it.
    let attended: [(&[&str], &str, &[Signal]); 3] =
        [(&exec, "up", &SIGNALS), (&attach, "", &[Signal::KILL, Signal::HUP]), (&run, "up", &[Signal::KILL])];
    for (arguments, shown, signals) in attended {
        for signal in signals {
            let what = format!("{arguments:?} {signal:?}");
            let mut terminal = home.cli_on_terminal(arguments, 24, 80);
            // Another terminal shows the default settings, as this one may be raw by now.
            let before = home.cli_on_terminal(&["--version"], 24, 80).settings();
            let raw = eventually(SOON, || (!terminal.is_cooked()).then_some(()));
            assert!(raw.is_some(), "{what}: never raw: {}", terminal.screen());
            if !shown.is_empty() {
                terminal.expect(shown);
            }
            terminal.signal(*signal);
            assert_ends_sanely(terminal, &before, &what);
        }
        assert_usable(&home, &sandbox, &[shell]);
    }
    // At moments spread over the start: the CLI may be reading a record, starting the guardian or
    // sending its request.
    for (number, (arguments, ..)) in attended.iter().enumerate() {
        for step in 1..4_u32 {
            let terminal = home.cli_on_terminal(arguments, 24, 80);
            let before = home.cli_on_terminal(&["--version"], 24, 80).settings();
            thread::sleep(Duration::from_millis(4) * (step * step + u32::try_from(number).expect("a few")));
            terminal.signal(Signal::KILL);
            assert_ends_sanely(terminal, &before, &format!("{arguments:?} in step {step}"));
        }
    }
    assert_usable(&home, &sandbox, &[shell]);
    let gone = eventually(SOON, || orphaned_guardians(&home).is_empty().then_some(()));
    assert!(gone.is_some(), "{:?}", orphaned_guardians(&home));
    // The end of a guardian does not end its command.
    let mut terminal = home.cli_on_terminal(&exec, 24, 80);
    terminal.expect("up");
    let [guardian] = processes::children(terminal.pid())[..] else { panic!("it has one child") };
    processes::kill(guardian);
    terminal.keys("\x04");
    assert_eq!(terminal.wait().code(), Some(0));
    assert!(terminal.is_cooked());
    // The next command removes the sandbox of the killed `run`.
    assert_eq!(home.listed(), [sandbox.id.as_str()]);
    sandbox.remove();
    home.assert_nothing_left();
}

/// Returns the number of bytes that a process has read.
fn bytes_read(pid: u32) -> u64 {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    io.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse().ok()).unwrap_or_default()
}

fn names_in(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).expect("the path exists").flatten().map(|entry| entry.path()).collect()
}

#[test]
fn a_killed_copy_leaves_the_old_file_and_no_temporary_one() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL, "--name", "demo"]);
    let _ = sandbox.sh("mkdir /in; echo old > /in/big; echo said > /dev/console").succeeds();
    let _ = sandbox.sh("head -c 3000000 /dev/zero > /big").succeeds();
    let (place, source) = (home.scratch("place"), home.scratch("source"));
    fs::create_dir(&place).expect("a scratch directory");
    fs::write(place.join("big"), "old").expect("a scratch file");
    fs::write(&source, vec![7; 64 << 20]).expect("a scratch file");
    let out = ["cp", "demo:/big", &place.display().to_string()].map(str::to_owned);
    let into = ["cp", &source.display().to_string(), "demo:/in/big"].map(str::to_owned);
    // SIGKILL, of which the command learns nothing, and one signal that it could handle.
    for signal in [Signal::KILL, Signal::TERM] {
        // A copy out of the sandbox is killed while it writes the file that will replace the old
        // one.
        let mut copy = home.cli(&out).spawn();
        let pid = copy.pid();
        let begun = eventually(SOON, || (processes::writes_in(pid, &place) || copy.has_ended()).then_some(()));
        assert!(begun.is_some() && !copy.has_ended(), "{signal:?}: too quick to be killed: {:?}", copy.finish());
        copy.signal(signal);
        let _ = copy.finish();
        assert_eq!(names_in(&place), [place.join("big")], "{signal:?}");
        assert_eq!(fs::read_to_string(place.join("big")).ok().as_deref(), Some("old"), "{signal:?}");

        // A copy into the sandbox is killed when it has read a mebibyte or two.
        let mut copy = home.cli(&into).spawn();
        let pid = copy.pid();
        let begun = eventually(SOON, || (bytes_read(pid) > 3 << 20 || copy.has_ended()).then_some(()));
        assert!(begun.is_some() && !copy.has_ended(), "{signal:?}: too quick to be killed: {:?}", copy.finish());
        copy.signal(signal);
        let _ = copy.finish();
        let clean = || (sandbox.sh("ls -A /in; cat /in/big").succeeds().out() == "big\nold\n").then_some(());
        assert!(eventually(SOON, clean).is_some(), "{signal:?}: {}", sandbox.sh("ls -lA /in").out());
    }
    // Commands that only read, or that only send a request.
    for signal in [Signal::KILL, Signal::TERM] {
        let mut logs = home.cli(["logs", "-f", "demo"]).spawn();
        logs.wait_for_stdout("said");
        logs.signal(signal);
        let _ = logs.finish();
        for (step, port) in [(0, "7001"), (3, "7002"), (12, "7003")] {
            let publishing = home.cli(["port", "demo", port]).spawn();
            thread::sleep(Duration::from_millis(step));
            publishing.signal(signal);
            let _ = publishing.finish();
        }
        let _ = home.cli(["port", "demo", "7000"]).run().succeeds();
    }
    assert_usable(&home, &sandbox, &[]);
    let _ = home.cli(["cp", "demo:/big", &place.display().to_string()]).run().succeeds();
    assert_eq!(fs::metadata(place.join("big")).expect("the path exists").len(), 3_000_000);
    sandbox.remove();
    home.assert_nothing_left();
}
