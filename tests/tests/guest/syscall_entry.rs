//! A guest program jumps to the kernel's SYSCALL entry point, with registers of its choice
//! (images/kernel/patches/0001). It gains no privilege, in every mode in which the host runs the
//! guest's kernel.

use sandboxvm_tests::home::{Home, SMALL};
use std::{fs, process::Command};

#[test]
fn a_jump_to_the_syscall_entry_gains_nothing() {
    let Some(home) = Home::with_kvm() else { return };
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../images/kernel/tests/syscall_entry.c");
    let program = home.scratch("syscall_entry");
    let compiler = Command::new("gcc").args(["-O2", "-static", "-o"]).arg(&program).arg(source).output();
    let compiled = compiler.expect("gcc is installed, the kernel was built with it");
    assert!(compiled.status.success(), "gcc: {}", String::from_utf8_lossy(&compiled.stderr));

    let kernel = fs::canonicalize(home.artefacts().part("vmlinux")).expect("the bundle has a kernel");
    let map = kernel.with_file_name("System.map");
    let symbols = fs::read_to_string(&map)
        .unwrap_or_else(|error| panic!("{}: {error}; images/kernel/build writes it beside vmlinux", map.display()));
    let entry = symbols.lines().find_map(|line| line.strip_suffix(" T entry_SYSCALL_64")).expect("a 64-bit kernel");

    let sandbox = home.create(&["-m", SMALL]);
    let put = sandbox.exec(["-i", "--", "sh", "-c", "cat > /opt/probe && chmod 755 /opt/probe"]);
    let _ = put.input(fs::read(&program).expect("just compiled")).run().succeeds();
    let armed = sandbox.sh("cat /proc/cmdline").succeeds().out().contains("sandboxvm.pvm_syscall=1");
    assert_eq!(armed, std::path::Path::new("/sys/module/kvm_pvm").exists(), "armed on the wrong kind of host");
    let mode = if armed { "armed" } else { "unarmed" };
    let run = sandbox.exec(["-u", "user", "--", "/opt/probe", mode, &format!("0x{entry}")]).run().succeeds();
    eprintln!("{}", run.out());
    sandbox.remove();
    home.assert_nothing_left();
}
