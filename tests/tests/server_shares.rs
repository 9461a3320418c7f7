//! What one key takes of the machine: its share, while other keys keep theirs.

use sandboxvm_tests::{
    home::{Home, eventually},
    server::{Answer, Server, small_config},
};
use serde_json::{Value, json};
use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

fn id(created: &Value) -> String {
    created["sandboxID"].as_str().expect("a sandbox has an ID").to_owned()
}

/// Stops PID 1, which is the agent, for good, and says so on the console.
const FREEZE: &str = "cd /sys/fs/cgroup && mkdir z && echo 1 >z/cgroup.procs && echo 1 >z/cgroup.freeze && \
    until grep -q 'frozen 1' z/cgroup.events; do :; done; echo AGENT-IS-FROZEN >/dev/kmsg";

#[test]
fn a_key_whose_guests_never_answer_does_not_keep_other_keys_from_starting() {
    let Some(home) = Home::with_kvm() else { return };
    let server = Server::start(&home, &small_config());
    let other = home.cli(["key", "create", "other"]).run().succeeds().out();
    let other = other.trim();
    let frozen = id(&server.create(&json!({ "templateID": "base", "timeout": 3000 })));
    let paused = id(&server.create(&json!({ "templateID": "base", "timeout": 3000 })));
    for one in [&frozen, &paused] {
        let freezing = home.cli(["exec", one, "--", "sh", "-c", FREEZE]).spawn();
        let says_so = || home.cli(["logs", one]).run().succeeds().out().contains("AGENT-IS-FROZEN").then_some(());
        assert!(eventually(Duration::from_secs(60), says_so).is_some(), "{}", home.cli(["logs", one]).run().out());
        drop(freezing);
    }
    let _ = server.ask("POST", &format!("/sandboxes/{paused}/pause"), None).expect(204);
    let snapshot = server.ask("POST", &format!("/sandboxes/{frozen}/snapshots"), None).expect(201).json();
    let snapshot = snapshot["snapshotID"].as_str().expect("an ID").to_owned();

    let answered = AtomicUsize::new(0);
    let counted = |answer: Answer| {
        answered.fetch_add(1, Ordering::Relaxed);
        answer
    };
    let body = json!({ "templateID": snapshot, "timeout": 3000 });
    let create = || counted(server.ask("POST", "/v2/sandboxes", Some(&body)));
    let resume = || counted(server.ask("POST", &format!("/v2/sandboxes/{paused}/connect"), None));
    thread::scope(|scope| {
        let creating: Vec<_> = (0..4).map(|_| scope.spawn(create)).collect();
        let resuming = scope.spawn(resume);
        // All of them wait for their guests, or for a permit that one of those holds.
        let made = || (home.listed().len() >= 4).then_some(());
        assert!(eventually(Duration::from_secs(60), made).is_some(), "{:?}", home.listed());
        let theirs = server.ask_as(other, "POST", "/v2/sandboxes", Some(&json!({ "templateID": "base" }))).expect(201);
        assert_eq!(answered.load(Ordering::Relaxed), 0, "the other key's start waited for the first key's");
        for thread in creating {
            let answer = thread.join().expect("an answer").expect(500);
            assert!(answer.body.contains("agent does not answer within"), "{answer:?}");
        }
        let answer = resuming.join().expect("an answer").expect(500);
        assert!(answer.body.contains("agent does not answer within"), "{answer:?}");
        let _ = server.ask_as(other, "DELETE", &format!("/sandboxes/{}", id(&theirs.json())), None).expect(204);
    });

    // What did not come up is gone, and what did not come back still rests on disk.
    let info = server.ask("GET", &format!("/sandboxes/{paused}"), None).expect(200).json();
    assert_eq!(info["state"], "paused");
    assert_eq!(home.row(&paused)["state"], "exited");
    let mut listed = home.listed();
    listed.sort();
    let mut expected = vec![frozen.clone(), paused.clone()];
    expected.sort();
    assert_eq!(listed, expected);
    for one in [&frozen, &paused] {
        let _ = server.ask("DELETE", &format!("/sandboxes/{one}"), None).expect(204);
    }
    let _ = server.ask("DELETE", &format!("/templates/{snapshot}"), None).expect(204);
    server.stop();
    home.assert_nothing_left();
}
