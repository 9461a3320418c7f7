//! Each process keeps its vector registers: across other processes, signals, and a restore.
//! Programs see the processor of the host, even if a KVM that cannot save its registers interprets
//! the guest's kernel.

use sandboxvm_tests::home::{Home, SMALL};
use std::{fs, process::Command};

#[test]
fn each_process_keeps_its_vector_registers() {
    let Some(home) = Home::with_kvm() else { return };
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/guest/vector_registers.c");
    let program = home.scratch("vector_registers");
    let compiler = Command::new("gcc").args(["-O1", "-static", "-o"]).arg(&program).arg(source).output();
    let compiled = compiler.expect("gcc is installed, the kernel was built with it");
    assert!(compiled.status.success(), "gcc: {}", String::from_utf8_lossy(&compiled.stderr));

    let sandbox = home.create(&["-m", SMALL, "--name", "vectors"]);
    let put = sandbox.exec(["-i", "--", "sh", "-c", "cat > /opt/probe && chmod 755 /opt/probe"]);
    let _ = put.input(fs::read(&program).expect("just compiled")).run().succeeds();
    let both = sandbox.sh("/opt/probe 3 > /dev/shm/other & /opt/probe 3; wait $! && cat /dev/shm/other").succeeds();
    let said: Vec<String> = both.out().lines().map(str::to_owned).collect();
    eprintln!("{said:?}");
    let is_good =
        |line: &String| line == "no AVX2" || (line.starts_with("kept: 0 of ") && line.ends_with(", signalled"));
    assert!(said.len() == 2 && said.iter().all(is_good), "{}", both.transcript());

    // The program starts before a snapshot and ends in a copy.
    let begin = "setsid sh -c '> /dev/shm/on; /opt/probe 8 > /dev/shm/said; echo $? > /dev/shm/code' >/dev/null 2>&1 </dev/null &
        until [ -e /dev/shm/on ]; do :; done";
    let _ = sandbox.sh(begin).succeeds();
    home.snapshot("vectors", "busy");
    sandbox.remove();
    let copy = home.create(&["--from", "busy"]);
    let wait = "until read -r code < /dev/shm/code; do sleep 0.2; done 2>/dev/null; cat /dev/shm/said; exit $code";
    let run = copy.exec(["--", "sh", "-c", wait]).run().succeeds();
    assert!(
        run.out().lines().count() == 1 && run.out().lines().all(|line| is_good(&line.to_owned())),
        "{}",
        run.transcript()
    );
    copy.remove();
    home.remove_snapshots();
    home.assert_nothing_left();
}
