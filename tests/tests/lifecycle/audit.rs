//! The audit log records every action on a sandbox, and a change to the log is detected.

use rustix::process::Signal;
use sandboxvm_tests::home::{Home, eventually};
use serde_json::Value;
use std::{collections::HashMap, fs, thread};

/// Returns the events of a sandbox, which may be removed already, as `events --json` prints them.
fn events(home: &Home, of: &str) -> Vec<Value> {
    let listed = home.cli(["events", "--json", of]).run().succeeds();
    listed.out().lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
}

fn names(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["event"].as_str().expect("an event has a name")).collect()
}

/// Asserts that `audit verify` reports one damaged log, with this hint, and lists the intact logs
/// too.
fn assert_damaged(home: &Home, hint: &str) {
    let verified = home.cli(["audit", "verify"]).run().exits(125);
    assert!(verified.err().contains(hint) && verified.out().lines().count() > 1, "{}", verified.transcript());
}

#[test]
fn actions_are_logged_and_tampering_is_detected() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", "128M", "--name", "watched", "-e", "CREATE_SECRET=hunter2hunter2"]);
    let id = sandbox.id.clone();
    let _ = sandbox.exec(["-e", "TOKEN=s3cr3t-t0k3n", "--", "sh", "-c", "exit 3", "s3cr3t-t0k3n"]).run().exits(3);
    let _ = sandbox.exec(["--", "/no/such/program"]).run().exits(127);
    // The commands run at the same time: each has its lines, and all lines form one chain.
    thread::scope(|scope| {
        for n in 0..3 {
            let sandbox = &sandbox;
            scope.spawn(move || drop(sandbox.exec(["--", "true", &format!("parallel-{n}")]).run().succeeds()));
        }
    });
    // The CLI of this command is killed: the start of its process is logged, and the next action
    // follows it.
    let mut killed = sandbox.exec(["--", "sh", "-c", "echo on; sleep 1000"]).spawn();
    killed.wait_for_stdout("on");
    killed.signal(Signal::KILL);
    let _ = killed.finish();
    let _ = home.cli(["pause", "watched"]).run().succeeds();
    let _ = home.cli(["resume", "watched"]).run().succeeds();
    home.snapshot("watched", "kept");
    let forked = home.cli(["fork", "watched"]).run().succeeds();
    let copy = forked.out().trim().to_owned();
    let _ = home.cli(["rm", "-f", &copy]).run().succeeds();
    sandbox.remove();
    home.remove_snapshots();

    let log = events(&home, &id);
    let by_exec: HashMap<u64, &Value> = log.iter().filter_map(|event| Some((event["exec"].as_u64()?, event))).collect();
    let exec = |argument: &str| {
        let asked =
            log.iter().find(|event| event["argv"].as_array().is_some_and(|argv| argv.contains(&argument.into())));
        asked.unwrap_or_else(|| panic!("no exec of {argument}: {log:#?}"))
    };
    let ended = |asked: &Value| {
        let pid = &by_exec[&asked["seq"].as_u64().expect("a number")]["pid"];
        log.iter()
            .find(|event| event["event"] == "ended" && event["pid"] == *pid)
            .expect("the end of the process is logged")
    };
    assert_eq!(log[0]["event"], "created");
    assert_eq!(log[0]["name"], "watched");
    assert_eq!(log[0]["env"], Value::from(vec!["CREATE_SECRET"]));
    let masked = exec("***");
    assert_eq!(masked["env"].as_array().expect("names").len(), 2, "{masked}");
    assert_eq!(ended(masked)["exit_code"], 3);
    assert_eq!(by_exec[&exec("/no/such/program")["seq"].as_u64().expect("a number")]["event"], "not_started");
    for n in 0..3 {
        assert_eq!(ended(exec(&format!("parallel-{n}")))["exit_code"], 0);
    }
    let ends = names(&log);
    assert_eq!(ends[ends.len() - 6..], ["paused", "resumed", "snapshot_created", "forked", "machine_ended", "removed"]);
    assert_eq!(log[log.len() - 3]["copies"], Value::from(vec![copy.as_str()]));
    let uid = u64::from(rustix::process::getuid().as_raw());
    assert!(log.iter().all(|event| event["by"]["uid"] == uid && event["sandbox"] == id.as_str()));
    assert_eq!(names(&events(&home, &copy)), ["created", "machine_ended", "removed"]);
    let all = home.cli(["events", "--json"]).run().succeeds();
    assert!(!all.out().contains("s3cr3t") && !all.out().contains("hunter2"), "{}", all.transcript());
    let shown = home.cli(["events", &id]).run().succeeds();
    assert_eq!(shown.out().lines().count(), log.len());

    let whole = home.cli(["audit", "verify", "--json"]).run().succeeds().json();
    assert!(whole.as_array().expect("a list").iter().all(|verdict| verdict["is_whole"] == true), "{whole}");
    let path = home.path().join("audit").join(format!("{id}.jsonl"));
    let text = fs::read_to_string(&path).expect("the log is there");
    let without_last: String = text.split_inclusive('\n').take(log.len() - 1).collect();
    for (damage, hint) in [(text.replacen("exit 3", "exit 0", 1), "was changed"), (without_last, "from its end")] {
        assert_ne!(damage, text);
        fs::write(&path, damage).expect("the test may change the log");
        assert_damaged(&home, hint);
        let _ = home.cli(["audit", "verify", &copy]).run().succeeds();
    }
    fs::remove_file(&path).expect("the test may change the log");
    assert_damaged(&home, "from its end");
    let _ = home.cli(["events", &id]).run().fails_with(&["no audit log"]);
    home.assert_nothing_left();
}

