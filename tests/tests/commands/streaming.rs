//! Streams of any length pass through the CLI, the VMM and the guest in bounded memory.

use sandboxvm_tests::{
    home::{Home, eventually},
    host::{
        memory::{self, Sampler},
        processes,
    },
};
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// Maximum resident memory of the CLI for any stream: program, runtime, and one frame for each
/// direction.
const CLI_LIMIT_KIB: u64 = 16 * 1024;
/// Maximum resident memory of the VMM, without its guest's memory, while it streams.
const VMM_LIMIT_KIB: u64 = 6 * 1024;

/// Returns the PID of the VMM that works for this home, once there is one.
fn vmm_of(home: &Path) -> u32 {
    let found = eventually(Duration::from_secs(20), || {
        processes::that_hold(home).into_iter().find(|p| p.command.contains("sandboxvm-vmm")).map(|p| p.pid)
    });
    found.expect("a VMM started")
}

/// Sends `mib` MiB through `run -i -- cat`, and measures the memory of both sides meanwhile.
fn there_and_back(mib: usize, deadline: Duration) {
    let Some(home) = Home::with_kvm() else { return };
    // No two blocks are equal, so lost, repeated and swapped blocks are detected.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let input: Vec<u8> = (0..mib << 17)
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .collect();
    let started = Instant::now();
    let run = home.cli(["run", "-i", "-m", "128M", "--", "cat"]).input(input.clone()).deadline(deadline).spawn();
    let vmm = vmm_of(&home.path());
    let cli_memory = Sampler::of_process(run.pid());
    let vmm_memory = Sampler::of_vmm_overhead(vmm, 128);
    let run = run.finish().succeeds();
    let (cli_kib, vmm_kib) = (cli_memory.peak_kib(), vmm_memory.peak_kib());
    eprintln!("{mib} MiB there and back in {:?}: CLI {cli_kib} KiB, VMM {vmm_kib} KiB", started.elapsed());
    assert!(run.stdout.len() == input.len(), "{} of {} bytes came back", run.stdout.len(), input.len());
    let differs = run.stdout.iter().zip(&input).position(|(came, went)| came != went);
    assert_eq!(differs, None, "byte at this offset differs");
    assert!(cli_kib <= CLI_LIMIT_KIB, "the CLI took {cli_kib} KiB");
    assert!(vmm_kib <= VMM_LIMIT_KIB, "the VMM took {vmm_kib} KiB beside the guest's memory");
    home.assert_nothing_left();
}

/// More than every buffer on the way holds. The tests below show with more bytes that memory is
/// bounded.
#[test]
fn two_mib_come_back_byte_for_byte() {
    there_and_back(2, Duration::from_secs(540));
}

#[test]
#[ignore = "minutes long: scripts/soak runs it"]
fn two_hundred_fifty_six_mib_come_back_byte_for_byte() {
    there_and_back(256, Duration::from_secs(1800));
}

/// If a client stops reading, the command blocks, and no memory on the way grows.
#[test]
fn a_slow_reader_blocks_the_writer() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", "128M"]);
    let vmm = sandbox.vmm_pid();
    let _ = sandbox.sh("truncate -s 9M /tmp/zeros").succeeds();
    let mut stalled = sandbox.exec(["--", "sh", "-c", "exec cat < /tmp/zeros"]).spawn_unread();
    let cli = stalled.pid();
    // The position of its stdin shows how much the command has read.
    let position = || {
        let out = sandbox.sh("grep pos: /proc/$(pgrep -x cat)/fdinfo/0").out();
        out.split_whitespace().nth(1).and_then(|pos| pos.parse::<u64>().ok())
    };
    let mut last = None;
    let settled = eventually(Duration::from_secs(60), || {
        let now = position();
        let still = now.is_some() && now == last;
        last = now;
        still.then_some(now?)
    });
    let settled = settled.expect("the writer stalls");
    assert!(settled > 0 && settled < 5 << 20, "{settled} bytes of 9 MiB are under way to a reader that reads nothing");
    let (cli_kib, vmm) = (memory::resident_kib(cli).expect("the CLI runs"), memory::of_vmm(vmm, 128));
    assert!(cli_kib <= CLI_LIMIT_KIB && vmm.overhead_kib <= VMM_LIMIT_KIB, "CLI {cli_kib} KiB, VMM {vmm:?}");
    stalled.read_output();
    let run = stalled.finish().succeeds();
    assert!(run.stdout.len() == 9 << 20 && run.stdout.iter().all(|byte| *byte == 0), "{} bytes", run.stdout.len());
}

/// If a command does not read its input, its client blocks, and no memory on the way grows. Its
/// end, and signals to it, still pass.
#[test]
fn a_slow_command_blocks_its_client() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", "128M"]);
    let vmm = sandbox.vmm_pid();
    let input = vec![b'y'; 9 << 20];
    let mut run = sandbox.exec(["-i", "--", "sh", "-c", "echo up; sleep 3; wc -c"]).input(input).spawn();
    let cli_memory = Sampler::of_process(run.pid());
    let vmm_memory = Sampler::of_vmm_overhead(vmm, 128);
    run.wait_for_stdout("up\n");
    // The connection is full, and a control message still passes.
    let stuck = sandbox.exec(["-i", "--", "sh", "-c", "echo up; exec sleep 600"]).input(vec![b'z'; 1 << 20]);
    let mut stuck = stuck.spawn();
    stuck.wait_for_stdout("up\n");
    stuck.signal(rustix::process::Signal::TERM);
    let stuck = stuck.finish();
    assert_eq!(stuck.code(), Some(128 + 15), "{}", stuck.transcript());
    let run = run.finish().succeeds();
    assert_eq!(run.out(), format!("up\n{}\n", 9 << 20));
    let (cli_kib, vmm_kib) = (cli_memory.peak_kib(), vmm_memory.peak_kib());
    assert!(cli_kib <= CLI_LIMIT_KIB && vmm_kib <= VMM_LIMIT_KIB, "CLI {cli_kib} KiB, VMM {vmm_kib} KiB");
}
