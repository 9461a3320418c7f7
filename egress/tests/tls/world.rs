//! A server with a certificate of a test's authority, and a guest that trusts the sandbox's authority.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response,
    body::{Body, Incoming},
    rt::Executor,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use sandboxvm_authority::Authority;
use sandboxvm_egress::{
    session::Session,
    tls::{self, Outcome, Target, trust::Trust},
};
use sandboxvm_protocol::egress::{
    AuthorityKey, BlockedSecret, EgressEvent, FlowRecord, HeaderRule, HeaderTemplate, NetworkSettings, SecretValue,
};
use std::{
    cell::RefCell,
    fmt::Write as _,
    future::Future,
    io::{self, Seek as _, Write as _},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use time::OffsetDateTime;
use tokio::{
    io::DuplexStream,
    net::{TcpListener, TcpStream},
    task::{JoinHandle, LocalSet, spawn_local},
    time::timeout,
};
use tokio_rustls::{
    TlsAcceptor, TlsConnector, client,
    rustls::{
        ClientConfig, RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject},
    },
    server,
};

pub const NAME: &str = "api.example";
pub const PLACEHOLDER: &str = "sandboxvm-secret-0123456789abcdef0123456789abcdef";
pub const OTHER_PLACEHOLDER: &str = "sandboxvm-secret-ffffffffffffffffffffffffffffffff";
pub const VALUE: &str = "sk-very-secret-value-of-the-owner";
pub const OTHER_VALUE: &str = "sk-another-secret-value";

/// Runs a test with a deadline, on one thread as the egress process does.
pub fn run(test: impl Future<Output = ()> + 'static) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(LocalSet::new().run_until(async { timeout(Duration::from_secs(60), test).await.unwrap() }));
}

pub type ServerBody = UnsyncBoxBody<Bytes, io::Error>;
pub type Answering = Pin<Box<dyn Future<Output = Response<ServerBody>>>>;
pub type Handler = Rc<dyn Fn(Request<Incoming>) -> Answering>;

pub fn text(body: impl Into<Bytes>) -> ServerBody {
    Full::new(body.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Answers with the head of the request, and with its body.
pub fn echo() -> Handler {
    Rc::new(|request| {
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let mut shown = format!("{} {} {:?}\n", head.method, head.uri, head.version);
            for (name, value) in &head.headers {
                writeln!(shown, "{name}: {}", String::from_utf8_lossy(value.as_bytes())).unwrap();
            }
            let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            shown.push_str(&String::from_utf8_lossy(&body));
            Response::new(text(shown))
        })
    })
}

#[derive(Clone)]
pub struct LocalTasks;

impl<F: Future<Output = ()> + 'static> Executor<F> for LocalTasks {
    fn execute(&self, future: F) {
        spawn_local(future);
    }
}

/// What a server's certificate is like.
#[derive(Clone)]
pub struct Certificate {
    pub name: &'static str,
    pub is_expired: bool,
    pub is_trusted: bool,
    pub protocols: &'static [&'static str],
}

impl Default for Certificate {
    fn default() -> Self {
        Self { name: NAME, is_expired: false, is_trusted: true, protocols: &["h2", "http/1.1"] }
    }
}

pub struct World {
    pub session: Rc<RefCell<Session>>,
    pub settings: NetworkSettings,
    listener: Rc<TcpListener>,
    acceptor: TlsAcceptor,
    guest_roots: Arc<RootCertStore>,
}

pub fn settings() -> (NetworkSettings, Authority) {
    let authority = Authority::generate().unwrap();
    let secret = |name: &str, placeholder: &str, host: &str, value: &str| SecretValue {
        name: name.into(),
        placeholder: placeholder.into(),
        hosts: vec![host.into()],
        value: Ok(value.into()),
    };
    let settings = NetworkSettings {
        header_rules: vec![HeaderRule {
            host: NAME.into(),
            headers: vec![HeaderTemplate { name: "X-Rule".into(), value: "of the rule".into() }],
        }],
        secrets: vec![
            secret("API_TOKEN", PLACEHOLDER, NAME, VALUE),
            secret("OTHER", OTHER_PLACEHOLDER, "other.example", OTHER_VALUE),
        ],
        authority: Some(AuthorityKey(authority.key())),
        ..NetworkSettings::default()
    };
    (settings, authority)
}

impl World {
    pub async fn new(certificate: Certificate) -> Self {
        let (settings, authority) = settings();
        let pem = authority.certificate().unwrap();
        let mut guest_roots = RootCertStore::empty();
        guest_roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
        let (acceptor, root) = server_of(&certificate);
        let trust = if certificate.is_trusted { root } else { server_of(&certificate).1 };
        let mut file = tempfile::tempfile().unwrap();
        // The certificates of a host's list are not all ones that can be read.
        write!(file, "# a comment\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n{trust}").unwrap();
        file.rewind().unwrap();
        let session = Session::new(0, Trust::new(vec![file]));
        let world = Self {
            session: Rc::new(RefCell::new(session)),
            settings,
            listener: Rc::new(TcpListener::bind("127.0.0.1:0").await.unwrap()),
            acceptor,
            guest_roots: Arc::new(guest_roots),
        };
        world.configure();
        world
    }

    /// Puts the settings in force.
    pub fn configure(&self) {
        self.session.borrow_mut().configure(self.settings.clone()).unwrap();
    }

