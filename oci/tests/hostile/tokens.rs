//! Passwords and token services, and hosts that would like to have either.

use crate::server::{Image, Request, Server, answer, open, options};
use sandboxvm_oci::{
    Error, PullOptions, PushOptions, Silent,
    credentials::CredentialFiles,
    registry::{Credentials, RegistryError, RegistryOptions},
};
use std::{collections::BTreeMap, fs, net::TcpStream, sync::Arc};

fn password() -> Option<Credentials> {
    Some(Credentials::Password { user: "user".into(), password: "right".into() })
}

/// "user:right" in base64.
const BASIC: &str = "Basic dXNlcjpyaWdodA==";

async fn pull(server: &Server, credentials: Option<Credentials>, options: RegistryOptions) -> Result<(), Error> {
    let home = tempfile::tempdir().unwrap();
    let name = format!("{}/app:1", server.host());
    open(&home, options).pull(&name, PullOptions { credentials }, Arc::new(Silent)).await.map(|_| ())
}

/// A registry that sends an image to a client with this token, and others to a token service.
fn registry(realm: String) -> Server {
    let image = Image::new(1000, 1);
    Server::start(move |request, stream| match request.authorization.as_deref() {
        Some("Bearer good") => image.serve(request, stream),
        _ => {
            let challenge = format!("WWW-Authenticate: Bearer realm=\"{realm}\",service=\"reg\",scope=\"x\"");
            answer(stream, 401, &[&challenge], b"");
        }
    })
}

fn token_service(token: &'static str) -> Server {
    let give = move |request: &Request, stream: &mut TcpStream| {
        let right = request.path == "/token?scope=repository%3Aapp%3Apull&service=reg";
        match (right, request.authorization.as_deref()) {
            (true, Some(BASIC)) => answer(stream, 200, &[], format!("{{\"token\": \"{token}\"}}").as_bytes()),
            _ => answer(stream, 401, &[], b""),
        }
    };
    Server::start(give)
}

#[tokio::test(flavor = "multi_thread")]
async fn token_of_a_service_on_another_port_is_used() {
    let tokens = token_service("good");
    let server = registry(format!("http://{}/token", tokens.host()));
    pull(&server, password(), options(&[&server, &tokens])).await.unwrap();
    assert_eq!(tokens.count("GET", "/token"), 1);
    let requests = server.requests.lock().unwrap();
    assert!(requests.iter().all(|request| request.authorization.as_deref() != Some(BASIC)));
}

