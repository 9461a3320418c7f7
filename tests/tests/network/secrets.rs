//! A secret that the guest uses and never has.

use sandboxvm_authority::Authority;
use sandboxvm_tests::{
    home::{Home, SMALL},
    namespace::{self, SERVER},
};
use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    path::Path,
    sync::{Arc, mpsc},
    thread,
};
use tokio_rustls::rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
};

const NAME: &str = "api.example";
const VALUE: &str = "sk-value-that-no-guest-may-see-4711";

/// Serves HTTPS for [`NAME`]. The head of each request is sent to the test.
fn serve_https(root: &Authority) -> mpsc::Receiver<String> {
    let leaf = root.leaf(NAME).expect("a certificate");
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf.key));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions of TLS")
        .with_no_client_auth()
        .with_single_cert(vec![CertificateDer::from(leaf.certificate)], key)
        .expect("certificate and key");
    let config = Arc::new(config);
    let listener = TcpListener::bind((SERVER, 443)).expect("port 443 of the namespace");
    let (sender, heads) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut tls =
                StreamOwned::new(ServerConnection::new(Arc::clone(&config)).expect("a configuration"), stream);
            let (mut head, mut byte) = (Vec::new(), [0]);
            while !head.ends_with(b"\r\n\r\n") && matches!(tls.read(&mut byte), Ok(1)) {
                head.push(byte[0]);
            }
            if !head.is_empty() {
                let _ = sender.send(String::from_utf8_lossy(&head).into_owned());
                let _ = tls.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes");
            }
        }
    });
    heads
}

/// Returns the files below `directory` that contain the secret.
fn files_with_secret(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(files_with_secret(&path));
        } else if entry.file_type().is_ok_and(|kind| kind.is_file())
            && fs::read(&path).is_ok_and(|bytes| has_secret(&bytes))
        {
            found.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
        }
    }
    found
}

fn has_secret(bytes: &[u8]) -> bool {
    bytes.windows(VALUE.len()).any(|part| part == VALUE.as_bytes())
}

#[test]
#[ignore = "soak: TLS in a guest whose kernel is interpreted takes minutes"]
fn guest_uses_a_secret_that_is_in_no_file_and_no_output() {
    if !namespace::enter() {
        return;
    }
    let Some(home) = Home::with_kvm() else { return };
    let root = Authority::generate().unwrap();
    let heads = serve_https(&root);
    let resolver = namespace::serve_dns();
    let config = home.scratch("config");
    fs::create_dir_all(config.join("sandboxvm")).unwrap();
    fs::write(config.join("root.pem"), root.certificate().unwrap()).unwrap();
    let operator = format!(
        "[operator]\nopen = [\"{SERVER}/32\"]\nresolvers = [\"{resolver}\"]\ntrust = {:?}\n",
        config.join("root.pem")
    );
    fs::write(config.join("sandboxvm/network.toml"), operator).unwrap();
    let cli = |arguments: &[&str]| home.cli(arguments).env("XDG_CONFIG_HOME", &config).env("API_TOKEN", VALUE).run();

    let secret = "API_TOKEN@api.example";
    let _ = cli(&["create", "--name", "demo", "-m", SMALL, "--allow", NAME, "--secret", secret]).succeeds();
    let ask = |header: &str, to: &str| {
        let script = format!("curl -sS --max-time 200 -H \"{header}\" {to} 2>&1; env; cat /proc/1/environ");
        cli(&["exec", "demo", "--", "bash", "-c", &script])
    };
    let answer = ask("Authorization: Bearer $API_TOKEN", "https://api.example/").succeeds().out();
    assert!(answer.starts_with("yes") && answer.contains("API_TOKEN=sandboxvm-secret-"), "{answer}");
    assert!(!answer.contains(VALUE));
    let head = heads.recv().unwrap();
    assert!(head.to_lowercase().contains(&format!("authorization: bearer {VALUE}")), "{head}");

    let blocked = ask("X: y", "https://api.example/?key=$API_TOKEN").out();
    assert!(blocked.contains("the URL contains the placeholder of a secret"), "{blocked}");
    heads.try_recv().unwrap_err();
    let log = cli(&["network", "log", "demo"]).succeeds().out();
    assert!(log.contains("blocked secret API_TOKEN to api.example"), "{log}");

    for arguments in [
        &["inspect", "demo"][..],
        &["network", "show", "demo"],
        &["network", "show", "demo", "--json"],
        &["network", "log", "demo"],
        &["events", "demo"],
        &["logs", "demo"],
    ] {
        let shown = cli(arguments).out();
        assert!(!shown.contains(VALUE), "{arguments:?}: {shown}");
    }
    assert_eq!(files_with_secret(&home.path()), ["network.secrets"]);
    let _ = cli(&["rm", "-f", "demo"]).succeeds();
    assert!(files_with_secret(&home.path()).is_empty());
    home.assert_nothing_left();
}
