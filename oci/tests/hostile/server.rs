//! A server whose answers a test writes byte by byte, and an image for it to serve. May not check
//! what it is sent: that is the test's part.

use sandboxvm_oci::{Digest, Images, Limits, PullOptions, Pulled, Silent, registry::RegistryOptions};
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// Headers in lower case, names included.
    pub head: String,
    /// The header `Authorization`.
    pub authorization: Option<String>,
    pub body: Vec<u8>,
}

/// A running server. Its threads end with the process.
pub struct Server {
    pub port: u16,
    pub requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Answers every connection, after its request was read, with what `answer` writes.
    pub fn start(answer: impl Fn(&Request, &mut TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (requests, answer) = (Arc::new(Mutex::new(Vec::new())), Arc::new(answer));
        let seen = requests.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, seen, answer) = (stream.unwrap(), seen.clone(), answer.clone());
                thread::spawn(move || {
                    if let Some(request) = read(&mut stream) {
                        seen.lock().unwrap().push(request.clone());
                        answer(&request, &mut stream);
                    }
                });
            }
        });
        Self { port, requests }
    }

    pub fn host(&self) -> String {
        format!("localhost:{}", self.port)
    }

    pub fn count(&self, method: &str, path: &str) -> usize {
        let requests = self.requests.lock().unwrap();
        requests.iter().filter(|request| request.method == method && request.path.contains(path)).count()
    }
}

/// Reads the head of a request, and its body unless that is a blob: the test reads it.
fn read(stream: &mut TcpStream) -> Option<Request> {
    let (mut bytes, mut byte) = (Vec::new(), [0]);
    while !bytes.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        bytes.push(byte[0]);
    }
    let text = String::from_utf8(bytes).unwrap();
    let mut words = text.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let header = |name: &str| {
        let line = text.lines().find(|line| line.to_lowercase().starts_with(&format!("{name}: ")))?;
        Some(line[name.len() + 2..].to_owned())
    };
    let length = header("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; if path.contains("/blobs/") { 0 } else { length }];
    stream.read_exact(&mut body).ok()?;
    let authorization = header("authorization");
    Some(Request { method, path, head: text.to_lowercase(), authorization, body })
}

/// Writes a complete answer.
pub fn answer(stream: &mut TcpStream, status: u16, headers: &[&str], body: &[u8]) {
    let mut head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n", body.len());
    for header in headers {
        head = format!("{head}{header}\r\n");
    }
    let _ = stream.write_all(format!("{head}\r\n").as_bytes()).and_then(|()| stream.write_all(body));
}

/// An image of one layer, in memory.
#[derive(Clone)]
pub struct Image {
    pub layer: Vec<u8>,
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
    /// Digests of layer and configuration.
    pub names: [String; 2],
}

impl Image {
    /// Makes an image whose layer has `size` bytes, which are the same for each `seed`.
    pub fn new(size: usize, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        Self::of((0..size).map(|_| random.u8(..)).collect())
    }

    pub fn of(layer: Vec<u8>) -> Self {
        let config = json!({"os": "linux", "architecture": "amd64", "config": {"Env": ["A=1"]},
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer)]}});
        let config = config.to_string().into_bytes();
        let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("config.v1+json", &config), "layers": [descriptor("layer.v1.tar", &layer)]});
        let names = [Digest::of(&layer), Digest::of(&config)].map(|digest| digest.hex());
        Self { layer, config, manifest: manifest.to_string().into_bytes(), names }
    }

    /// Returns what a path of a registry leads to.
    pub fn content(&self, path: &str) -> Option<&[u8]> {
        let path = path.split('?').next().unwrap();
        if path.contains("/manifests/") {
            return Some(&self.manifest);
        }
        let all = [&self.layer, &self.config].into_iter().zip(&self.names);
        all.filter(|(_, name)| path.ends_with(&name[..])).map(|(bytes, _)| &bytes[..]).next()
    }

    pub fn is_layer(&self, path: &str) -> bool {
        path.contains("/blobs/") && path.ends_with(&self.names[0])
    }

    /// Answers as a registry does that has this image alone.
    pub fn serve(&self, request: &Request, stream: &mut TcpStream) {
        match self.content(&request.path) {
            Some(bytes) => answer(stream, 200, &[], bytes),
            None => answer(stream, 404, &[], b""),
        }
    }
}

pub fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": Digest::of(bytes), "size": bytes.len()})
}

pub fn options(plain: &[&Server]) -> RegistryOptions {
    RegistryOptions {
        plain_http: plain.iter().map(|server| server.host()).collect(),
        idle: Duration::from_secs(1),
        ..RegistryOptions::default()
    }
}

pub fn open(home: &tempfile::TempDir, options: RegistryOptions) -> Images {
    Images::open(home.path().join("images"), Limits::default(), options).unwrap()
}

/// Pulls `app:1` of a server into an empty store.
pub async fn pull(server: &Server, options: RegistryOptions) -> Result<Pulled, sandboxvm_oci::Error> {
    let home = tempfile::tempdir().unwrap();
    let images = open(&home, options);
    images.pull(&format!("{}/app:1", server.host()), PullOptions::default(), Arc::new(Silent)).await
}