    /// Serves one connection by `handler`, in the version of HTTP that was agreed on.
    pub fn serve(&self, handler: Handler) -> JoinHandle<()> {
        let (listener, acceptor) = (Rc::clone(&self.listener), self.acceptor.clone());
        spawn_local(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            let service = service_fn(move |request| {
                let answer = handler(request);
                async move { Ok::<_, io::Error>(answer.await) }
            });
            if is_h2 {
                let server = hyper::server::conn::http2::Builder::new(LocalTasks);
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            } else {
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            }
        })
    }

    /// Gives the server's end of one connection to `server` once TLS is begun.
    pub fn serve_raw<F>(&self, server: impl FnOnce(server::TlsStream<TcpStream>) -> F + 'static) -> JoinHandle<()>
    where
        F: Future<Output = ()> + 'static,
    {
        let (listener, acceptor) = (Rc::clone(&self.listener), self.acceptor.clone());
        spawn_local(async move {
            let (stream, _) = listener.accept().await.unwrap();
            if let Ok(stream) = acceptor.accept(stream).await {
                server(stream).await;
            }
        })
    }

    pub fn target(&self) -> Target {
        Target { name: NAME.parse().unwrap(), address: [127, 0, 0, 1].into(), port: 443 }
    }

    /// Begins to carry a connection. Returns the guest's end of it.
    pub async fn carry(&self) -> (DuplexStream, JoinHandle<Outcome>) {
        let (guest, end) = tokio::io::duplex(64 * 1024);
        let upstream = TcpStream::connect(self.listener.local_addr().unwrap()).await.unwrap();
        (guest, spawn_local(tls::carry(end, upstream, self.target(), Rc::clone(&self.session))))
    }

    /// Begins TLS as a guest does.
    pub async fn guest(
        &self,
        sni: &str,
        protocols: &[&str],
    ) -> (io::Result<client::TlsStream<DuplexStream>>, JoinHandle<Outcome>) {
        let (stream, carried) = self.carry().await;
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(Arc::clone(&self.guest_roots))
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let name = ServerName::try_from(sni.to_owned()).unwrap();
        (TlsConnector::from(Arc::new(config)).connect(name, stream).await, carried)
    }

    pub async fn guest_http1(&self) -> (client::TlsStream<DuplexStream>, JoinHandle<Outcome>) {
        let (stream, carried) = self.guest(NAME, &["http/1.1"]).await;
        (stream.unwrap(), carried)
    }

    /// Returns what was recorded, after a check that no secret is part of it.
    pub fn recorded(&self) -> (Vec<BlockedSecret>, Vec<FlowRecord>) {
        let mut session = self.session.borrow_mut();
        session.records.collect();
        let events: Vec<_> = std::iter::from_fn(|| session.records.take()).collect();
        let shown = format!("{events:?} {session:?}");
        assert!(!shown.contains(VALUE) && !shown.contains(OTHER_VALUE), "{shown}");
        let (mut blocked, mut flows) = (Vec::new(), Vec::new());
        for event in events {
            match event {
                EgressEvent::Blocked(record) => blocked.push(record),
                EgressEvent::Flow(record) => flows.push(record),
                other => panic!("{other:?}"),
            }
        }
        (blocked, flows)
    }
}

fn server_of(certificate: &Certificate) -> (TlsAcceptor, String) {
    let now = OffsetDateTime::now_utc();
    let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root_pem = root.self_signed(&root_key).unwrap().pem();
    let mut leaf = CertificateParams::new(vec![certificate.name.to_owned()]).unwrap();
    leaf.not_before = now - time::Duration::days(30);
    leaf.not_after = now + time::Duration::days(if certificate.is_expired { -1 } else { 30 });
    let leaf = leaf.signed_by(&key, &Issuer::new(root, root_key)).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())))
        .unwrap();
    config.alpn_protocols = certificate.protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    (TlsAcceptor::from(Arc::new(config)), root_pem)
}

/// A guest's HTTP client.
pub enum Client {
    Http1(hyper::client::conn::http1::SendRequest<ServerBody>),
    Http2(hyper::client::conn::http2::SendRequest<ServerBody>),
}

/// Both versions of HTTP.
pub const VERSIONS: [&str; 2] = ["http/1.1", "h2"];

impl Client {
    pub async fn new(world: &World, protocol: &str) -> (Self, JoinHandle<Outcome>) {
        let (stream, carried) = world.guest(NAME, &[protocol]).await;
        let stream = stream.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(protocol.as_bytes()));
        let client = if protocol == "h2" {
            let builder = hyper::client::conn::http2::Builder::new(LocalTasks);
            let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
            spawn_local(connection);
            Self::Http2(sender)
        } else {
            let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
            spawn_local(connection);
            Self::Http1(sender)
        };
        (client, carried)
    }

    /// Returns a request for `path` as this version of HTTP has it.
    pub fn request(&self, host: &str, path: &str) -> hyper::http::request::Builder {
        match self {
            Self::Http1(_) => Request::get(path).header("host", host),
            Self::Http2(_) => Request::get(format!("https://{host}{path}")).version(hyper::Version::HTTP_2),
        }
    }

    pub async fn send(&mut self, request: Request<ServerBody>) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }

    /// Sends a request. Returns the status of its answer and the body.
    pub async fn ask(&mut self, request: Request<ServerBody>) -> (u16, String) {
        read(self.send(request).await.unwrap()).await
    }
}

pub async fn read(answer: Response<impl Body<Data = Bytes, Error = hyper::Error>>) -> (u16, String) {
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}
