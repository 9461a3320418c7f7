//! `sandboxvm exec`: what a command receives, and what the CLI returns of it. The cases of a test
//! share one machine.

use sandboxvm_tests::{
    cli::{Finished, patience},
    home::{Home, SMALL, Sandbox, eventually},
};
use std::{collections::BTreeMap, time::Duration};

#[test]
fn exit_codes_are_those_of_the_command_or_say_what_failed() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL]);

    // Some of these are also codes of the CLI itself.
    for code in [0, 124, 125, 127, 255] {
        let run = sandbox.sh(&format!("exit {code}")).exits(code);
        assert!(
            run.stderr.is_empty(),
            "the CLI printed a message, but the exit code is the command's: {}",
            run.transcript()
        );
    }
    for (name, number) in [("KILL", 9), ("PIPE", 13)] {
        let _ = sandbox.sh(&format!("kill -{name} $$")).exits(128 + number);
    }

    let ours = |run: Finished, code: i32, hint: &str| {
        let run = run.exits(code);
        assert!(run.stdout.is_empty(), "{}", run.transcript());
        assert!(run.err().starts_with("sandboxvm: ") && run.err().contains(hint), "{}", run.transcript());
    };
    let exec = |program: &str| sandbox.exec(["--", program]).run();
    ours(exec("no-such-program"), 127, "no-such-program");
    ours(exec("/no/such/program"), 127, "/no/such/program");
    ours(exec("/etc/passwd"), 126, "/etc/passwd");
    ours(exec("/tmp"), 126, "/tmp");
    // The file is executable by its mode, but is not a program.
    let _ = sandbox.sh("printf 'not a program' > /tmp/odd; chmod +x /tmp/odd").succeeds();
    ours(exec("/tmp/odd"), 126, "/tmp/odd");

    // A command that ignores SIGTERM ends at its timeout, and its children with it. (`run` has the case of one that
    // does not ignore it.)
    let stubborn = "trap '' TERM; sleep 601 & sleep 602";
    let _ = sandbox.exec(["--timeout", "1s", "--", "sh", "-c", stubborn]).run().exits(124);
    let _ = sandbox.sh("! pgrep -f 'sleep 60[12]'").succeeds();
    let _ = sandbox.exec(["--timeout", "1m", "--", "sh", "-c", "exit 3"]).run().exits(3);

    sandbox.remove();
    home.assert_nothing_left();
}

