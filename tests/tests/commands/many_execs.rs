//! Many commands in one sandbox, at the same time and one after the other.

use sandboxvm_tests::{
    home::{Home, SMALL, Sandbox, eventually},
    host::{memory, processes},
};
use std::{thread, time::Duration};

/// That of a machine of `SMALL`, which need not boot.
const MEMORY_MIB: u64 = 128;
/// Number of lines that each command writes while the others do the same.
const LINES: usize = 40;

fn parallel(count: usize) {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL]);
    // Uses the shell only, as starting programs costs a guest more.
    let script =
        "i=0; while [ $i -lt $1 ]; do echo \"$0 $i\"; i=$((i+1)); done; read -r line; echo \"$0 got $line\"; exit $2";
    thread::scope(|scope| {
        for number in 0..count {
            let sandbox = &sandbox;
            scope.spawn(move || {
                let (name, code) = (format!("command-{number}"), number % 100);
                let exec = sandbox.exec(["-i", "--", "sh", "-c", script, &name, &LINES.to_string(), &code.to_string()]);
                let run = exec.input(format!("input-{number}\n")).run().exits(i32::try_from(code).expect("small"));
                let lines: String = (0..LINES).map(|line| format!("{name} {line}\n")).collect();
                assert_eq!(run.out(), format!("{lines}{name} got input-{number}\n"), "{}", run.transcript());
            });
        }
    });
    assert_eq!(sandbox.sh("echo still here").succeeds().out(), "still here\n");
    sandbox.remove();
    home.assert_nothing_left();
}

#[test]
fn commands_at_the_same_time_keep_their_output_apart() {
    parallel(6);
}

#[test]
#[ignore = "soak: a hundred at the same time"]
fn a_hundred_commands_at_the_same_time_keep_their_output_apart() {
    parallel(100);
}

/// The numbers that must not grow with the number of commands.
#[derive(Debug, Clone, Copy)]
struct Footprint {
    vmm_descriptors: usize,
    vmm_threads: usize,
    vmm_dirty_kib: u64,
    agent_descriptors: u64,
    agent_kib: u64,
}

impl Footprint {
    fn of(sandbox: &Sandbox<'_>) -> Self {
        let pid = sandbox.vmm_pid();
        let script = "set -- /proc/1/fd/*; echo $#; while read -r key value _; do
            [ $key != VmRSS: ] || echo $value; done < /proc/1/status";
        let said = sandbox.sh(script).succeeds().out();
        let numbers: Vec<u64> = said.lines().map(|line| line.parse().expect("a number")).collect();
        let &[agent_descriptors, agent_kib] = numbers.as_slice() else { panic!("{said}") };
        Self {
            vmm_descriptors: processes::descriptors(pid).len(),
            vmm_threads: processes::threads(pid),
            vmm_dirty_kib: memory::of_vmm(pid, MEMORY_MIB).overhead_dirty_kib,
            agent_descriptors,
            agent_kib,
        }
    }

    /// Returns the numbers that count objects.
    fn objects(self) -> (usize, usize, u64) {
        (self.vmm_descriptors, self.vmm_threads, self.agent_descriptors)
    }
}

fn serial(count: usize) {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL]);
    let run =
        |times: usize| (0..times).for_each(|_| drop(sandbox.exec(["--", "sh", "-c", "echo out"]).run().succeeds()));
    // The first commands may allocate memory that is used again later.
    run(3);
    let mut before = Footprint::of(&sandbox);
    // A command's client has its exit code before the VMM has closed its connection. So what is
    // open is at most what was counted, and at least the smallest count.
    for _ in 0..3 {
        before.vmm_descriptors = before.vmm_descriptors.min(Footprint::of(&sandbox).vmm_descriptors);
    }
    run(count);
    let mut after = Footprint::of(&sandbox);
    let settled = eventually(Duration::from_secs(20), || {
        after = Footprint::of(&sandbox);
        (after.objects() == before.objects()).then_some(())
    });
    assert!(settled.is_some(), "{before:?} {after:?}");
    // An allocator may round up once. A leak of a few hundred bytes per command would exceed this
    // in many rounds.
    assert!(after.vmm_dirty_kib <= before.vmm_dirty_kib + 128, "{before:?} {after:?}");
    assert!(after.agent_kib <= before.agent_kib + 64, "{before:?} {after:?}");
    println!("after {count} commands: {before:?} {after:?}");
    sandbox.remove();
    home.assert_nothing_left();
}

#[test]
fn one_command_after_the_other_leaves_nothing_behind() {
    serial(6);
}

#[test]
#[ignore = "soak: a thousand, one after the other"]
fn a_thousand_commands_one_after_the_other_leave_nothing_behind() {
    serial(1000);
}
