//! Time in which a machine does not run does not exist for its guest. Schedulers and monotonic
//! clocks continue where they stopped, wall clock and boot time are set to the present, and no
//! clock goes back. That holds when the machine was paused, restored, forked or reset, and when its
//! VMM was stopped by a signal. The tests do not wait for long absences: `standstill` moves the
//! recorded moment of the stop back.

use rustix::process::{Pid, Signal, kill_process};
use sandboxvm_tests::{
    cli::patience,
    home::{Home, SMALL, Sandbox, eventually},
    standstill,
};
use std::{
    fs,
    process::Command,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

const DAY: Duration = Duration::from_secs(86_400);

/// Longest time for which a busy process may stand still by its own clock. It is far above the time
/// slices of two processes on one vCPU of a busy host, and far below every absence in these tests
/// (multiplied by [`patience`], as every deadline).
const STANDS: Duration = Duration::from_secs(15);

/// The state that one of the busy processes reports.
#[derive(Debug, Clone, Copy)]
struct Busy {
    count: u64,
    worst: Duration,
    back: u64,
    monotonic: Duration,
    boot: Duration,
    wall: Duration,
}

/// Where the program is in the guest, and the files of its busy processes.
const CLOCKS: &str = "/dev/shm/clocks";
const BUSY: [&str; 2] = ["/dev/shm/busy0", "/dev/shm/busy1"];

/// Compiles `tests/guest/clocks.c` and copies it into the sandbox.
fn install_clocks(home: &Home, sandbox: &Sandbox<'_>) {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/guest/clocks.c");
    let program = home.scratch("clocks");
    let compiler = Command::new("gcc").args(["-O2", "-static", "-o"]).arg(&program).arg(source).output();
    let compiled = compiler.expect("gcc is installed, the kernel was built with it");
    assert!(compiled.status.success(), "gcc: {}", String::from_utf8_lossy(&compiled.stderr));
    let put = sandbox.exec(["-i", "--", "sh", "-c", &format!("cat > {CLOCKS} && chmod 755 {CLOCKS}")]);
    let _ = put.input(fs::read(&program).expect("just compiled")).run().succeeds();
}

/// Starts two processes that read the clocks without end.
fn start_busy(sandbox: &Sandbox<'_>) {
    let _ = sandbox.exec(["--", CLOCKS, "busy", BUSY[0], BUSY[1]]).run().succeeds();
}

fn look_at(sandbox: &Sandbox<'_>) -> [Busy; 2] {
    let out = sandbox.exec(["--", CLOCKS, "look", BUSY[0], BUSY[1]]).run().succeeds().out();
    let mut lines = out.lines().map(|line| {
        let mut numbers = line.split_whitespace().map(|number| number.parse::<u64>().expect("a number"));
        let mut next = || numbers.next().unwrap_or_else(|| panic!("{out}"));
        let (count, worst, back) = (next(), Duration::from_nanos(next()), next());
        let [monotonic, boot, wall] = [next(), next(), next()].map(Duration::from_nanos);
        Busy { count, worst, back, monotonic, boot, wall }
    });
    [(); 2].map(|()| lines.next().unwrap_or_else(|| panic!("{out}")))
}

/// Waits until both processes have run again. Then compares what they saw since `before` with an
/// absence of `away` and the time that the test itself took.
#[track_caller]
fn assert_no_process_noticed(sandbox: &Sandbox<'_>, before: [Busy; 2], since: Instant, away: Duration) -> [Busy; 2] {
    // A process that stood still does not report it, so both must have counted on.
    let mut seen = before;
    let runs = |seen: &[Busy; 2]| seen.iter().zip(&before).all(|(now, then)| now.count > then.count + 1000);
    let ran = eventually(Duration::from_secs(60), || {
        seen = look_at(sandbox);
        runs(&seen).then_some(())
    });
    assert!(ran.is_some(), "a process stands still: {before:#?} {seen:#?}");
    let elapsed = since.elapsed();
    for (now, then) in seen.iter().zip(&before) {
        assert!(now.worst < STANDS * patience(), "a busy process stood still: {seen:#?}");
        assert_eq!(now.back, 0, "a clock went back: {seen:#?}");
        let (monotonic, boot) = (now.monotonic - then.monotonic, now.boot - then.boot);
        // The last report of a process may be as old as its longest standstill.
        let most = elapsed + now.worst;
        assert!(monotonic <= most, "monotonic time advanced by {monotonic:?} in {most:?}");
        let expected = away..away + most + Duration::from_secs(1);
        assert!(expected.contains(&boot), "boot time advanced by {boot:?} and not by {expected:?}");
    }
    seen
}

/// Asserts that the guest's kernel reported neither a stall nor a broken clock.
#[track_caller]
fn assert_no_report(sandbox: &Sandbox<'_>) {
    let said =
        sandbox.sh("dmesg | grep -i -e stall -e lockup -e 'blocked for more' -e unstable -e 'sleep delta'; true");
    assert_eq!(said.succeeds().out(), "");
    let console = fs::read_to_string(sandbox.directory().join("console.log")).unwrap_or_default();
    assert!(!["stall", "lockup", "unstable"].iter().any(|word| console.contains(word)), "{console}");
}

fn wall_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970")
}

