//! A sandbox from `create` to `rm`, and the commands that describe and end it.

use sandboxvm_tests::home::{Home, SMALL};

#[test]
fn a_sandbox_works_from_create_to_rm() {
    let Some(home) = Home::with_kvm() else { return };
    let empty = home.cli(["ls", "--json"]).run().succeeds();
    assert_eq!(empty.json(), serde_json::json!([]));

    let sandbox = home.create(&["--cold", "--name", "demo", "-m", "256M", "-c", "2"]);
    let run = home.cli(["exec", "demo", "-e", "A=1", "-w", "/tmp", "--", "sh", "-c", "echo $A; pwd"]).run().succeeds();
    assert_eq!(run.out(), "1\n/tmp\n");
    let run = sandbox.sh("nproc; grep MemTotal /proc/meminfo").succeeds();
    let out = run.out();
    let mut words = out.split_whitespace();
    assert_eq!(words.next(), Some("2"), "{out}");
    let total: u64 = words.nth(1).and_then(|kib| kib.parse().ok()).expect("MemTotal in KiB");
    assert!((200 * 1024..256 * 1024).contains(&total), "{total} KiB of 256 MiB");

    // The listing as a table and as JSON.
    let table = home.cli(["ls"]).run().succeeds().out();
    let row = table.lines().find(|line| line.contains(&sandbox.id)).unwrap_or_else(|| panic!("not listed: {table}"));
    assert!(row.contains("demo") && row.contains("running"), "{table}");
    let row = home.row(&sandbox.id);
    assert_eq!(row["name"], "demo", "{row}");
    assert_eq!(row["state"], "running", "{row}");
    assert_eq!(row["vcpus"], 2, "{row}");
    assert_eq!(row["memory_bytes"], 256 << 20, "{row}");
    assert!(row["created_at"].as_str().is_some_and(|time| time.ends_with('Z')), "{row}");

    let inspected = home.cli(["inspect", "demo"]).run().succeeds().json();
    let inspected = inspected.as_array().map_or(&inspected, |all| &all[0]);
    assert_eq!(inspected["id"], sandbox.id.as_str(), "{inspected}");
    assert_eq!(inspected["state"], "running", "{inspected}");

    let stats = home.cli(["stats", "--json", "demo"]).run().succeeds().json();
    let stats: sandboxvm_protocol::vmm::VmStats = serde_json::from_value(stats).expect("VmStats");
    assert_eq!(stats.vcpus.len(), 2);
    assert!(stats.first_run_ns.is_some_and(|elapsed| elapsed > 0));

    // Two sandboxes cannot have the same name.
    let taken = home.cli(["create", "-m", SMALL, "--name", "demo"]).run().fails_with(&["demo", "already used"]);
    assert!(taken.err().contains(&sandbox.id), "{}", taken.transcript());
    assert_eq!(home.listed(), [sandbox.id.as_str()]);

    // Files stay as long as the sandbox runs.
    let _ = sandbox.sh("echo kept > /root/file").succeeds();
    assert_eq!(sandbox.sh("cat /root/file").succeeds().out(), "kept\n");

    // Commands of several clients on two vCPUs do not mix their streams.
    let running: Vec<_> = (0..3u8)
        .map(|shell| {
            let script = "read mark; i=0; while [ $i -lt 20 ]; do echo $mark $i; echo $mark $i >&2; i=$((i+1)); done; exit $mark";
            home.cli(["exec", "demo", "-i", "--", "sh", "-c", script]).input(format!("{shell}\n")).spawn()
        })
        .collect();
    for (shell, run) in running.into_iter().enumerate() {
        let run = run.finish().exits(i32::try_from(shell).expect("few"));
        let expected: String = (0..20).map(|line| format!("{shell} {line}\n")).collect();
        assert!(run.out() == expected && run.err() == expected, "{}", run.transcript());
    }

    // `rm` does not remove a running sandbox without -f.
    let refused = home.cli(["rm", "demo"]).run().fails_with(&["running", "-f"]);
    assert!(refused.err().contains("demo") || refused.err().contains(&sandbox.id), "{}", refused.transcript());
    let _ = sandbox.sh("true").succeeds();

    let _ = home.cli(["rm", "-f", "demo"]).run().succeeds();
    assert!(home.listed().is_empty());
    for command in [&["exec", "demo", "--", "true"][..], &["inspect", "demo"], &["logs", "demo"], &["rm", "-f", "demo"]]
    {
        let _ = home.cli(command).run().fails_with(&["demo"]);
    }
    home.assert_nothing_left();
}

