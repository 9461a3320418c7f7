//! What was done with a sandbox can be read afterwards, and cannot be changed unnoticed.

use rustix::process::Signal;
use sandboxvm_tests::home::Home;
use serde_json::Value;
use std::{collections::HashMap, fs, thread};

/// Events of a sandbox that may be gone, as `events --json` has them.
fn events(home: &Home, of: &str) -> Vec<Value> {
    let listed = home.cli(["events", "--json", of]).run().succeeds();
    listed.out().lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
}

fn names(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["event"].as_str().expect("an event has a name")).collect()
}

/// Other logs are told to be whole beside it.
fn assert_damaged(home: &Home, hint: &str) {
    let verified = home.cli(["audit", "verify"]).run().exits(125);
    assert!(verified.err().contains(hint) && verified.out().lines().count() > 1, "{}", verified.transcript());
}

#[test]
fn what_was_done_is_logged_and_the_log_cannot_be_changed_unnoticed() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", "128M", "--name", "watched", "-e", "CREATE_SECRET=hunter2hunter2"]);
    let id = sandbox.id.clone();
    let _ = sandbox.exec(["-e", "TOKEN=s3cr3t-t0k3n", "--", "sh", "-c", "exit 3", "s3cr3t-t0k3n"]).run().exits(3);
    let _ = sandbox.exec(["--", "/no/such/program"]).run().exits(127);
    // At the same time: every line is there, and they are one chain.
    thread::scope(|scope| {
        for n in 0..3 {
            let sandbox = &sandbox;
            scope.spawn(move || drop(sandbox.exec(["--", "true", &format!("parallel-{n}")]).run().succeeds()));
        }
    });
    // Its command is killed: what it began is in the log, and the next line follows.
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
        log.iter().find(|event| event["event"] == "ended" && event["pid"] == *pid).expect("its end is logged")
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
        fs::write(&path, damage).expect("the log is ours");
        assert_damaged(&home, hint);
        let _ = home.cli(["audit", "verify", &copy]).run().succeeds();
    }
    fs::remove_file(&path).expect("the log is ours");
    assert_damaged(&home, "from its end");
    let _ = home.cli(["events", &id]).run().fails_with(&["no audit log"]);
    home.assert_nothing_left();
}
