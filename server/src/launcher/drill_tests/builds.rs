//! Templates, builds and uploads of another key.

use super::*;

fn requested(made: &Value) -> (String, String) {
    let text = |name: &str| made[name].as_str().unwrap().to_owned();
    (text("templateID"), text("buildID"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn templates_of_another_key_are_as_if_they_were_not_there() {
    let drill = drill();
    let (front, _served) = drill.front();
    let operate = async |secret: &str, operation| -> Result<Value, Failure> {
        front.ask(Request::Operate { secret: secret.to_owned(), operation }).await
    };
    let ask = |name: &str| Operation::RequestBuild { name: name.into(), tags: vec![], cpus: None, memory: None };
    let made = operate(&drill.victim.secret, ask("mine:v1")).await.unwrap();
    let (template, id) = requested(&made);
    assert_eq!(made["tags"], serde_json::json!(["v1"]));
    // The same name is the same template for its key, and another one for another key.
    assert_eq!(requested(&operate(&drill.victim.secret, ask("ns/mine")).await.unwrap()).0, template);
    assert_ne!(requested(&operate(&drill.attacker.secret, ask("mine")).await.unwrap()).0, template);
    for name in [template.as_str(), &format!("{template}:{id}"), &format!("{template}:v1")] {
        for operation in operations(name, &id) {
            let text = format!("{operation:?}");
            let failure = operate(&drill.attacker.secret, operation).await.expect_err(&text);
            assert!(matches!(failure.why, Why::NotFound | Why::Invalid), "{text:.200}: {failure:?}");
        }
    }
    let (query, build) = (BuildQuery::default(), id.clone());
    let status = operate(&drill.victim.secret, Operation::BuildStatus { template: template.clone(), build, query });
    assert_eq!(status.await.unwrap()["status"], "waiting");
    for wrong in ["base", "", "a b", "a/", &"x".repeat(129), "mine:a b"] {
        assert_eq!(operate(&drill.victim.secret, ask(wrong)).await.unwrap_err().why, Why::Invalid, "{wrong}");
    }
    let sizes = Operation::RequestBuild { name: "big".into(), tags: vec![], cpus: Some(64), memory: None };
    assert!(operate(&drill.victim.secret, sizes).await.unwrap_err().message.contains("cpuCount"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn builds_use_no_image_unless_the_operator_permits_its_registry() {
    let drill = drill();
    let (front, _served) = drill.front();
    let operate = async |operation| -> Result<Value, Failure> {
        front.ask(Request::Operate { secret: drill.attacker.secret.clone(), operation }).await
    };
    let ask = Operation::RequestBuild { name: "mine".into(), tags: vec![], cpus: None, memory: None };
    let (template, id) = requested(&operate(ask).await.unwrap());
    let start = async |spec| {
        let (template, build) = (template.clone(), id.clone());
        operate(Operation::StartBuild { template, build, spec: Box::new(spec) }).await.unwrap_err()
    };
    for image in ["python:3.11", "169.254.169.254/x", "localhost:5000/x", "10.0.0.1/x"] {
        let spec = BuildSpec { from_template: None, from_image: Some(image.into()), ..build("".into()) };
        let failure = start(spec).await;
        assert_eq!(failure.why, Why::Forbidden, "{image}: {failure}");
        assert!(failure.message.contains("permits no registry"), "{failure}");
    }
    let neither = BuildSpec { from_template: None, ..build(String::new()) };
    assert_eq!(start(neither).await.why, Why::Invalid);
    assert_eq!(start(build("unknown".into())).await.why, Why::NotFound);
    let steps = serde_json::from_str(r#"[{"type":"COPY","args":["a","b"],"filesHash":"../../etc/passwd"}]"#).unwrap();
    let failure = start(BuildSpec { steps, ..build("base".into()) }).await;
    assert!(failure.why == Why::Invalid && failure.message.starts_with("step 1: "), "{failure}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_need_a_signature_for_this_file_and_time() {
    let drill = drill();
    let (front, _served) = drill.front();
    let secret = || drill.attacker.secret.clone();
    let operate =
        async |operation| -> Value { front.ask(Request::Operate { secret: secret(), operation }).await.unwrap() };
    let ask = Operation::RequestBuild { name: "mine".into(), tags: vec![], cpus: None, memory: None };
    let (template, _) = requested(&operate(ask).await);
    let hash = "a".repeat(64);
    let path = async || {
        let operation = Operation::UploadPath { template: template.clone(), hash: hash.clone() };
        let answer = operate(operation).await;
        (answer["present"].as_bool().unwrap(), answer["path"].as_str().unwrap().to_owned())
    };
    let (present, url) = path().await;
    let (_, query) = url.split_once("?until=").unwrap();
    let (until, signature) = query.split_once("&signature=").unwrap();
    let claim = UploadClaim {
        template: template.clone(),
        hash: hash.clone(),
        until: until.parse().unwrap(),
        signature: signature.into(),
        length: 5,
    };
    assert!(!present && url.starts_with(&format!("/uploads/{template}/{hash}?")));
    let mut wrong = vec![claim.clone(); 6];
    wrong[0].until += 1;
    wrong[1].hash = "b".repeat(64);
    wrong[2].signature = "0".repeat(48);
    wrong[3].template = "tpl-0000000000000000".into();
    wrong[4].signature = String::new();
    // A signature that is valid, for a time that is over.
    wrong[5].until = 1;
    wrong[5].signature = drill.launcher.credentials.tokens.sign(&format!("upload:{template}:{hash}:1"));
    for claim in wrong {
        let text = format!("{claim:?}");
        let failure = front.ask_with(Request::Upload(claim), vec![]).await.expect_err(&text);
        assert_eq!(failure.why, Why::Forbidden, "{text}");
    }
    let too_long = UploadClaim { length: 2 << 30, ..claim.clone() };
    assert_eq!(front.ask_with(Request::Upload(too_long), vec![]).await.unwrap_err().why, Why::Quota);
    let send = async |bytes: &[u8]| {
        let mut reply = front.ask_with(Request::Upload(claim.clone()), vec![]).await.unwrap();
        let owner: String = serde_json::from_slice(&reply.head).unwrap();
        assert_eq!(owner, drill.attacker.id);
        let socket = std::os::unix::net::UnixStream::from(reply.descriptors.pop().unwrap());
        let mut socket = UnixStream::from_std(socket).unwrap();
        socket.write_all(bytes).await.unwrap();
        socket.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = timeout(SOON, socket.read_to_end(&mut answer)).await.unwrap();
        answer
    };
    assert_eq!(send(b"four").await, b"");
    assert!(!path().await.0);
    assert_eq!(send(b"right").await, b"1");
    assert!(path().await.0);
}
