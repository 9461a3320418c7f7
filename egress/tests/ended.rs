//! TLS that is ended, and what is searched where it is not, with the real egress process and dialer, in a network namespace.

#![allow(clippy::unwrap_used, reason = "a failure of a helper is a failure of its test")]

mod common;

use common::{
    guest::{Failed, Guest, Tcp},
    in_namespace,
    sandbox::{Sandbox, Setup, listed, pin, public},
};
use sandboxvm_authority::Authority;
use sandboxvm_protocol::egress::{
    AuthorityKey, BlockedSecret, Decided, EgressEvent, FlowRecord, HeaderRule, HeaderTemplate, NetworkSettings,
    SecretValue,
};
use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, UdpSocket},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject},
};

const NAME: &str = "api.example";
const PLACEHOLDER: &str = "sandboxvm-secret-0123456789abcdef0123456789abcdef";
const VALUE: &str = "sk-very-secret-value-of-the-owner";

/// Settings with a secret and a header rule for [`NAME`].
fn with_secret(settings: NetworkSettings, authority: &Authority) -> NetworkSettings {
    let mut settings = settings;
    open(&mut settings);
    NetworkSettings {
        secrets: vec![SecretValue {
            name: "API_TOKEN".into(),
            placeholder: PLACEHOLDER.into(),
            hosts: vec![NAME.into()],
            value: Ok(VALUE.into()),
        }],
        header_rules: vec![HeaderRule {
            host: NAME.into(),
            headers: vec![HeaderTemplate { name: "x-rule".into(), value: "set".into() }],
        }],
        authority: Some(AuthorityKey(authority.key())),
        ..settings
    }
}

/// Serves TLS on port 443 of 198.51.100.`host`, with a certificate of `root`: each head of a request is sent to the test.
fn tls_server(host: u8, root: &Authority) -> mpsc::Receiver<String> {
    let leaf = root.leaf(NAME).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf.key));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![CertificateDer::from(leaf.certificate)], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind(SocketAddr::from(([198, 51, 100, host], 443))).unwrap();
    let (sender, heads) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut tls = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream.unwrap());
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && matches!(tls.read(&mut byte), Ok(1)) {
                head.push(byte[0]);
            }
            if !head.is_empty() {
                sender.send(String::from_utf8(head).unwrap()).unwrap();
                tls.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").unwrap();
            }
        }
    });
    heads
}

/// A guest's TLS connection.
struct Tls<'g> {
    guest: &'g mut Guest,
    tcp: Tcp,
    tls: ClientConnection,
}

impl<'g> Tls<'g> {
    fn begin(guest: &'g mut Guest, to: &str, root: &Authority) -> Result<Self, Failed> {
        let tcp = guest.connect(to.parse().unwrap())?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(root.certificate().unwrap().as_bytes()).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let tls = ClientConnection::new(Arc::new(config), ServerName::try_from(NAME).unwrap()).unwrap();
        Ok(Self { guest, tcp, tls })
    }

    /// Sends `text`, and reads to the end of the connection.
    fn ask(mut self, text: &str) -> io::Result<String> {
        self.tls.writer().write_all(text.as_bytes())?;
        let failed = |failed: Failed| io::Error::other(format!("{failed:?}"));
        let mut answer = Vec::new();
        loop {
            while self.tls.wants_write() {
                let mut out = Vec::new();
                self.tls.write_tls(&mut out)?;
                self.guest.send(self.tcp, &out).map_err(failed)?;
            }
            let read = self.guest.read(self.tcp, 16 * 1024).map_err(failed)?;
            self.tls.read_tls(&mut read.as_slice())?;
            let state = self.tls.process_new_packets().map_err(io::Error::other)?;
            let mut plain = vec![0; state.plaintext_bytes_to_read()];
            self.tls.reader().read_exact(&mut plain)?;
            answer.extend(plain);
            if read.is_empty() || state.peer_has_closed() {
                self.guest.close(self.tcp);
                self.guest.until(Duration::from_millis(100), |_| None::<()>);
                return String::from_utf8(answer).map_err(io::Error::other);
            }
        }
    }
}