fn seconds_to_answer(sandbox: &Sandbox<'_>) -> f64 {
    let asked = Instant::now();
    let _ = sandbox.sh(":").succeeds();
    asked.elapsed().as_secs_f64()
}

/// A machine is absent in every way, one after the other, since its boot and its programs are what
/// takes long: paused for a day, stopped by a signal, and restored from a snapshot of yesterday.
fn story(vcpus: &str, pauses: u32, is_changed: bool) {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL, "--cpus", vcpus]);
    assert!(!sandbox.status().clocks_jump);
    install_clocks(&home, &sandbox);
    start_busy(&sandbox);
    let mut timers = sandbox.exec(["--", CLOCKS, "timers"]).deadline(Duration::from_secs(300)).spawn();
    timers.wait_for_stdout("set");
    pauses_of_a_day(&home, &sandbox, pauses);
    stopped_by_a_signal(&sandbox);
    assert_timers_kept_their_time(&timers.finish().succeeds().out());
    assert_no_report(&sandbox);
    restored_a_day_later(&home, sandbox, is_changed);
    home.remove_snapshots();
    home.assert_nothing_left();
}

#[test]
fn a_machine_with_one_vcpu_notices_no_absence() {
    story("1", 1, false);
}

#[test]
#[ignore = "soak: one vCPU, without a fork and a reset of the old snapshot, runs always"]
fn a_machine_with_one_vcpu_and_its_copies_notice_no_absence() {
    story("1", 2, true);
}

#[test]
#[ignore = "soak: a machine with two vCPUs has to boot"]
fn a_machine_with_two_vcpus_and_its_copies_notice_no_absence() {
    story("2", 2, true);
}

/// After a pause of a day no busy process has stood still and no clock went back. Wall clock and
/// boot time include the day, and the first command is answered as quickly as before.
fn pauses_of_a_day(home: &Home, sandbox: &Sandbox<'_>, pauses: u32) {
    let usual = seconds_to_answer(sandbox);
    let (since, before) = (Instant::now(), look_at(sandbox));
    let mut away = Duration::ZERO;
    for _ in 0..pauses {
        let _ = home.cli(["pause", &sandbox.id]).run().succeeds();
        standstill::age_paused(sandbox.vmm_pid(), DAY);
        let _ = home.cli(["resume", &sandbox.id]).run().succeeds();
        away += DAY;
        let first = seconds_to_answer(sandbox);
        let most = usual * 4.0 + f64::from(5 * patience());
        assert!(first < most, "answered after {first} s, and after {usual} s before the pause");
        let seen = assert_no_process_noticed(sandbox, before, since, away);
        // The guest had the right time when it stopped, and that moment was moved back by a day.
        let wall = seen[0].wall.as_secs_f64() - (wall_now() + away).as_secs_f64();
        assert_right(wall);
    }
}

/// Asserts that the wall clock, as a busy process last saw it, is less than that many seconds off.
#[track_caller]
fn assert_right(off: f64) {
    assert!(off.abs() < f64::from(30 * patience()), "the wall clock is {off} s off");
}