/// Two sandboxes share the image and nothing else.
#[test]
fn two_sandboxes_do_not_see_each_other() {
    let Some(home) = Home::with_kvm() else { return };
    let (one, two) = (home.create(&["-m", SMALL, "--name", "one"]), home.create(&["-m", SMALL, "--name", "two"]));
    for (sandbox, mark) in [(&one, "first"), (&two, "second")] {
        let script =
            format!("echo {mark} > /root/mark; rm -rf /usr/share/base-files; echo {mark} >> /etc/hostname.test");
        let _ = sandbox.sh(&script).succeeds();
    }
    for (sandbox, mark) in [(&one, "first"), (&two, "second")] {
        let run = sandbox.sh("cat /root/mark /etc/hostname.test; hostname").succeeds();
        assert!(run.out().starts_with(&format!("{mark}\n{mark}\n")), "{}", run.transcript());
    }
    let random = |sandbox: &sandboxvm_tests::home::Sandbox<'_>| sandbox.sh("head -c 16 /dev/urandom").succeeds().stdout;
    assert_ne!(random(&one), random(&two));
    // The removal of one sandbox does not affect the other. A removed name can be used again.
    one.remove();
    assert_eq!(two.sh("cat /root/mark").succeeds().out(), "second\n");
    assert_eq!(home.listed(), [two.id.as_str()]);
    // Its name is free again.
    let again = home.create(&["-m", SMALL, "--name", "one"]);
    let run = again.sh("ls -A /root; test -e /usr/share/base-files/profile && echo whole").succeeds();
    assert!(!run.out().contains("mark") && run.out().ends_with("whole\n"), "{}", run.transcript());
    let _ = home.cli(["rm", "-f", "one", "two"]).run().succeeds();
    home.assert_nothing_left();
}

#[test]
fn doctor_describes_this_host() {
    let Some(home) = Home::with_kvm() else { return };
    let text = home.cli(["doctor"]).run().succeeds();
    assert!(text.out().contains("/dev/kvm"), "{}", text.transcript());
    let report = home.cli(["doctor", "--json"]).run().succeeds().json();
    let shown = report.to_string();
    let mode = report["host_mode"].as_str().unwrap_or_else(|| panic!("no host mode: {shown}"));
    assert!(["vmx", "svm", "pvm"].contains(&mode), "{shown}");
    let host_is_pvm = std::path::Path::new("/sys/module/kvm_pvm").exists();
    assert_eq!(mode == "pvm", host_is_pvm, "{shown}");
    let checks = report["checks"].as_array().unwrap_or_else(|| panic!("no checks: {shown}"));
    assert!(!checks.is_empty() && checks.iter().all(|check| check["verdict"] != "failed"), "{shown}");
    assert_eq!(report["usable"], true, "{shown}");
}

/// Without a bundle, `doctor` names the missing files and says how to get them.
#[test]
fn doctor_says_what_is_missing_without_a_bundle() {
    let Some(home) = Home::with_kvm() else { return };
    let empty = home.scratch("empty");
    std::fs::create_dir(&empty).expect("a new directory");
    let report = home.cli(["doctor", "--json"]).env("SANDBOXVM_BUNDLE", &empty).run().exits(125).json();
    let shown = report.to_string();
    assert!(shown.contains("vmlinux") && shown.contains("base.erofs"), "{shown}");
    let text = home.cli(["doctor"]).env("SANDBOXVM_BUNDLE", &empty).run().exits(125);
    assert!(text.out().contains("quickstart") || text.err().contains("quickstart"), "{}", text.transcript());
}

#[test]
fn stop_says_when_it_had_to_kill_a_sandbox() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL]);
    let _ = home.cli(["pause", &sandbox.id]).run().succeeds();
    let stopped = home.cli(["stop", &sandbox.id]).run().succeeds();
    assert!(stopped.err().contains("was killed: it was paused"), "{}", stopped.transcript());
    let events = home.cli(["events", "--json", &sandbox.id]).run().succeeds().out();
    assert!(events.contains(r#""event":"stopped_by_force","because":"it was paused""#), "{events}");
    assert!(!events.contains(r#""event":"stopped""#), "{events}");
    let _ = home.cli(["rm", &sandbox.id]).run().succeeds();
    // A sandbox that can shut down is stopped gracefully, and its processes can still write output.
    let sandbox = home.create(&["-m", SMALL]);
    let script = "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 1; done";
    let mut attended = sandbox.exec(["--", "sh", "-c", script]).spawn();
    attended.wait_for_stdout("up");
    let stopped = home.cli(["stop", &sandbox.id]).run().succeeds();
    assert_eq!(stopped.err(), "", "{}", stopped.transcript());
    let ended = attended.finish().exits(3);
    assert!(ended.out().ends_with("bye\n"), "{}", ended.transcript());
    let _ = home.cli(["rm", &sandbox.id]).run().succeeds();
    home.assert_nothing_left();
}
