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
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

const DAY: Duration = Duration::from_secs(86_400);

/// Longest time for which a busy process may stand still by its own clock. It is far above the time
/// slices of two processes on one vCPU of a busy host, and far below every absence in these tests
/// (multiplied by [`patience`], as every deadline).
const STANDS: Duration = Duration::from_secs(15);

/// Reads the clocks without end. Keeps in a file in memory how often it read them, the longest time
/// between two readings, how often a clock went back, and the clocks.
const BUSY: &str = "import mmap, struct, sys, time
clocks = time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME, time.CLOCK_REALTIME
look = lambda: [time.clock_gettime_ns(clock) for clock in clocks]
file = open(sys.argv[1], 'w+b')
file.truncate(4096)
page = mmap.mmap(file.fileno(), 4096)
count = worst = back = 0
last = look()
while True:
    now = look()
    count += 1
    worst = max(worst, now[0] - last[0])
    back += any(a < b for a, b in zip(now[:2], last))
    page[:48] = struct.pack('6Q', count, worst, back, *now)
    last = now";

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

fn start_busy(sandbox: &Sandbox<'_>) {
    let script = "for n in 0 1; do setsid python3 -S -c \"$0\" /dev/shm/busy$n >/dev/null 2>&1 </dev/null & done
        for n in 0 1; do until [ -s /dev/shm/busy$n ] && od -An -tu8 -N8 /dev/shm/busy$n | grep -q '[1-9]'; do :; done; done";
    let _ = sandbox.exec(["--", "sh", "-c", script, BUSY]).run().succeeds();
}

fn look_at(sandbox: &Sandbox<'_>) -> [Busy; 2] {
    let read =
        sandbox.sh("od -An -v -w48 -tu8 -N48 /dev/shm/busy0; od -An -v -w48 -tu8 -N48 /dev/shm/busy1").succeeds();
    let out = read.out();
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

/// After a pause of a day no busy process has stood still and no clock went back. Wall clock and
/// boot time include the day, and the first command is answered as quickly as before.
fn pauses_of_a_day(vcpus: &str, pauses: u32) {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL, "--cpus", vcpus]);
    assert!(!sandbox.status().clocks_jump);
    start_busy(&sandbox);
    let usual = seconds_to_answer(&sandbox);
    let (since, before) = (Instant::now(), look_at(&sandbox));
    let mut away = Duration::ZERO;
    for _ in 0..pauses {
        let _ = home.cli(["pause", &sandbox.id]).run().succeeds();
        standstill::age_paused(sandbox.vmm_pid(), DAY);
        let _ = home.cli(["resume", &sandbox.id]).run().succeeds();
        away += DAY;
        let first = seconds_to_answer(&sandbox);
        assert!(first < usual * 4.0 + 5.0, "answered after {first} s, and after {usual} s before the pause");
        let seen = assert_no_process_noticed(&sandbox, before, since, away);
        // The guest had the right time when it stopped, and that moment was moved back by a day.
        let wall = seen[0].wall.as_secs_f64() - (wall_now() + away).as_secs_f64();
        assert!(wall.abs() < 30.0, "the wall clock is {wall} s off");
    }
    assert_no_report(&sandbox);
    sandbox.remove();
    home.assert_nothing_left();
}

#[test]
fn pause_of_a_day_does_not_exist_for_one_vcpu() {
    pauses_of_a_day("1", 1);
}

#[test]
#[ignore = "soak: one pause with one vCPU runs always"]
fn pauses_of_a_day_do_not_exist_for_two_vcpus() {
    pauses_of_a_day("2", 2);
}

#[test]
fn a_restore_continues_the_clocks_of_an_old_snapshot() {
    old_snapshot_continues(false);
}

#[test]
#[ignore = "soak: a restore of the old snapshot runs always"]
fn restore_fork_and_reset_continue_the_clocks_of_an_old_snapshot() {
    old_snapshot_continues(true);
}