/// A VMM that is stopped by SIGSTOP receives no notice, and finds the absence out itself. What a
/// process reported before may be old if the host is so busy that the guest hardly runs, and then this
/// absence shows nothing: the next one does.
fn stopped_by_a_signal(sandbox: &Sandbox<'_>) {
    const AWAY: Duration = Duration::from_secs(10);
    const ABSENCES: usize = 5;
    let is_shown = (0..ABSENCES).any(|_| {
        let (since, before) = (Instant::now(), look_at(sandbox));
        let vmm = Pid::from_raw(i32::try_from(sandbox.vmm_pid()).expect("a PID")).expect("not 0");
        kill_process(vmm, Signal::STOP).expect("the VMM can be stopped");
        // This is the absence itself, not a wait for anything.
        std::thread::sleep(AWAY);
        kill_process(vmm, Signal::CONT).expect("the VMM can be continued");
        let seen = assert_no_process_noticed(sandbox, before, since, AWAY);
        let elapsed = since.elapsed();
        seen.iter().zip(&before).all(|(now, then)| {
            let monotonic = now.monotonic - then.monotonic;
            eprintln!("monotonic time advanced by {monotonic:?} in {elapsed:?}");
            monotonic < elapsed - AWAY / 2
        })
    });
    assert!(is_shown, "monotonic time advanced while the machine was stopped, in each of {ABSENCES} absences");
}

/// `clocks timers` sets one timer of 40 s of monotonic time, and two that are due in an hour of wall
/// clock time and of boot time. It prints when each fired, by the monotonic clock, and how often.
#[track_caller]
fn assert_timers_kept_their_time(out: &str) {
    let fired: Vec<(&str, &str, f64)> = out
        .lines()
        .skip(1)
        .map(|line| {
            let words: Vec<_> = line.split(' ').collect();
            (words[0], words[1], words[2].parse().expect("seconds"))
        })
        .collect();
    assert!(fired.len() == 3 && fired.iter().all(|(_, times, _)| *times == "1"), "{out}");
    // An hour passed in the pause, so these fired first.
    let (monotonic, _, after) = fired[2];
    assert_eq!(monotonic, "monotonic", "the other timers did not fire when they were due: {out}");
    let late = 40.0 + f64::from(10 * patience());
    assert!((40.0..late).contains(&after), "the monotonic timer did not keep its remaining time: {out}");
}

/// A snapshot that is a day old is restored, and with `is_changed` forked and reset.
fn restored_a_day_later(home: &Home, original: Sandbox<'_>, is_changed: bool) {
    let (since, before) = (Instant::now(), look_at(&original));
    home.snapshot(&original.id, "old");
    original.remove();
    standstill::age_snapshot(&newest_memory(home, "old"), DAY);

    let restored = home.create(&["--from", "old"]);
    let seen = assert_no_process_noticed(&restored, before, since, DAY);
    assert_right(seen[0].wall.as_secs_f64() - wall_now().as_secs_f64());
    assert_no_report(&restored);
    if is_changed {
        continues_in_fork_and_reset(home, &restored, before, since);
    }
    restored.remove();
}

fn continues_in_fork_and_reset(home: &Home, restored: &Sandbox<'_>, before: [Busy; 2], since: Instant) {
    let forked = home.cli(["fork", &restored.id]).deadline(Duration::from_secs(240)).run().succeeds();
    let fork = Sandbox::called(home, forked.out().trim());
    let _ = assert_no_process_noticed(&fork, before, since, DAY);
    let _ = assert_no_process_noticed(restored, before, since, DAY);
    fork.remove();

    let _ = home.cli(["reset", &restored.id]).run().succeeds();
    let _ = assert_no_process_noticed(restored, before, since, DAY);
    assert_no_report(restored);
}

/// Returns the newest memory file of a snapshot.
fn newest_memory(home: &Home, snapshot: &str) -> std::path::PathBuf {
    let directory = home.path().join("snapshots").join(snapshot);
    let manifest = fs::read(directory.join("manifest.json")).expect("a manifest");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
    let newest = manifest["memory"].as_array().and_then(|files| files.last()).expect("a memory file");
    directory.join(newest["name"].as_str().expect("a name"))
}
