//! A VMM whose log cannot be written: what it says is lost, and nothing else happens.

use std::{
    fs::File,
    process::{Command, Stdio},
};

/// Writes to this fail with ENOSPC.
fn full() -> Stdio {
    File::options().write(true).open("/dev/full").expect("a device of every Linux").into()
}

fn vmm() -> Command {
    Command::new(env!("CARGO_BIN_EXE_sandboxvm-vmm"))
}

#[test]
fn failures_that_cannot_be_logged_keep_their_exit_code() {
    // No such argument, and no launch frame.
    for arguments in [&["--no-such-argument"][..], &[]] {
        let status = vmm().args(arguments).stdin(Stdio::null()).stderr(full()).status().unwrap();
        assert_eq!(status.code(), Some(125), "{arguments:?}: {status:?}");
    }
}

#[test]
fn an_answer_that_cannot_be_printed_is_a_failure() {
    let output = vmm().arg("--version").stdout(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("cannot write to standard output"), "{said}");
}