fn request(authorization: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: {NAME}\r\nAuthorization: {authorization}\r\n\r\n")
}

fn reason(record: &FlowRecord) -> &str {
    match &record.decided {
        Decided::Refused { reason, .. } => reason,
        Decided::Allowed(_) => "",
    }
}

fn blocked(sandbox: &mut Sandbox) -> BlockedSecret {
    loop {
        if let EgressEvent::Blocked(record) = sandbox.event() {
            return record;
        }
    }
}

/// Opens the addresses of the servers, which are the host's.
fn open(settings: &mut NetworkSettings) {
    settings.opened = (1..=4).map(|host| format!("198.51.100.{host}/32")).collect();
}

fn setup(mut settings: NetworkSettings, trust: &Authority) -> Setup {
    open(&mut settings);
    let pins = pin(NAME, 1).to_vec();
    Setup { pins, trust: trust.certificate().unwrap(), ..Setup::from(settings) }
}

#[test]
fn secret_reaches_its_host_through_ended_tls() {
    if !in_namespace("secret_reaches_its_host_through_ended_tls") {
        return;
    }
    let (root, own) = (Authority::generate().unwrap(), Authority::generate().unwrap());
    let heads = tls_server(1, &root);
    for settings in [listed(&[NAME], &[]), public(), listed(&["198.51.100.1"], &[])] {
        let (mut sandbox, mut guest) = Sandbox::start(setup(with_secret(settings, &own), &root));
        let tls = Tls::begin(&mut guest, "198.51.100.1:443", &own).unwrap();
        let answer = tls.ask(&request(&format!("Bearer {PLACEHOLDER}"))).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("ok"), "{answer}");
        let head = heads.recv().unwrap().to_lowercase();
        assert!(head.contains(&format!("authorization: bearer {VALUE}")) && head.contains("x-rule: set"), "{head}");
        let record = sandbox.flow();
        assert!(matches!(record.decided, Decided::Allowed(_)), "{record:?}");
        assert_eq!(record.name.as_deref(), Some(NAME));
        assert!(record.bytes_out > 100 && record.bytes_in > 100, "{record:?}");
        assert!(!format!("{record:?}").contains(VALUE));
    }
}

#[test]
fn secret_goes_to_no_address_that_the_resolver_did_not_give() {
    if !in_namespace("secret_goes_to_no_address_that_the_resolver_did_not_give") {
        return;
    }
    let (root, own) = (Authority::generate().unwrap(), Authority::generate().unwrap());
    let heads = tls_server(2, &root);
    let (mut sandbox, mut guest) = Sandbox::start(setup(with_secret(public(), &own), &root));
    let tls = Tls::begin(&mut guest, "198.51.100.2:443", &own).unwrap();
    tls.ask(&request(PLACEHOLDER)).unwrap_err();
    assert_eq!(reason(&sandbox.flow()), "the connection names a host that was not asked for");
    heads.try_recv().unwrap_err();
    // A client of QUIC falls back to TCP.
    let server = UdpSocket::bind("198.51.100.1:443").unwrap();
    server.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let udp = guest.udp();
    guest.send_to(udp, b"hello", "198.51.100.1:443".parse().unwrap());
    let record = sandbox.flow();
    assert!(reason(&record).contains("QUIC cannot be ended"), "{record:?}");
    server.recv(&mut [0; 8]).unwrap_err();
}

#[test]
fn server_whose_certificate_is_not_trusted_gets_no_request() {
    if !in_namespace("server_whose_certificate_is_not_trusted_gets_no_request") {
        return;
    }
    let (root, own) = (Authority::generate().unwrap(), Authority::generate().unwrap());
    let heads = tls_server(1, &root);
    // The guest's own authority signs nothing that is trusted upstream.
    let (mut sandbox, mut guest) = Sandbox::start(setup(with_secret(listed(&[NAME], &[]), &own), &own));
    let tls = Tls::begin(&mut guest, "198.51.100.1:443", &own).unwrap();
    let error = tls.ask(&request(PLACEHOLDER)).unwrap_err().to_string();
    assert!(error.contains("AccessDenied"), "{error}");
    let record = sandbox.flow();
    assert!(reason(&record).contains("invalid peer certificate"), "{record:?}");
    heads.try_recv().unwrap_err();
}

