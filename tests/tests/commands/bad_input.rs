//! Bad input, one test each: the exit code is 125, the message names what is wrong, stdout stays
//! empty, and nothing is created.

use sandboxvm_tests::home::{Home, SMALL};
use std::{fs, path::Path};

/// Asserts that `create` and `run` with these flags fail with `hints` in the message, and leave
/// nothing behind.
#[track_caller]
fn refused(flags: &[&str], hints: &[&str]) {
    let Some(home) = Home::with_kvm() else { return };
    for command in ["create", "run"] {
        let mut arguments = vec![command];
        arguments.extend(flags);
        arguments.extend(if command == "run" { &["--", "true"][..] } else { &[] });
        let _ = home.cli(arguments).run().fails_with(hints);
    }
    assert!(home.listed().is_empty());
    home.assert_nothing_left();
}

#[test]
fn memory_of_zero() {
    refused(&["-m", "0"], &["memory", "64 MiB"]);
}

#[test]
fn memory_below_the_minimum() {
    refused(&["-m", "63M"], &["memory", "64 MiB"]);
}

#[test]
fn memory_beyond_the_host() {
    refused(&["-m", "60G"], &["memory", "host"]);
}

#[test]
fn memory_beyond_all_limits() {
    refused(&["-m", "65G"], &["memory", "64 GiB"]);
    refused(&["-m", "99999999999999999999G"], &["memory"]);
}

#[test]
fn memory_that_is_not_a_number() {
    refused(&["-m", "lots"], &["memory", "lots"]);
    refused(&["--memory=-5M"], &["memory", "-5M"]);
}

#[test]
fn no_vcpu() {
    refused(&["-c", "0"], &["between 1 and 8"]);
}

#[test]
fn nine_vcpus() {
    refused(&["-c", "9"], &["between 1 and 8"]);
}

#[test]
fn vcpus_beyond_any_type() {
    refused(&["-c", "264"], &["264"]);
    refused(&["-c", "18446744073709551617"], &["18446744073709551617"]);
}

/// Asserts that commands fail with `hints` if the file `name` of the bundle has `content` instead.
#[track_caller]
fn refused_bundle(name: &str, content: &[u8], hints: &[&str]) {
    let Some(home) = Home::with_kvm() else { return };
    let replacement = home.scratch("replacement");
    fs::write(&replacement, content).expect("a new file");
    let bundle = home.artefacts().bundle_with(&home.scratch("bundle"), name, &replacement);
    for arguments in [&["create"][..], &["run", "--", "true"]] {
        let _ = home.cli(arguments).env("SANDBOXVM_BUNDLE", &bundle).run().fails_with(hints);
    }
    assert!(home.listed().is_empty());
    home.assert_nothing_left();
}

/// Returns the first `len` bytes of a file of the bundle under test.
fn beginning_of(name: &str, len: fn(u64) -> u64) -> Vec<u8> {
    let Some(home) = Home::with_kvm() else { return vec![] };
    let path = home.artefacts().part(name);
    let size = fs::metadata(&path).expect("the bundle is readable").len();
    read_up_to(&path, len(size))
}

fn read_up_to(path: &Path, len: u64) -> Vec<u8> {
    use std::io::Read;
    let mut content = Vec::new();
    fs::File::open(path).and_then(|file| file.take(len).read_to_end(&mut content)).expect("the bundle is readable");
    content
}

#[test]
fn a_kernel_that_is_not_an_elf_file() {
    refused_bundle("vmlinux", b"#!/bin/sh\necho I am a script\n", &["kernel", "ELF"]);
}

#[test]
fn a_kernel_of_zero_bytes() {
    refused_bundle("vmlinux", b"", &["kernel", "empty"]);
}

#[test]
fn a_truncated_kernel() {
    refused_bundle("vmlinux", &beginning_of("vmlinux", |size| size / 2), &["kernel", "truncated"]);
}

/// The headers of this kernel are valid, but it contains no code. The failure must be reported, and
/// in time.
#[test]
fn a_kernel_of_garbage() {
    let Some(home) = Home::with_kvm() else { return };
    let mut kernel = fs::read(home.artefacts().part("vmlinux")).expect("the bundle is readable");
    // The headers stay. All other bytes become 0xff, which is not an instruction anywhere.
    kernel[4096..].fill(0xff);
    let replacement = home.scratch("garbage");
    fs::write(&replacement, kernel).expect("a new file");
    let bundle = home.artefacts().bundle_with(&home.scratch("bundle"), "vmlinux", &replacement);
    let run = home.cli(["run", "-m", SMALL, "--", "true"]).env("SANDBOXVM_BUNDLE", &bundle).run();
    let run = run.fails_with(&[]);
    // The kernel is refused while it is loaded, or its first instruction ends the machine.
    let reasons = ["does not load", "fault", "instruction"];
    assert!(reasons.iter().any(|reason| run.err().contains(reason)), "{}", run.transcript());
    home.assert_nothing_left();
}

#[test]
fn an_image_of_zero_bytes() {
    refused_bundle("base.erofs", b"", &["image", "empty"]);
}

#[test]
fn a_truncated_image() {
    refused_bundle("base.erofs", &beginning_of("base.erofs", |size| size - 4096), &["image", "truncated"]);
    refused_bundle("base.erofs", &beginning_of("base.erofs", |_| 1000), &["image", "truncated"]);
}

