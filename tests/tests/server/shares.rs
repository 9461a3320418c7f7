//! The share of the host that one key may use, while other keys keep theirs.

use sandboxvm_tests::{
    home::{Home, eventually},
    server::{Answer, Server, attack::freeze, small_config},
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

#[test]
fn a_key_whose_guests_never_respond_does_not_keep_other_keys_from_starting() {
    let Some(home) = Home::with_kvm() else { return };
    let server = Server::start(&home, &small_config());
    let other = home.cli(["key", "create", "other"]).run().succeeds().out();
    let other = other.trim();
    let frozen = id(&server.create(&json!({ "templateID": "base", "timeout": 3000 })));
    let paused = id(&server.create(&json!({ "templateID": "base", "timeout": 3000 })));
    freeze(&home, &[&frozen, &paused]);
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
        // All requests wait for their guests, or for a permit that such a request holds.
        let made = || (home.listed().len() >= 4).then_some(());
        assert!(eventually(Duration::from_secs(60), made).is_some(), "{:?}", home.listed());
        let theirs = server.ask_as(other, "POST", "/v2/sandboxes", Some(&json!({ "templateID": "base" }))).expect(201);
        assert_eq!(answered.load(Ordering::Relaxed), 0, "the other key's start waited for the first key's");
        for thread in creating {
            let answer = thread.join().expect("an answer").expect(500);
            assert!(answer.body.contains("agent did not respond within"), "{answer:?}");
        }
        let answer = resuming.join().expect("an answer").expect(500);
        assert!(answer.body.contains("agent did not respond within"), "{answer:?}");
        let _ = server.ask_as(other, "DELETE", &format!("/sandboxes/{}", id(&theirs.json())), None).expect(204);
    });

    // A sandbox that did not start is removed, and one that did not resume is still on disk.
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

#[test]
fn a_key_has_a_share_of_the_disk_and_a_snapshot_respects_the_floor_of_the_host() {
    let Some(home) = Home::with_kvm() else { return };
    let config = format!("snapshots_per_key = 2\nrequests_per_second = 1000\n{}", small_config());
    let server = Server::start(&home, &config);
    let new = json!({ "templateID": "base", "timeout": 3000 });
    let sandbox = id(&server.create(&new));
    let snapshot = |key: &str, id: &str| server.ask_as(key, "POST", &format!("/sandboxes/{id}/snapshots"), None);
    // The limit also holds for requests at the same time.
    let answers: Vec<Answer> = thread::scope(|scope| {
        let asking: Vec<_> = (0..3).map(|_| scope.spawn(|| snapshot(server.key(), &sandbox))).collect();
        asking.into_iter().map(|thread| thread.join().expect("an answer")).collect()
    });
    let (made, refused): (Vec<&Answer>, Vec<&Answer>) = answers.iter().partition(|answer| answer.status == 201);
    assert_eq!((made.len(), refused.len()), (2, 1), "{answers:?}");
    assert!(refused[0].status == 429 && refused[0].body.contains("limit of 2 snapshots"), "{refused:?}");
    assert!(refused[0].header("retry-after").is_some());
    // The next server counts the snapshots of this one.
    let key = server.key().to_owned();
    server.stop();
    let server = Server::start(&home, &config);
    let snapshot = |key: &str, id: &str| server.ask_as(key, "POST", &format!("/sandboxes/{id}/snapshots"), None);
    let _ = snapshot(&key, &sandbox).expect(429);
    let listed = server.ask_as(&key, "GET", "/snapshots", None).expect(200).json();
    assert_eq!(listed.as_array().map(Vec::len), Some(2), "{listed}");

    // This key may store 64 MiB, which is less than the memory of its sandbox.
    let small = home.cli(["key", "create", "small", "--storage", "64", "--audit", "0"]).run().succeeds().out();
    let none = server.ask_as(small.trim(), "POST", "/v2/sandboxes", Some(&new)).expect(429);
    assert!(none.body.contains("audit logs"), "{none:?}");
    let small = home.cli(["key", "create", "small", "--storage", "64"]).run().succeeds().out();
    let small = small.trim();
    let theirs = id(&server.ask_as(small, "POST", "/v2/sandboxes", Some(&new)).expect(201).json());
    for path in ["snapshots", "pause", "fork"] {
        let answer = server.ask_as(small, "POST", &format!("/sandboxes/{theirs}/{path}"), None).expect(429);
        assert!(answer.body.contains("the limit is 64 MiB"), "{path}: {answer:?}");
    }
    assert_eq!(home.row(&theirs)["state"], "running");
    // The sandbox can be removed anyway.
    let _ = server.ask_as(small, "DELETE", &format!("/sandboxes/{theirs}"), None).expect(204);
    server.stop();

    // The floor of the host holds for snapshots and pauses as it does for new sandboxes.
    let mut floor = home.cli(["snapshot", "create", &sandbox, "above"]).env("SANDBOXVM_MIN_FREE_DISK", "900T");
    let _ = floor.run().fails_with(&["SANDBOXVM_MIN_FREE_DISK"]);
    floor = home.cli(["ls", "--json"]);
    assert!(floor.run().succeeds().out().contains("running"));
    home.cli(["rm", "-f", &sandbox]).run().succeeds();
    let server = Server::start(&home, &config);
    let snapshots = server.ask_as(&key, "GET", "/snapshots", None).expect(200).json();
    for one in snapshots.as_array().expect("a list") {
        let path = format!("/templates/{}", one["snapshotID"].as_str().expect("an ID"));
        let _ = server.ask_as(&key, "DELETE", &path, None).expect(204);
    }
    server.stop();
    home.assert_nothing_left();
}