#[test]
fn unloggable_commands_do_not_run_and_rejected_ones_are_logged() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", "128M", "--name", "demo"]);
    let log = home.path().join("audit").join(format!("{}.jsonl", sandbox.id));
    let kept = home.scratch("kept.jsonl");
    fs::rename(&log, &kept).expect("the test may change the log");
    fs::create_dir(&log).expect("the path is free");
    let refused = sandbox.exec(["--", "touch", "/ran"]).run().fails_with(&["audit log", "directory"]);
    assert!(refused.err().contains(&log.display().to_string()), "{}", refused.transcript());
    let _ = sandbox.exec(["-d", "--", "touch", "/ran"]).run().fails_with(&["audit log"]);
    fs::remove_dir(&log).expect("the directory is empty");
    fs::rename(&kept, &log).expect("the test may change the log");
    assert_eq!(sandbox.sh("ls /ran").exits(2).out(), "");

    // The directory of the logs cannot be written, as on a full file system: nothing new is created
    // either.
    let (audit, aside) = (home.path().join("audit"), home.scratch("audit-aside"));
    fs::rename(&audit, &aside).expect("the test may move the logs");
    std::os::unix::fs::symlink("/proc/self/task", &audit).expect("the path is free");
    for arguments in [vec!["create", "-m", "128M"], vec!["run", "-m", "128M", "--", "true"]] {
        let _ = home.cli(&arguments).run().fails_with(&["audit log"]);
    }
    fs::remove_file(&audit).expect("the test may remove the link");
    fs::rename(&aside, &audit).expect("the test may move the logs");
    assert_eq!(home.listed(), [sandbox.id.as_str()], "a sandbox was created");

    // The manager refuses these: the home has its maximum number of sandboxes.
    let refuse = || home.cli(["create", "-m", "128M"]).env("SANDBOXVM_MAX_SANDBOXES", "1").run();
    let _ = refuse().fails_with(&["at most 1"]);
    let all = home.cli(["events", "--json"]).run().succeeds().out();
    let refused: Vec<Value> = all.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let refused: Vec<&Value> = refused.iter().filter(|event| event["event"] == "not_admitted").collect();
    assert_eq!(refused.len(), 1, "{all}");
    assert!(refused[0]["memory_bytes"] == 128 << 20 && refused[0]["reason"].to_string().contains("at most 1"), "{all}");
    let forked = home.cli(["fork", "demo", "-n", "3"]).env("SANDBOXVM_MAX_SANDBOXES", "1").run();
    let _ = forked.fails_with(&["at most 1"]);
    let last = events(&home, "demo").pop().expect("there are events");
    assert!(last["event"] == "not_forked" && last["copies"] == 3, "{last}");
    assert!(last["reason"].to_string().contains("at most 1"), "{last}");

    sandbox.remove();

    let _ = home.cli(["audit", "verify"]).run().succeeds();
    home.assert_nothing_left();
}

