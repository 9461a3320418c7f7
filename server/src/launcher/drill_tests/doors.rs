//! What a token or a signature opens, and what a front can make of it.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_opens_only_to_its_own_token_or_signature() {
    let drill = drill();
    let (front, _served) = drill.front();
    let id = |id: &str| SandboxId::try_from(id.to_owned()).unwrap();
    let token = |of: &str, scope| drill.launcher.credentials.tokens.of(scope, &id(of), 0);
    let claim = |operation, given: &str| Claim {
        path: "/etc/passwd".into(),
        operation,
        user: "root".into(),
        until: None,
        given: given.into(),
    };
    let signed = |operation, with: &str| {
        let unsigned = claim(operation, "");
        Claim { given: unsigned.signature(with), ..unsigned }
    };
    let other = token(OWN, Scope::Envd);
    for (wrong, expected) in [
        (knock(VICTIM, 49983), Denied::NoToken),
        (Knock { token: Some(String::new()), ..knock(VICTIM, 49983) }, Denied::WrongToken),
        (Knock { token: Some(other.clone()), ..knock(VICTIM, 49983) }, Denied::WrongToken),
        (Knock { token: Some(token(VICTIM, Scope::Traffic)), ..knock(VICTIM, 49983) }, Denied::WrongToken),
        (Knock { is_file: true, ..knock(VICTIM, 49983) }, Denied::NoClaim),
        (
            Knock { is_file: true, claim: Some(signed(FileOperation::Read, &other)), ..knock(VICTIM, 49983) },
            Denied::WrongSignature,
        ),
        // A signature is for files, whatever the front says the request is about.
        (Knock { claim: Some(signed(FileOperation::Read, &other)), ..knock(VICTIM, 49983) }, Denied::NoToken),
        (knock(VICTIM, 49999), Denied::NoToken),
    ] {
        let verdict: Verdict = front.ask(Request::Knock(wrong.clone())).await.unwrap();
        assert!(matches!(verdict, Verdict::Denied(denied) if denied == expected), "{wrong:?}: {verdict:?}");
        let opened = front.ask_with(Request::Reach(wrong), Vec::new()).await;
        assert_eq!(opened.unwrap_err().why, Why::NotFound);
    }
    let own = Knock { token: Some(token(VICTIM, Scope::Envd)), ..knock(VICTIM, 49983) };
    let verdict: Verdict = front.ask(Request::Knock(own)).await.unwrap();
    assert!(matches!(verdict, Verdict::Allowed(Facts { .. })), "{verdict:?}");
    let signer: Signer =
        front.ask(Request::FindSigner(signed(FileOperation::Read, &token(VICTIM, Scope::Envd)))).await.unwrap();
    assert!(matches!(signer, Signer::Found(found) if found == id(VICTIM)));
    let signer: Signer = front.ask(Request::FindSigner(claim(FileOperation::Write, "v1_"))).await.unwrap();
    assert!(matches!(signer, Signer::Denied(Denied::WrongSignature)));
    for handle in [0, 1, 2, u64::MAX] {
        for request in [Request::Call { handle }, Request::Sample { handle }, Request::Environment { handle }] {
            front.ask_with(request, noise(handle, 100)).await.unwrap_err();
        }
        front.tell(Request::Tell { handle }, noise(handle, 100));
        front.tell(Request::Begun { handle }, Vec::new());
        front.tell(Request::Release { handle }, Vec::new());
        front.tell(Request::Cancel { request: handle }, Vec::new());
    }
    front.ask_with(Request::Setup, Vec::new()).await.unwrap_err();
    let _: Value = front.ask(Request::Measure).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_code_interpreter_is_asked_without_a_token_is_sent_by_the_launcher_alone() {
    let drill = drill();
    let token = drill.launcher.credentials.tokens.of(Scope::Envd, &knock(VICTIM, 1).id, 0);
    let asking = |method: &str, path: &str| Knock { opening: Opening::of(method, path), ..knock(VICTIM, 49999) };
    let (_, grant) = drill.launcher.admitted(&asking("GET", "/contexts")).unwrap().unwrap();
    assert!(grant.sends.is_some());
    // With the token, the front has the connection itself.
    let with_token = Knock { token: Some(token), ..asking("GET", "/contexts") };
    assert!(drill.launcher.admitted(&with_token).unwrap().unwrap().1.sends.is_none());
    // Whatever the front says that the request is.
    let forged = |method: &str, path: &str| {
        let opening = serde_json::from_value(serde_json::json!({ "method": method, "path": path })).unwrap();
        Knock { opening: Some(opening), ..knock(VICTIM, 49999) }
    };
    for (method, path) in [
        ("POST", "/execute"),
        ("GET", "/contexts/../execute"),
        ("GET", "/health HTTP/1.1\r\n\r\nPOST /execute"),
        ("POST /execute HTTP/1.1\r\n\r\nGET", "/health"),
    ] {
        let denied = drill.launcher.admitted(&forged(method, path)).unwrap_err();
        assert_eq!(denied, Denied::NoToken, "{method} {path}");
    }
    // What the front writes to its connection reaches no guest.
    let (guest, far) = std::os::unix::net::UnixStream::pair().unwrap();
    let request = Opening::of("GET", "/contexts").unwrap().request("localhost", b"");
    let (theirs, _passing) = send(&request, guest.into()).await.unwrap();
    let stream = |of: std::os::unix::net::UnixStream| {
        of.set_nonblocking(true).unwrap();
        UnixStream::from_std(of).unwrap()
    };
    let (mut front, mut far) = (stream(theirs.into()), stream(far));
    front.write_all(b"POST /execute HTTP/1.1\r\n\r\n").await.unwrap();
    let mut received = vec![0; request.len()];
    far.read_exact(&mut received).await.unwrap();
    assert!(received == request);
    let more = timeout(Duration::from_millis(200), far.read(&mut received)).await;
    assert!(more.is_err(), "{more:?}");
    far.write_all(b"[]").await.unwrap();
    drop(far);
    let mut answer = Vec::new();
    front.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"[]");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handle_is_worth_no_more_than_what_opened_it() {
    let drill = drill();
    let id = knock(VICTIM, 1).id;
    let token = drill.launcher.credentials.tokens.of(Scope::Envd, &id, 0);
    let signed = |until| {
        let unsigned = Claim {
            path: "/a".into(),
            operation: FileOperation::Read,
            user: String::new(),
            until,
            given: String::new(),
        };
        let claim = Claim { given: unsigned.signature(&token), ..unsigned };
        Knock { is_file: true, claim: Some(claim), ..knock(VICTIM, 49983) }
    };
    let grant = |knock: &Knock| drill.launcher.admitted(knock).unwrap().unwrap().1;
    let entry = || drill.launcher.registry.entry(&id).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let whole = grant(&Knock { token: Some(token.clone()), ..knock(VICTIM, 49983) });
    let (file, short, port) = (grant(&signed(None)), grant(&signed(Some(now + 1))), grant(&knock(VICTIM, 80)));
    let user = CText::try_from("user").unwrap();
    assert_eq!(file.scope, GuestScope::ReadFile { path: FilePath::try_from("/a").unwrap(), user });
    // Environment and samples are for the token alone.
    whole.check_whole(&entry()).unwrap();
    for narrow in [&file, &short, &port] {
        narrow.check(&entry()).unwrap();
        assert_eq!(narrow.check_whole(&entry()).unwrap_err().why, Why::Forbidden);
    }
    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert_eq!(short.check(&entry()).unwrap_err().why, Why::Unauthorized);
    let record = Record { token_generation: 1, ..drill.victims_record() };
    drill.launcher.registry.add_for_test(record);
    for revoked in [&whole, &file] {
        assert_eq!(revoked.check(&entry()).unwrap_err().why, Why::Unauthorized);
    }
    port.check(&entry()).unwrap();
    let long = Claim { path: "x".repeat(5000), ..signed(None).claim.unwrap() };
    assert!(!long.is_short());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contexts_are_open_without_a_token_on_the_code_interpreters_port_alone() {
    let drill = drill();
    let registry = &drill.launcher.registry;
    let victim = |change: &dyn Fn(&mut Record)| {
        let mut record = drill.victims_record();
        change(&mut record);
        registry.add_for_test(record);
    };
    let opening = |port| Knock { opening: Opening::of("POST", "/contexts"), ..knock(VICTIM, port) };
    let sends = |knock: &Knock| drill.launcher.admitted(knock).map(|found| found.unwrap().1.sends.is_some());
    // A wrong token opens no more than none.
    let wrong = Knock { token: Some("wrong".into()), ..opening(49999) };
    assert_eq!((sends(&opening(49999)), sends(&wrong)), (Ok(true), Ok(true)));
    assert_eq!(sends(&Knock { opening: None, ..wrong }), Err(Denied::WrongToken));
    // Elsewhere the path is that of any server, and envd needs its token.
    assert_eq!(sends(&opening(8000)), Ok(false));
    assert_eq!(sends(&opening(49983)), Err(Denied::NoToken));
    // A server with TLS cannot be asked by the launcher.
    victim(&|record| record.ingress = Ingress::new(None, &[49999]).unwrap());
    assert_eq!(sends(&opening(49999)), Err(Denied::NoToken));
    // Traffic that is not public needs its own token as well.
    victim(&|record| (record.ingress, record.public_traffic) = (Ingress::default(), false));
    assert_eq!(sends(&opening(49999)), Err(Denied::NoTrafficToken));
    let traffic = drill.launcher.credentials.tokens.of(Scope::Traffic, &knock(VICTIM, 1).id, 0);
    assert_eq!(sends(&Knock { traffic_token: Some(traffic), ..opening(49999) }), Ok(true));
    // A sandbox that is not secure asks for none, and its client is connected as for any port.
    victim(&|record| (record.secure, record.public_traffic) = (false, true));
    assert_eq!(sends(&opening(49999)), Ok(false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_for_a_code_interpreter_is_bounded_by_the_launcher() {
    let drill = drill();
    let asks = Knock { opening: Opening::of("POST", "/contexts"), ..knock(VICTIM, 49999) };
    let open = async |length| drill.launcher.open(&asks, &vec![b'x'; length]).await.unwrap_err();
    let failure = open(opening::MAX_BODY + 1).await;
    assert!(failure.why == Why::Invalid && failure.message.contains("bytes"), "{failure}");
    // The longest is refused only because this sandbox has no machine.
    assert_ne!(open(opening::MAX_BODY).await.why, Why::Invalid);
}