#[test]
fn an_image_that_is_not_erofs() {
    refused_bundle("base.erofs", &[0x5a; 8192], &["image", "EROFS"]);
}

#[test]
fn an_empty_command() {
    let Some(home) = Home::with_kvm() else { return };
    for arguments in
        [&["run", "--"][..], &["run"], &["run", "--", ""], &["exec", "whatever", "--"], &["exec", "whatever"]]
    {
        let _ = home.cli(arguments).run().fails_with(&[]);
    }
    assert!(home.listed().is_empty());
    home.assert_nothing_left();
}

#[test]
fn invalid_names() {
    let long = "n".repeat(64);
    for name in ["two\nlines", "-x", "Upper", "dot.dot", "..", "a/b", "", "sp ace", "\u{fc}", long.as_str()] {
        refused(&[&format!("--name={name}")], &["name"]);
    }
}

/// A NUL cannot be part of an argument on any Unix: the system call fails before the CLI starts. It
/// can reach the code that parses names in other ways, so that code refuses it: see the tests of
/// the protocol's newtypes.
#[test]
fn a_command_with_a_nul_in_a_name_cannot_be_started() {
    let Some(home) = Home::with_kvm() else { return };
    let mut command = std::process::Command::new(&home.artefacts().program);
    let error = command.args(["create", "--name", "a\0b"]).spawn().expect_err("no such argument");
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
}

#[test]
fn an_unknown_sandbox() {
    let Some(home) = Home::with_kvm() else { return };
    for id in ["zzzzzzzzzzzzzzzz", "no-such-name", "../../etc", "/", ".", "", "two\nlines", "*"] {
        for command in ["logs", "inspect", "rm", "stats", "stop"] {
            let _ = home.cli([command, id]).run().fails_with(&["no sandbox"]);
        }
        let _ = home.cli(["rm", "-f", id]).run().fails_with(&["no sandbox"]);
        let _ = home.cli(["exec", id, "--", "true"]).run().fails_with(&["no sandbox"]);
    }
    home.assert_nothing_left();
}

#[test]
fn an_unknown_flag_and_an_unknown_command() {
    let Some(home) = Home::with_kvm() else { return };
    for arguments in [&["run", "--no-such-flag", "--", "true"][..], &["no-such-command"], &["ls", "surplus"], &[]] {
        let run = home.cli(arguments).run().exits(125);
        assert!(run.stdout.is_empty() && !run.stderr.is_empty(), "{}", run.transcript());
    }
}

#[test]
fn invalid_timeouts() {
    let Some(home) = Home::with_kvm() else { return };
    for timeout in ["0", "never", "-1s", ""] {
        let _ = home.cli(["run", &format!("--timeout={timeout}"), "--", "true"]).run().fails_with(&["timeout"]);
    }
    home.assert_nothing_left();
}

/// Linux accepts no argument of more than 128 KiB, so a megabyte is passed as several. Each way
/// must end in a clear message, and the sandbox must keep working.
#[test]
fn arguments_of_a_megabyte() {
    let Some(home) = Home::with_kvm() else { return };
    let mebibyte = "x".repeat(1 << 20);
    let mut command = std::process::Command::new(&home.artefacts().program);
    assert!(command.args(["run", "--", "echo", &mebibyte]).spawn().is_err(), "the host's own kernel refuses it");

    let sandbox = home.create(&["-m", SMALL]);
    let part = "y".repeat(127 * 1024);
    // Arguments within the limits arrive complete.
    let run = sandbox.exec(["--", "echo", &part]).run().succeeds();
    assert!(run.stdout.len() == part.len() + 1 && run.out().trim_end() == part, "{}", run.transcript());
    // All arguments together exceed the protocol's megabyte.
    let many = vec![part.as_str(); 9];
    let run = sandbox.exec(["--", "echo"]).args(&many).run().fails_with(&["argument"]);
    assert!(
        run.err().contains("stdin") || run.err().contains("file"),
        "the message names no alternative: {}",
        run.transcript()
    );
    // The same limit applies to the environment.
    let flags = many.iter().enumerate().map(|(n, part)| format!("-eV{n}={part}"));
    let _ = sandbox.exec(flags).args(["--", "true"]).run().fails_with(&["environment"]);
    assert_eq!(sandbox.sh("echo fine").succeeds().out(), "fine\n");
}

#[test]
fn a_home_that_is_a_file() {
    let Some(home) = Home::with_kvm() else { return };
    let file = home.scratch("file");
    fs::write(&file, "").expect("a new file");
    for arguments in [&["ls"][..], &["create"], &["run", "--", "true"]] {
        let run = home.cli(arguments).env("SANDBOXVM_HOME", &file).run().fails_with(&[]);
        assert!(run.err().contains(&file.display().to_string()), "{}", run.transcript());
    }
}

#[test]
fn a_missing_bundle() {
    let Some(home) = Home::with_kvm() else { return };
    let nowhere = home.scratch("nowhere");
    let run = home.cli(["run", "--", "true"]).env("SANDBOXVM_BUNDLE", &nowhere).run().fails_with(&["quickstart"]);
    assert!(run.err().contains(&nowhere.display().to_string()), "{}", run.transcript());
    home.assert_nothing_left();
}