#[test]
fn placeholder_without_ended_tls_is_blocked() {
    if !in_namespace("placeholder_without_ended_tls_is_blocked") {
        return;
    }
    let (root, own) = (Authority::generate().unwrap(), Authority::generate().unwrap());
    let settings = with_secret(listed(&[NAME, "198.51.100.3"], &[]), &own);
    let (mut sandbox, mut guest) = Sandbox::start(setup(settings, &root));
    let body = "x".repeat(200_000);
    for (host, text, is_http) in [
        (1, request(PLACEHOLDER), true),
        (1, format!("GET /?{PLACEHOLDER} HTTP/1.1\r\nHost: {NAME}\r\n\r\n"), true),
        (1, format!("PUT / HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 200049\r\n\r\n{body}{PLACEHOLDER}"), true),
        (3, format!("AUTH {PLACEHOLDER}\n"), false),
        (3, format!("AUTH\n{}{PLACEHOLDER}", "y".repeat(50_000)), false),
    ] {
        let listener = TcpListener::bind(SocketAddr::from(([198, 51, 100, host], 0))).unwrap();
        let to: SocketAddr = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let mut got = Vec::new();
            let result = listener.accept().unwrap().0.read_to_end(&mut got);
            (got, result.is_ok())
        });
        let tcp = guest.connect(to).unwrap();
        // The connection can be reset before all is sent.
        let _ = guest.send(tcp, text.as_bytes());
        guest.until(Duration::from_millis(300), |_| None::<()>);
        let record = blocked(&mut sandbox);
        assert_eq!(record.secret, "API_TOKEN");
        assert_eq!(record.host, if is_http { NAME } else { "198.51.100.3" });
        let flow = sandbox.flow();
        assert!(reason(&flow).contains("placeholder"), "{flow:?}");
        let _ = guest.read_to_end(tcp);
        let (got, _) = server.join().unwrap();
        assert!(!got.windows(PLACEHOLDER.len()).any(|bytes| bytes == PLACEHOLDER.as_bytes()));
        guest.forget(tcp);
    }
}

#[test]
fn first_secret_can_come_while_the_sandbox_runs() {
    if !in_namespace("first_secret_can_come_while_the_sandbox_runs") {
        return;
    }
    let (root, own) = (Authority::generate().unwrap(), Authority::generate().unwrap());
    let heads = tls_server(1, &root);
    let (mut sandbox, mut guest) = Sandbox::start(setup(listed(&[NAME], &[]), &root));
    // TLS is the guest's own so far.
    let tls = Tls::begin(&mut guest, "198.51.100.1:443", &root).unwrap();
    assert!(tls.ask(&request(PLACEHOLDER)).unwrap().ends_with("ok"));
    assert!(heads.recv().unwrap().contains(PLACEHOLDER));
    sandbox.configure(with_secret(listed(&[NAME], &[]), &own)).unwrap();
    let tls = Tls::begin(&mut guest, "198.51.100.1:443", &own).unwrap();
    assert!(tls.ask(&request(PLACEHOLDER)).unwrap().ends_with("ok"));
    assert!(heads.recv().unwrap().contains(VALUE));
    let mut bad = with_secret(listed(&[NAME], &[]), &own);
    bad.secrets[0].value = Ok(format!("{VALUE}\r\n"));
    let error = sandbox.configure(bad).unwrap_err();
    assert!(error.contains("invalid secret \"API_TOKEN\"") && !error.contains(VALUE), "{error}");
    assert_eq!(guest.connect("198.51.100.1:443".parse().unwrap()), Err(Failed::Reset));
}
