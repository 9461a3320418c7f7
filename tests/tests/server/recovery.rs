//! A server that is killed or restarted loses no sandbox, keeps their expiry, and leaves no partial
//! state.

use sandboxvm_tests::{
    home::{Home, eventually},
    server::{Server, small_config, try_request},
};
use serde_json::{Value, json};
use std::{thread, time::Duration};

fn id(created: &Value) -> String {
    created["sandboxID"].as_str().expect("a sandbox has an ID").to_owned()
}

#[test]
fn a_server_killed_under_load_finds_its_sandboxes_again_and_ends_them_on_time() {
    let Some(home) = Home::with_kvm() else { return };
    let server = Server::start(&home, &small_config());
    let key = server.key().to_owned();
    let long = server.create(&json!({ "templateID": "base", "timeout": 3000, "metadata": { "a": "1" } }));
    let paused = id(&server.create(&json!({ "templateID": "base", "timeout": 3000 })));
    let short = id(&server.create(&json!({ "templateID": "base", "timeout": 3000 })));
    let _ = home.cli(["exec", &paused, "--", "sh", "-c", "echo kept > /root/f"]).run().succeeds();
    let _ = server.ask("POST", &format!("/sandboxes/{paused}/pause"), None).expect(204);
    let _ = server.ask("POST", &format!("/sandboxes/{short}/timeout"), Some(&json!({ "timeout": 2 }))).expect(204);
    // The server is killed while clients create and fork other sandboxes.
    let answered: Vec<String> = thread::scope(|scope| {
        let made: Vec<_> = (0..4)
            .map(|_| {
                let server = &server;
                scope.spawn(move || {
                    let body = json!({ "templateID": "base", "timeout": 3000 }).to_string().into_bytes();
                    let url = format!("{}/v2/sandboxes", server.api);
                    let answer =
                        try_request("POST", &url, &[("x-api-key", server.key())], Some(("application/json", body)));
                    answer.ok().filter(|answer| answer.status == 201).map(|answer| id(&answer.json()))
                })
            })
            .collect();
        thread::sleep(Duration::from_millis(120));
        sandboxvm_tests::host::processes::kill(server.pid());
        made.into_iter().filter_map(|thread| thread.join().ok().flatten()).collect()
    });
    server.kill();
    thread::sleep(Duration::from_secs(2));

    let server = Server::start(&home, &small_config());
    assert!(server.key.is_none(), "the keys stay");
    let ask = |method: &str, path: &str, body: Option<&Value>| server.ask_as(&key, method, path, body);
    let info = ask("GET", &format!("/sandboxes/{}", id(&long)), None).expect(200).json();
    assert_eq!((&info["state"], &info["metadata"]["a"]), (&json!("running"), &json!("1")), "{info}");
    assert_eq!(info["envdAccessToken"], long["envdAccessToken"], "tokens outlive the server");
    assert_eq!(home.cli(["exec", &id(&long), "--", "echo", "on"]).run().succeeds().out(), "on\n");
    // This sandbox expired while no server was running.
    let gone = || (ask("GET", &format!("/sandboxes/{short}"), None).status == 404).then_some(());
    assert!(eventually(Duration::from_secs(20), gone).is_some());
    let _ = ask("POST", &format!("/v2/sandboxes/{paused}/connect"), Some(&json!({ "timeout": 3000 }))).expect(201);
    assert_eq!(home.cli(["exec", &paused, "--", "cat", "/root/f"]).run().succeeds().out(), "kept\n");

    // The server still has every sandbox that a client knows of, and the owner can find every
    // sandbox that exists.
    let listed = ask("GET", "/v2/sandboxes", None).expect(200).json();
    let mut known: Vec<String> = listed.as_array().expect("a list").iter().map(id).collect();
    for answered in &answered {
        assert!(known.contains(answered), "{answered} was returned to a client and is lost: {known:?}");
    }
    let mut there = home.listed();
    known.sort();
    there.sort();
    assert_eq!(known, there, "{}", server.log());
    for one in &known {
        let _ = ask("DELETE", &format!("/sandboxes/{one}"), None).expect(204);
    }
    server.stop();
    // The kill may have come between the claim of a name and its sandbox; such names are left to `prune`.
    let _ = home.cli(["prune"]).run().succeeds();
    home.assert_nothing_left();
}

#[test]
fn a_home_has_one_server_and_sandboxes_outlive_it() {
    let Some(home) = Home::with_kvm() else { return };
    let server = Server::start(&home, &format!("{}pool = 1\n", small_config()));
    let second = home.cli(["serve", "--api", "127.0.0.1:0", "--sandboxes", "127.0.0.1:0"]).run();
    let _ = second.fails_with(&["another server uses it"]);
    let made = id(&server.create(&json!({ "templateID": "base", "timeout": 3000 })));
    server.stop();
    // Machines that waited in the pool belonged to no client.
    assert_eq!(home.listed(), [made.as_str()]);
    assert_eq!(home.cli(["exec", &made, "--", "echo", "on"]).run().succeeds().out(), "on\n");
    home.cli(["rm", "-f", &made]).run().succeeds();
    // The next server learns from the records, and from the processes that run.
    let server = Server::start(&home, &small_config());
    assert!(server.log().contains("lost: 1"), "{}", server.log());
    server.stop();
    home.assert_nothing_left();
}

/// The state after a loss of power before the record was stored: the snapshot is complete, and the
/// record is the old one.
#[test]
fn a_paused_sandbox_with_an_outdated_record_is_not_lost() {
    let Some(home) = Home::with_kvm() else { return };
    let server = Server::start(&home, &small_config());
    let key = server.key().to_owned();
    let paused = id(&server.create(&json!({ "templateID": "base", "timeout": 3000 })));
    let _ = home.cli(["exec", &paused, "--", "sh", "-c", "echo kept > /root/f"]).run().succeeds();
    let record = home.path().join(format!("server/sandboxes/{paused}.json"));
    let before = std::fs::read(&record).expect("the record exists");
    let _ = server.ask("POST", &format!("/sandboxes/{paused}/pause"), None).expect(204);
    server.kill();
    std::fs::write(&record, before).expect("the record can be written");

    let server = Server::start(&home, &small_config());
    let info = server.ask_as(&key, "GET", &format!("/sandboxes/{paused}"), None).expect(200).json();
    assert_eq!(info["state"], "paused", "{info}");
    let body = json!({ "timeout": 3000 });
    let _ = server.ask_as(&key, "POST", &format!("/v2/sandboxes/{paused}/connect"), Some(&body)).expect(201);
    assert_eq!(home.cli(["exec", &paused, "--", "cat", "/root/f"]).run().succeeds().out(), "kept\n");
    let _ = server.ask_as(&key, "DELETE", &format!("/sandboxes/{paused}"), None).expect(204);
    server.stop();
    home.assert_nothing_left();
}