/// Returns the events of a sandbox that say that its programs reached a limit.
fn limits_hit(home: &Home, of: &str) -> Vec<Value> {
    events(home, of).into_iter().filter(|event| event["event"] == "limits_hit").collect()
}

#[test]
fn limits_that_programs_meet_and_ends_by_time_are_logged() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", "128M", "--name", "demo", "--pids", "12"]);
    // Limits inside the guest are logged the first time only. Commands that succeed cause no check
    // of them.
    let hits = || limits_hit(&home, &sandbox.id);
    assert_eq!(hits(), Vec::<Value>::new());
    let many = "while (defined($pid = fork)) { if (!$pid) { sleep 600; exit } } kill 9, -getpgrp(0)";
    let _ = sandbox.exec(["--", "perl", "-e", many]).run().exits(137);
    let all = hits();
    assert!(all.len() == 1 && all[0]["processes_refused"].as_u64() > Some(0), "{all:?}");
    let _ = sandbox.sh("exit 3").exits(3);
    assert_eq!(hits().len(), 1);
    // 285 is fallocate(2).
    let full = "open F, '>', '/big'; for ($at = 0, $step = 1 << 30; $step >= 4096;) \
                { if (syscall(285, fileno F, 0, $at, $step) == 0) { $at += $step } else { $step >>= 1 } } exit 28";
    let _ = sandbox.exec(["--", "perl", "-e", full]).run().exits(28);
    let all = hits();
    assert!(all.len() == 2 && all[1]["disk_is_full"] == true, "{all:?}");
    let _ = sandbox.exec(["--timeout", "1s", "--", "sleep", "600"]).run().exits(124);
    assert!(events(&home, &sandbox.id).iter().any(|event| event["event"] == "ended" && event["timed_out"] == true));
    sandbox.remove();

    // A sandbox whose time to live is over.
    let brief = home.create(&["-m", "128M", "--ttl", "1s=rm"]);
    let gone = eventually(std::time::Duration::from_secs(120), || (!brief.directory().exists()).then_some(()));
    assert!(gone.is_some(), "the sandbox is still there after its time to live");
    // An event is logged after the action.
    let logged = || Some(events(&home, &brief.id)).filter(|log| names(log).contains(&"removed"));
    let log = eventually(std::time::Duration::from_secs(20), logged).unwrap_or_else(|| events(&home, &brief.id));
    // The end of the machine is logged by the process that finds it ended. Here that is the one
    // that removes it.
    assert_eq!(names(&log), ["created", "time_up", "stopped", "machine_ended", "removed"], "{log:#?}");
    assert_eq!(log[1]["then"], "rm");
    home.assert_nothing_left();
}

#[test]
#[ignore = "soak: a guest whose kernel is interpreted takes many minutes to run out of memory"]
fn a_program_that_is_killed_for_memory_is_logged() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", "128M"]);
    let greedy = "x = []\nwhile 1: x.append(b'7' * (4 << 20))";
    let patient = std::time::Duration::from_secs(1200);
    let _ = sandbox.exec(["--", "python3", "-c", greedy]).deadline(patient).run().exits(137);
    let all = limits_hit(&home, &sandbox.id);
    assert!(all.len() == 1 && all[0]["killed_for_memory"] == 1, "{all:?}");
    sandbox.remove();
    home.assert_nothing_left();
}
