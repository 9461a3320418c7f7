//! Memory that a guest frees is returned to the host, and snapshots stay correct.

use sandboxvm_tests::{
    home::{Home, Sandbox, eventually},
    host::memory,
};
use std::time::Duration;

/// Linux reports free memory only above 128 MiB (32 blocks of 4 MiB) and a reserve.
const MEMORY_MIB: u64 = 256;
/// Memory that the guest allocates and frees. Each page costs a page fault, which is expensive if
/// the kernel is interpreted.
const TAKEN_MIB: u64 = 24;

/// Allocates that much memory, says so, and keeps it until its stdin ends.
const TAKER: &str = r#"$| = 1; vec($taken, (24 << 20) - 1, 8) = 1; print "taken\n"; <STDIN>;"#;

/// Returns the guest memory, in MiB, that no other process shares.
fn private_mib(sandbox: &Sandbox<'_>) -> u64 {
    memory::of_vmm(sandbox.vmm_pid(), MEMORY_MIB).guest_private_kib / 1024
}

/// A machine allocates memory, is snapshotted, frees the memory, and is snapshotted again. Most of
/// the memory is then returned to the host. The second snapshot restores the file correctly,
/// although the first has other pages at that place.
#[test]
fn freed_guest_memory_is_returned_and_later_snapshots_are_correct() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", "256M", "--cold", "--name", "taker"]);
    let expected = sandbox.sh("seq 2000 > /dev/shm/kept; sha256sum /dev/shm/kept").succeeds().out();
    let before = private_mib(&sandbox);

    let mut taker =
        sandbox.exec(["-i", "--", "perl", "-e", TAKER]).open_stdin().deadline(Duration::from_secs(180)).spawn();
    taker.wait_for_stdout("taken\n");
    let taken = private_mib(&sandbox);
    assert!(taken >= before + TAKEN_MIB, "{before} MiB before, {taken} MiB with {TAKEN_MIB} MiB taken");
    home.snapshot("taker", "taken");
    taker.close_stdin();
    let _ = taker.finish().succeeds();

    // Linux waits two seconds before it reports free pages. Without the device the memory is never
    // returned.
    let given_back = eventually(Duration::from_secs(60), || {
        let now = private_mib(&sandbox);
        (now + TAKEN_MIB * 3 / 4 <= taken).then_some(now)
    });
    assert!(given_back.is_some(), "{before} MiB before, {taken} MiB then, still {} MiB", private_mib(&sandbox));
    home.snapshot("taker", "given-back");
    sandbox.remove();

    let restored = home.create(&["--from", "given-back"]);
    let run = restored.sh("sha256sum /dev/shm/kept; dmesg | grep -c -e BUG: -e 'Bad page'").exits(1);
    assert_eq!(run.out(), format!("{expected}0\n"));
    restored.remove();
    home.remove_snapshots();
    let _ = home.cli(["prune"]).run().succeeds();
    home.assert_nothing_left();
}