/// A snapshot that is a day old is restored, and with `is_changed` forked and reset.
fn old_snapshot_continues(is_changed: bool) {
    let Some(home) = Home::with_kvm() else { return };
    let original = home.create(&["-m", SMALL]);
    start_busy(&original);
    let (since, before) = (Instant::now(), look_at(&original));
    home.snapshot(&original.id, "old");
    original.remove();
    standstill::age_snapshot(&newest_memory(&home, "old"), DAY);

    let restored = home.create(&["--from", "old"]);
    let seen = assert_no_process_noticed(&restored, before, since, DAY);
    let wall = seen[0].wall.as_secs_f64() - wall_now().as_secs_f64();
    assert!(wall.abs() < 30.0, "the wall clock is {wall} s off");
    assert_no_report(&restored);

    if is_changed {
        continues_in_fork_and_reset(&home, &restored, before, since);
    }
    restored.remove();
    home.remove_snapshots();
    home.assert_nothing_left();
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

/// A VMM that is stopped by SIGSTOP receives no notice, and finds the absence out itself.
fn stopped_by_a_signal(vcpus: &str) {
    const AWAY: Duration = Duration::from_secs(20);
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL, "--cpus", vcpus]);
    start_busy(&sandbox);
    let (since, before) = (Instant::now(), look_at(&sandbox));
    let vmm = Pid::from_raw(i32::try_from(sandbox.vmm_pid()).expect("a PID")).expect("not 0");
    kill_process(vmm, Signal::STOP).expect("the VMM can be stopped");
    // This is the absence itself, not a wait for anything.
    std::thread::sleep(AWAY);
    kill_process(vmm, Signal::CONT).expect("the VMM can be continued");
    let seen = assert_no_process_noticed(&sandbox, before, since, AWAY);
    let elapsed = since.elapsed();
    for (now, then) in seen.iter().zip(&before) {
        let monotonic = now.monotonic - then.monotonic;
        assert!(monotonic < elapsed - AWAY / 2, "monotonic time advanced by {monotonic:?} in {elapsed:?}");
    }
    assert_no_report(&sandbox);
    sandbox.remove();
    home.assert_nothing_left();
}

#[test]
fn signal_that_stops_the_vmm_does_not_exist_for_one_vcpu() {
    stopped_by_a_signal("1");
}

#[test]
#[ignore = "soak: the same with one vCPU runs always"]
fn signal_that_stops_the_vmm_does_not_exist_for_two_vcpus() {
    stopped_by_a_signal("2");
}

/// Sets one timer of half a minute of monotonic time, and two that are due in an hour of wall clock
/// time and of boot time. Prints when each fired, by the monotonic clock, and how often.
const TIMERS: &str = "import ctypes, os, select, struct, sys, time
libc = ctypes.CDLL(None)
def timer(clock, absolute, after):
    fd = libc.timerfd_create(clock, 0)
    due = (time.clock_gettime(clock) if absolute else 0) + after
    assert libc.timerfd_settime(fd, absolute, struct.pack('4q', 0, 0, int(due), 0), None) == 0
    return fd
begun = time.monotonic()
timers = {timer(time.CLOCK_MONOTONIC, 0, 30): 'monotonic',
          timer(time.CLOCK_REALTIME, 1, 3600): 'realtime',
          timer(time.CLOCK_BOOTTIME, 1, 3600): 'boottime'}
print('set', flush=True)
while timers:
    for fd in select.select(list(timers), [], [])[0]:
        times, = struct.unpack('Q', os.read(fd, 8))
        print(timers.pop(fd), times, round(time.monotonic() - begun, 1), flush=True)";

#[test]
fn timers_keep_their_remaining_time_or_fire_once_when_due() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL]);
    let mut timers = sandbox.exec(["--", "python3", "-S", "-c", TIMERS]).deadline(Duration::from_secs(300)).spawn();
    timers.wait_for_stdout("set");
    let _ = home.cli(["pause", &sandbox.id]).run().succeeds();
    standstill::age_paused(sandbox.vmm_pid(), DAY);
    let _ = home.cli(["resume", &sandbox.id]).run().succeeds();
    let finished = timers.finish().succeeds();
    let out = finished.out();
    let fired: Vec<(String, u64, f64)> = out
        .lines()
        .skip(1)
        .map(|line| {
            let words: Vec<_> = line.split(' ').collect();
            (words[0].to_owned(), words[1].parse().expect("a count"), words[2].parse().expect("seconds"))
        })
        .collect();
    assert_eq!(fired.len(), 3, "{out}");
    assert!(fired.iter().all(|(_, times, _)| *times == 1), "{out}");
    let after =
        |name: &str| fired.iter().find(|(fired, ..)| fired == name).map(|(.., after)| *after).expect("the timer fired");
    assert!(after("realtime") < 25.0 && after("boottime") < 25.0, "the timers did not fire when they were due: {out}");
    let late = 30.0 + f64::from(10 * patience());
    assert!((30.0..late).contains(&after("monotonic")), "the monotonic timer did not keep its remaining time: {out}");
    sandbox.remove();
    home.assert_nothing_left();
}
