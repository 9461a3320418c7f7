//! A secret and an access key of AWS that the guest uses and never has.

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
    process::{Command, Stdio},
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
const AWS_ID: &str = "AKIDTRUE";
const AWS_KEY: &str = "wJalr/key+that-no-guest-may-see-0815";

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

/// Returns the names of the files below `directory` that contain the secret or the key.
fn files_with_secret(directory: &Path) -> Vec<String> {
    // In a debug build, this would take minutes for the memory of a guest.
    let grep = ["-rlaF", "-e", VALUE, "-e", AWS_KEY];
    let found = Command::new("grep").args(grep).arg(directory).output().expect("grep is installed");
    let code = found.status.code();
    assert!(matches!(code, Some(0 | 1)), "{}", String::from_utf8_lossy(&found.stderr));
    let name = |path: &str| Path::new(path).file_name().unwrap_or_default().to_string_lossy().into_owned();
    String::from_utf8_lossy(&found.stdout).lines().map(name).collect()
}

fn has_secret(text: &str) -> bool {
    [VALUE, AWS_KEY].iter().any(|value| text.contains(value))
}

/// Returns what the verifier says of the signature of a request.
fn verified(head: &str, key: &str) -> String {
    let mut verifier = Command::new("python3")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/network/verify_signature.py"))
        .arg(key)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 is installed");
    verifier.stdin.take().expect("a pipe").write_all(head.as_bytes()).expect("the verifier reads");
    String::from_utf8(verifier.wait_with_output().expect("the verifier ends").stdout).expect("text")
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
    let cli = |arguments: &[&str]| {
        let command = home.cli(arguments).env("XDG_CONFIG_HOME", &config).env("API_TOKEN", VALUE);
        command.env("AWS_ACCESS_KEY_ID", AWS_ID).env("AWS_SECRET_ACCESS_KEY", AWS_KEY).run()
    };

    let (secret, key) = ("API_TOKEN@api.example", "aws:env@api.example");
    let options = ["-m", SMALL, "--allow", NAME, "--secret", secret, "--secret", key];
    let _ = cli(&[&["create", "--name", "demo"], &options[..]].concat()).succeeds();
    let ask = |header: &str, to: &str| {
        let script = format!("curl -sS --max-time 200 -H \"{header}\" {to} 2>&1; env; cat /proc/1/environ");
        cli(&["exec", "demo", "--", "bash", "-c", &script])
    };
    let answer = ask("Authorization: Bearer $API_TOKEN", "https://api.example/").succeeds().out();
    assert!(answer.starts_with("yes") && answer.contains("API_TOKEN=sandboxvm-secret-"), "{answer}");
    assert!(!has_secret(&answer));
    let head = heads.recv().unwrap();
    assert!(head.to_lowercase().contains(&format!("authorization: bearer {VALUE}")), "{head}");

    let sign = "curl -sS --max-time 200 --aws-sigv4 aws:amz:eu-test-1:s3 -H 'x-amz-content-sha256: UNSIGNED-PAYLOAD' \
        --user \"$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY\" -T /etc/hostname 'https://api.example/b/key?x=1&a=%2F'";
    let signed = cli(&["exec", "demo", "--", "bash", "-c", sign]).succeeds().out();
    assert_eq!(signed, "yes");
    let head = heads.recv().unwrap();
    assert!(head.contains(&format!("Credential={AWS_ID}/")) && !head.contains("sandboxvm-secret-"), "{head}");
    assert_eq!(verified(&head, AWS_KEY), "valid\n", "{head}");
    assert_ne!(verified(&head, "another key"), "valid\n", "the verifier accepts everything");

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
        assert!(!has_secret(&shown), "{arguments:?}: {shown}");
    }
    assert_eq!(files_with_secret(&home.path()), ["network.secrets"]);
    let _ = cli(&["rm", "-f", "demo"]).succeeds();
    assert!(files_with_secret(&home.path()).is_empty());
    home.assert_nothing_left();
}