fn environment(run: &Finished) -> BTreeMap<String, String> {
    let out = run.out();
    let entries = out.split_terminator('\0').map(|entry| entry.split_once('=').expect("KEY=VALUE"));
    entries.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

#[test]
fn commands_get_the_requested_environment_directory_and_user() {
    let Some(home) = Home::with_kvm() else { return };
    let created = home.cli(["create", "-m", SMALL, "-e", "FROM_CREATE=1", "-e", "BOTH=create"]);
    // The guest must not receive variables of the CLI's environment.
    let made = created.env("HOST_SECRET", "hunter2").env("LANG", "xx_XX").run().succeeds();
    let sandbox = Sandbox::printed(&home, &made);

    let odd = "a b\"c'd\\e\nf=g\u{fc}";
    let run = sandbox.exec(["-e", "BOTH=exec", "-e", &format!("ODD={odd}"), "-e", "EMPTY=", "--", "env", "-0"]);
    let seen = environment(&run.env("HOST_SECRET", "hunter2").run().succeeds());
    let expected = [
        ("BOTH", "exec"),
        ("EMPTY", ""),
        ("FROM_CREATE", "1"),
        ("HOME", "/root"),
        ("LANG", "C.UTF-8"),
        ("LOGNAME", "root"),
        ("ODD", odd),
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("SHELL", "/bin/sh"),
        ("USER", "root"),
    ];
    let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    assert_eq!(seen, expected);

    let run = sandbox.exec(["-e", "A=1", "-w", "/tmp", "--", "sh", "-c", "echo $A; pwd"]).run().succeeds();
    assert_eq!(run.out(), "1\n/tmp\n");
    assert_eq!(sandbox.sh("pwd; id -u; id -g").succeeds().out(), "/root\n0\n0\n");

    let who = "id -u; id -g; id -un; pwd; echo $HOME $USER; touch ~/mine; touch /etc/theirs 2>&1";
    let run = sandbox.exec(["-u", "user", "--", "sh", "-c", who]).run().exits(1);
    let out = run.out();
    assert!(out.starts_with("1000\n1000\nuser\n/home/user\n/home/user user\n"), "{}", run.transcript());
    assert!(out.contains("Permission denied"), "{}", run.transcript());
    for user in ["1000", "user:user"] {
        let run = sandbox.exec(["-u", user, "--", "sh", "-c", "id -u; id -g"]).run().succeeds();
        assert_eq!(run.out(), "1000\n1000\n", "-u {user}");
    }
    let run = sandbox.exec(["-u", "4321:1234", "--", "sh", "-c", "id -u; id -g"]).run().succeeds();
    assert_eq!(run.out(), "4321\n1234\n", "IDs need no entry in /etc/passwd");

    // PATH of the request's environment finds the user's shell script.
    let _ = sandbox
        .sh("mkdir /opt/bin; printf '#!/bin/sh\\necho tool $1' > /opt/bin/tool; chmod +x /opt/bin/tool")
        .succeeds();
    let run = sandbox.exec(["-e", "PATH=/opt/bin:/usr/bin:/bin", "--", "tool", "5"]).run().succeeds();
    assert_eq!(run.out(), "tool 5\n");

    // A sandbox has a name and an ID, and commands accept both.
    let failed = |arguments: &[&str], hint: &str| {
        let _ = sandbox.exec(arguments).run().fails_with(&[hint]);
    };
    failed(&["-w", "/no/where", "--", "true"], "/no/where");
    failed(&["-w", "/etc/passwd", "--", "true"], "/etc/passwd");
    failed(&["-u", "nobody-here", "--", "true"], "nobody-here");
    failed(&["-e", "=x", "--", "true"], "=x");
}

#[test]
fn streams() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL]);

    let run = sandbox.sh("echo one; echo two >&2; echo three; echo four >&2").succeeds();
    assert_eq!((run.out().as_str(), run.err().as_str()), ("one\nthree\n", "two\nfour\n"));

    // No byte is interpreted as text, in either direction.
    let every_byte: Vec<u8> = (0..=u8::MAX).cycle().take(100_000).collect();
    let run = sandbox.exec(["-i", "--", "sh", "-c", "tee /dev/stderr"]).input(every_byte.clone()).run().succeeds();
    assert!(run.stdout == every_byte && run.stderr == every_byte, "{}", run.transcript());

    // Without -i the command has no input, even if the CLI's stdin has some.
    let run = sandbox.exec(["--", "cat"]).input("not for you").run().succeeds();
    assert_eq!(run.out(), "");
    let run = sandbox.exec(["--", "readlink", "/proc/self/fd/0"]).run().succeeds();
    assert_eq!(run.out(), "/dev/null\n");

    // The end of input reaches the command while its output continues (half-close).
    let mut run =
        sandbox.exec(["-i", "--", "sh", "-c", "cat; echo end of input; sleep 1; echo still here"]).open_stdin().spawn();
    run.write(b"first\n");
    run.wait_for_stdout("first\n");
    run.write(b"second\n");
    run.wait_for_stdout("second\n");
    assert!(!run.has_ended());
    run.close_stdin();
    let run = run.finish().succeeds();
    assert_eq!(run.out(), "first\nsecond\nend of input\nstill here\n");

    // The CLI does not wait for a command that reads no input.
    let run = sandbox.exec(["-i", "--", "true"]).input(vec![b'x'; 4 << 20]).run().succeeds();
    assert!(run.stdout.is_empty());
    // A command whose output is not read does not delay another, and ends with its CLI.
    let stalled = sandbox.exec(["--", "cat", "/dev/zero"]).spawn_unread();
    assert_eq!(sandbox.sh("echo through").succeeds().out(), "through\n");
    drop(stalled);
    let gone = eventually(Duration::from_secs(60), || (sandbox.sh("pgrep -x cat").code() == Some(1)).then_some(()));
    assert!(gone.is_some(), "the command of a killed CLI still runs");
    let run = sandbox.exec(["-i", "--", "head", "-c", "10"]).input(vec![b'x'; 4 << 20]).run().succeeds();
    assert_eq!(run.out(), "xxxxxxxxxx");
    // Nor does it wait when the command ends while the CLI's stdin stays open.
    let mut run = sandbox.exec(["-i", "--", "sh", "-c", "echo done"]).open_stdin().spawn();
    run.wait_for_stdout("done\n");
    let ended = eventually(Duration::from_secs(60), || run.has_ended().then_some(()));
    assert!(ended.is_some(), "exec waits for input although its command has ended");
    let _ = run.finish().succeeds();

    // A background process does not keep exec waiting, and all output written before the end
    // arrives.
    let run = sandbox.sh("sleep 600 & echo started").succeeds();
    assert_eq!(run.out(), "started\n");
    assert!(run.elapsed < Duration::from_secs(60) * patience(), "{}", run.transcript());
    // PID 1 reaps orphans.
    let _ = sandbox.sh("(sleep 0.1 &) ; (sh -c 'kill -9 $$' &) ; sleep 0.5").succeeds();
    let run = sandbox.sh("ps -eo stat,comm | grep ^Z").exits(1);
    assert_eq!(run.out(), "", "zombies");
}
