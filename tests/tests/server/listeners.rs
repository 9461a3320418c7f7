//! How clients reach the server: over TLS with the user's certificate, over HTTP/1.1 and over
//! HTTP/2. The clients are those of other projects.

use sandboxvm_tests::{
    cli::{Finished, Invocation},
    home::{Home, eventually},
    server::{Server, small_config},
};
use std::{env, path::Path, process::Command, time::Duration};

fn run<const N: usize>(program: impl AsRef<Path>, arguments: [&str; N], variables: &[(&str, &str)]) -> Finished {
    let mut command = Command::new(program.as_ref());
    command.args(arguments).envs(variables.iter().copied());
    Invocation::new(command).run()
}

/// Requests `/health` with curl. Returns the status and the version of HTTP.
fn curl(url: &str, certificate: &str, how: &str) -> String {
    let format = "%{http_code} over %{http_version}";
    let url = format!("{url}/health");
    let ended = run("curl", ["-sS", "-o", "/dev/null", "--cacert", certificate, how, "-w", format, &url], &[]);
    ended.succeeds().out()
}

#[test]
fn clients_connect_by_tls_and_both_versions_of_http() {
    let Some(home) = Home::with_kvm() else { return };
    let [certificate, key] = ["certificate.pem", "key.pem"].map(|name| home.scratch(name).display().to_string());
    let subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"];
    // A self-signed certificate is that of an authority unless it says otherwise, and E2B's client
    // accepts no authority as a server.
    let no_authority = ["-addext", "basicConstraints=critical,CA:FALSE"];
    let new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
    let files = ["-keyout", &key, "-out", &certificate];
    let mut openssl = Command::new("openssl");
    openssl.args(new).args(subject).args(no_authority).args(files);
    let _ = Invocation::new(openssl).run().succeeds();

    let tls = Server::start_with(&home, &small_config(), &["--tls-cert", &certificate, "--tls-key", &key]);
    for url in [&tls.api, &tls.sandboxes] {
        assert!(url.starts_with("https://127.0.0.1:"), "{url}");
        assert_eq!(curl(url, &certificate, "--http2"), "204 over 2");
        assert_eq!(curl(url, &certificate, "--http1.1"), "204 over 1.1");
        // A client without the certificate does not trust the server, and a client without TLS
        // receives nothing.
        let plain = url.replace("https:", "http:");
        let stranger = run("curl", ["-sS", &format!("{url}/health")], &[]);
        assert_eq!(stranger.code(), Some(60), "{}", stranger.transcript());
        let clear = run("curl", ["-sS", &format!("{plain}/health")], &[]);
        assert!(clear.code() != Some(0) && clear.out().is_empty(), "{}", clear.transcript());
    }
    // E2B's own client.
    let sdks = env::var("SANDBOXVM_TEST_SDKS").expect("scripts/test sets SANDBOXVM_TEST_SDKS: scripts/lib/sdks.sh");
    let program = "from e2b import Sandbox; print(Sandbox.list().next_items())";
    let variables = [
        ("E2B_API_URL", tls.api.as_str()),
        ("E2B_SANDBOX_URL", &tls.sandboxes),
        ("E2B_API_KEY", tls.key()),
        ("SSL_CERT_FILE", &certificate),
    ];
    let listed = run(Path::new(&sdks).join("python/bin/python"), ["-c", program], &variables).succeeds();
    assert_eq!(listed.out(), "[]\n");
    tls.stop();

    let plain = Server::start(&home, &small_config());
    for url in [&plain.api, &plain.sandboxes] {
        assert_eq!(curl(url, &certificate, "--http2-prior-knowledge"), "204 over 2");
        assert_eq!(curl(url, &certificate, "--http1.1"), "204 over 1.1");
    }
    plain.stop();

    // A key that does not fit the certificate is refused before the server listens.
    let wrong = home.scratch("wrong.toml").display().to_string();
    std::fs::write(&wrong, small_config()).expect("the test's directory can be written");
    let flags = ["serve", "--config", &wrong, "--tls-cert", &certificate, "--tls-key", &certificate];
    let _ = home.cli(flags).run().fails_with(&["cannot use the certificate", "certificate.pem"]);
    home.assert_nothing_left();
}

/// Whether this host has weaknesses depends on the host. The test checks that the log and strict
/// mode agree about them.
#[test]
fn a_strict_server_does_not_start_on_a_host_with_weak_isolation() {
    let Some(home) = Home::with_kvm() else { return };
    let server = Server::start(&home, &small_config());
    let pvm = Path::new("/sys/module/kvm_pvm").exists();
    let warned = || server.log().contains("this host weakens the isolation between guests").then_some(());
    // The server probes the host after its start.
    let weak = if pvm { eventually(Duration::from_secs(30), warned) } else { warned() }.is_some();
    let log = server.log();
    server.stop();
    assert!(weak || !pvm, "mode pvm is a weakness: {log}");
    if weak {
        let addresses = ["--api", "127.0.0.1:0", "--sandboxes", "127.0.0.1:0"];
        let strict = home.cli(["serve", "--strict"]).args(addresses).run();
        let _ = strict.fails_with(&["strict mode does not allow that", if pvm { "mode pvm" } else { "" }]);
        let config = home.scratch("strict.toml");
        std::fs::write(&config, "strict = true\n").expect("the test's directory can be written");
        let strict = home.cli(["serve", "--config"]).arg(&config).args(addresses).run();
        let _ = strict.fails_with(&["strict mode does not allow that"]);
    } else {
        Server::start_with(&home, &small_config(), &["--strict"]).stop();
    }
}