#[tokio::test(flavor = "multi_thread")]
async fn token_that_the_registry_does_not_accept_is_an_error() {
    // Such as one for another audience.
    let tokens = token_service("other");
    let server = registry(format!("http://{}/token", tokens.host()));
    let error = pull(&server, password(), options(&[&server, &tokens])).await.unwrap_err();
    let expected = format!("{} denies access to app:1: the credentials are not valid for it", server.host());
    assert_eq!(error.to_string(), expected);
    assert_eq!(tokens.count("GET", "/token"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_and_wrong_credentials_have_different_errors() {
    let server = Server::start(|_, stream| answer(stream, 401, &["WWW-Authenticate: Basic realm=\"r\""], b""));
    let error = pull(&server, None, options(&[&server])).await.unwrap_err().to_string();
    assert!(error.ends_with("denies access to app:1: no credentials are known"), "{error}");
    let error = pull(&server, password(), options(&[&server])).await.unwrap_err().to_string();
    assert!(error.ends_with("denies access to app:1: the credentials are not valid for it"), "{error}");
    assert!(!error.contains("right"));
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_go_to_a_foreign_realm_only_over_tls() {
    let evil = Server::start(|_, stream| answer(stream, 200, &[], b"{\"token\": \"good\"}"));
    let server = registry(format!("http://{}/token", evil.host()));
    let error = pull(&server, password(), options(&[&server])).await.unwrap_err();
    assert!(matches!(error, Error::Registry(RegistryError::NotEncrypted(_))), "{error}");
    assert_eq!(evil.count("GET", ""), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn redirect_of_a_token_service_is_not_followed() {
    let evil = token_service("good");
    let location = format!("Location: http://{}/token", evil.host());
    let tokens = Server::start(move |_, stream| answer(stream, 307, &[&location], b""));
    let server = registry(format!("http://{}/token", tokens.host()));
    let error = pull(&server, password(), options(&[&server, &tokens, &evil])).await.unwrap_err();
    assert!(matches!(error, Error::Registry(RegistryError::Status { status: 307, .. })), "{error}");
    assert_eq!(evil.count("GET", ""), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn host_that_a_registry_redirects_to_cannot_ask_for_credentials() {
    let thief = Server::start(|_, stream| answer(stream, 200, &[], b"{\"token\": \"good\"}"));
    let realms = ["Basic realm=\"x\"".to_owned(), format!("Bearer realm=\"http://{}/token\"", thief.host())];
    for challenge in realms.map(|realm| format!("WWW-Authenticate: {realm}")) {
        let storage = Server::start(move |_, stream| answer(stream, 401, &[&challenge], b""));
        let location = format!("Location: http://{}/x", storage.host());
        let server = Server::start(move |_, stream| answer(stream, 307, &[&location], b""));
        let all = options(&[&server, &storage, &thief]);
        let error = pull(&server, password(), all).await.unwrap_err();
        assert!(matches!(error, Error::Registry(RegistryError::Denied { .. })), "{error}");
        assert_eq!(thief.count("GET", ""), 0);
        for server in [&server, &storage] {
            assert!(server.requests.lock().unwrap().iter().all(|request| request.authorization.is_none()));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_a_token_service_are_limited_and_checked() {
    for (body, expected) in [
        (vec![b' '; 1 << 20], "limit exceeded"),
        (b"{\"token\": [1]}".to_vec(), "it is not a valid token"),
        (b"{}".to_vec(), "it contains no token"),
        (b"{\"token\": \"a\\r\\nX-Y: z\"}".to_vec(), "invalid address"),
    ] {
        let tokens = Server::start(move |_, stream| answer(stream, 200, &[], &body));
        let server = registry(format!("http://{}/token", tokens.host()));
        let error = pull(&server, None, options(&[&server, &tokens])).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_token_is_exchanged() {
    let tokens = Server::start(|request, stream| {
        let form = String::from_utf8_lossy(&request.body).into_owned();
        let is_right = request.method == "POST" && form.contains("refresh_token=se%2Fcret&")
            || form.ends_with("refresh_token=se%2Fcret");
        match is_right {
            true => answer(stream, 200, &[], b"{\"access_token\": \"good\"}"),
            false => answer(stream, 400, &[], b""),
        }
    });
    let server = registry(format!("http://{}/token", tokens.host()));
    let token = |text: &str| Some(Credentials::IdentityToken(text.into()));
    pull(&server, token("se/cret"), options(&[&server, &tokens])).await.unwrap();
    let error = pull(&server, token("other"), options(&[&server, &tokens])).await.unwrap_err();
    assert!(matches!(error, Error::Registry(RegistryError::Denied { .. })), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_found_when_a_host_asks_for_them() {
    let home = tempfile::tempdir().unwrap();
    let files = CredentialFiles { own: home.path().join("own.json"), docker: None };
    let image = Image::new(1000, 1);
    let public = image.clone();
    let private = Server::start(move |request, stream| match request.authorization.as_deref() {
        Some(BASIC) if request.method == "PUT" => answer(stream, 201, &[], b""),
        Some(BASIC) => image.serve(request, stream),
        _ => answer(stream, 401, &["WWW-Authenticate: Basic realm=\"r\""], b""),
    });
    let mirror = Server::start(move |request, stream| public.serve(request, stream));
    let with_files = |servers: &[&Server], files: &CredentialFiles| RegistryOptions {
        credentials: Some(Arc::new(files.clone())),
        ..options(servers)
    };
    let error = pull(&private, None, with_files(&[&private], &files)).await.unwrap_err().to_string();
    assert!(error.ends_with("no credentials are known"), "{error}");
    files.login(&private.host(), "user", "right").unwrap();
    pull(&private, None, with_files(&[&private], &files)).await.unwrap();
    // The credentials that the caller states are used alone.
    let wrong = Some(Credentials::Password { user: "user".into(), password: "wrong".into() });
    pull(&private, wrong, with_files(&[&private], &files)).await.unwrap_err();

    let store = tempfile::tempdir().unwrap();
    let images = open(&store, with_files(&[&private], &files));
    let name = format!("{}/app:1", private.host());
    images.pull(&name, PullOptions::default(), Arc::new(Silent)).await.unwrap();
    images.push(&name, &name, PushOptions::default(), Arc::new(Silent)).await.unwrap();

    // A mirror that asks for them receives its own, and not those of the registry.
    let mirrors = BTreeMap::from([("reg.example".to_owned(), vec![private.host()])]);
    files.login("reg.example", "user", "other").unwrap();
    let images = open(&store, RegistryOptions { mirrors, ..with_files(&[&private], &files) });
    images.pull("reg.example/app:1", PullOptions::default(), Arc::new(Silent)).await.unwrap();

    fs::write(&files.own, "{").unwrap();
    let error = pull(&private, None, with_files(&[&private], &files)).await.unwrap_err().to_string();
    assert!(error.contains("own.json"), "{error}");
    pull(&mirror, None, with_files(&[&mirror], &files)).await.unwrap();
}
