//! What a front asks in the name of a key.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operations_reach_nothing_of_another_key_and_no_path() {
    let drill = drill();
    let (front, _served) = drill.front();
    let before = (drill.files(), drill.victims_record());
    let long = "x".repeat(100_000);
    let names = ["../../etc/passwd", "/etc/passwd", "base\0", "..", "", "base/../..", "e2b-\n", &long];
    let ids = [VICTIM, "../victimvictim", "victimvictim\0", "/", "", "VICTIMVICTIM", "victim", &long];
    for name in names {
        for id in ids {
            for operation in operations(id, name) {
                let text = format!("{operation:?}");
                let secret = drill.attacker.secret.clone();
                let done: Result<Value, Failure> =
                    timeout(SOON, front.ask(Request::Operate { secret, operation })).await.expect("it is answered");
                let failure = done.expect_err(&text);
                assert!(matches!(failure.why, Why::NotFound | Why::Invalid), "{text:.200}: {failure:?}");
            }
        }
    }
    // Its own are listed, and no others.
    for operation in [
        Operation::List(ListFilter { page: Some(PageOf::default()), ..ListFilter::default() }),
        Operation::Snapshots(SnapshotFilter::default()),
        Operation::Templates,
        Operation::LastSamples { ids: vec![VICTIM.into()] },
    ] {
        let secret = drill.attacker.secret.clone();
        let listed: Value = front.ask(Request::Operate { secret, operation }).await.unwrap();
        assert!(!listed.to_string().contains(VICTIM), "{listed}");
    }
    assert!(before == (drill.files(), drill.victims_record()), "nothing was changed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_the_front_does_not_present_cannot_be_used() {
    let drill = drill();
    let (front, _served) = drill.front();
    let operate = async |secret: &str| -> Result<Value, Failure> {
        let operation = Operation::RevokeTokens { id: VICTIM.into() };
        front.ask(Request::Operate { secret: secret.to_owned(), operation }).await
    };
    let hash = fs::read_to_string(KeyStore::path_in(drill.home.path())).unwrap();
    let hash = serde_json::from_str::<Value>(&hash).unwrap()[0]["sha256"].as_str().unwrap().to_owned();
    for secret in ["", &drill.victim.id, &hash, &drill.victim.secret[..40], &"x".repeat(1 << 20)] {
        assert_eq!(operate(secret).await.unwrap_err().why, Why::Unauthorized);
    }
    // The key itself is enough, until it is removed.
    operate(&drill.victim.secret).await.unwrap_err();
    drill.launcher.credentials.keys.remove(&drill.victim.id).unwrap();
    assert_eq!(operate(&drill.victim.secret).await.unwrap_err().why, Why::Unauthorized);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_key_changes_nothing_whatever_the_front_says() {
    let drill = drill();
    let (front, _served) = drill.front();
    let looks_at = WantedKey { looks_at: Some(drill.victim.id.clone()), ..WantedKey::default() };
    let looker = drill.launcher.credentials.keys.create(looks_at).unwrap();
    for operation in operations(VICTIM, "base") {
        let looks_only = operation.looks_only();
        let text = format!("{operation:?}");
        let secret = looker.secret.clone();
        let done: Result<Value, Failure> = front.ask(Request::Operate { secret, operation }).await;
        let is_forbidden = done.err().is_some_and(|failure| failure.why == Why::Forbidden);
        assert_eq!(is_forbidden, !looks_only, "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_environment_of_many_variables_is_too_long() {
    let drill = drill();
    let (front, _served) = drill.front();
    let Operation::Create(create) = operations(OWN, "base").remove(0) else { panic!() };
    let operation = Operation::Create(Create { env: vec![String::new(); 100_000], ..create });
    let secret = drill.attacker.secret.clone();
    let failure = front.ask::<Value>(Request::Operate { secret, operation }).await.unwrap_err();
    assert!(failure.why == Why::Invalid && failure.message.contains("environment"), "{failure}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_out_of_bounds_are_refused_whatever_the_front_checked() {
    let drill = drill();
    let (front, _served) = drill.front();
    let create = |change: &dyn Fn(&mut Create)| {
        let Operation::Create(mut create) = operations(OWN, "base").remove(0) else { panic!() };
        create.env = Vec::new();
        create.mask_request_host = None;
        change(&mut create);
        Operation::Create(create)
    };
    let id = || OWN.to_owned();
    let longest = drill.launcher.config.longest_timeout;
    let request = |tags: usize| Operation::RequestBuild {
        name: "mine".into(),
        tags: vec!["t".into(); tags],
        cpus: None,
        memory: None,
    };
    let filter = |limit| ListFilter { page: Some(PageOf { limit: Some(limit), token: None }), ..ListFilter::default() };
    for (operation, named) in [
        (create(&|create| create.timeout = longest + 1), "timeout"),
        (create(&|create| create.metadata = BTreeMap::from([("a".into(), "x".repeat(64 << 10))])), "metadata"),
        (create(&|create| create.https_ports = (1..=65).collect()), "port"),
        (create(&|create| create.mask_request_host = Some("ü.example".into())), "host"),
        (Operation::SetTimeout { id: id(), timeout: longest + 1 }, "timeout"),
        (Operation::Extend { id: id(), timeout: longest + 1 }, "timeout"),
        (Operation::Connect { id: id(), timeout: longest + 1, memory: None }, "timeout"),
        (Operation::Resume { id: id(), timeout: longest + 1, memory: None }, "timeout"),
        (Operation::Fork { id: id(), count: 0, timeout: 1 }, "count"),
        (Operation::Fork { id: id(), count: 101, timeout: 1 }, "count"),
        (Operation::Fork { id: id(), count: 1, timeout: longest + 1 }, "timeout"),
        (Operation::Snapshot { id: id(), name: Some("x".repeat(129)), memory: None }, "name"),
        (Operation::Snapshot { id: id(), name: Some("a b".into()), memory: None }, "name"),
        (Operation::LastSamples { ids: vec![id(); 101] }, "sandbox_ids"),
        (Operation::List(filter(0)), "limit"),
        (Operation::List(filter(101)), "limit"),
        (request(101), "tags"),
        (
            Operation::BuildStatus {
                template: id(),
                build: id(),
                query: BuildQuery { limit: Some(101), ..BuildQuery::default() },
            },
            "limit",
        ),
    ] {
        let text = format!("{operation:?}");
        let secret = drill.attacker.secret.clone();
        let done = timeout(SOON, front.ask::<Value>(Request::Operate { secret, operation })).await;
        let failure = done.expect("it is answered").expect_err(&text);
        assert!(failure.why == Why::Invalid && failure.message.contains(named), "{text:.300}: {failure:?}");
    }
}
