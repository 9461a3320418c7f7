//! Pulls and pushes with a real registry on loopback, Debian's docker-registry, and images that
//! umoci makes. The tests need the packages docker-registry, skopeo, umoci and apache2-utils, and
//! are skipped with a message where those are missing.

#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "../../tests/host/registry.rs"]
#[allow(dead_code, reason = "each test binary uses a part")]
mod host;

use host::{Registry, run};
use sandboxvm_oci::{
    Error, Event, Images, Limits, PullOptions, PushOptions, Silent,
    registry::{Credentials, Reach, RegistryError, RegistryOptions},
};
use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};
use tempfile::TempDir;

fn has_tools() -> bool {
    let has = ["docker-registry", "skopeo", "umoci", "htpasswd"].iter().all(|tool| {
        Command::new("which").arg(tool).stdout(Stdio::null()).status().is_ok_and(|status| status.success())
    });
    if !has {
        println!("skipped: install docker-registry, skopeo, umoci and apache2-utils");
    }
    has
}

fn plain() -> Registry {
    Registry::start(tempfile::tempdir().unwrap(), "", "")
}

/// Makes an OCI layout with an image of one layer of `bytes` random bytes.
fn layout(directory: &Path, bytes: usize) {
    let layout = directory.join("layout").display().to_string();
    let image = format!("{layout}:test");
    let file = directory.join("file");
    let mut random = fastrand::Rng::with_seed(7);
    fs::write(&file, (0..bytes).map(|_| random.u8(..)).collect::<Vec<_>>()).unwrap();
    run("umoci", &["init", "--layout", &layout]);
    run("umoci", &["new", "--image", &image]);
    run("umoci", &["insert", "--rootless", "--image", &image, &file.display().to_string(), "/file"]);
    run(
        "umoci",
        &["config", "--image", &image, "--config.user", "app", "--config.env", "A=1", "--config.cmd", "/file"],
    );
}

fn fill(registry: &Registry, name: &str, bytes: usize) {
    let directory = tempfile::tempdir().unwrap();
    layout(directory.path(), bytes);
    let from = format!("oci:{}:test", directory.path().join("layout").display());
    run("skopeo", &["copy", "--dest-tls-verify=false", &from, &format!("docker://{}/{name}", registry.host())]);
}

fn options(host: &str) -> RegistryOptions {
    RegistryOptions { plain_http: vec![host.to_owned()], idle: Duration::from_secs(5), ..RegistryOptions::default() }
}

fn open(home: &TempDir, options: RegistryOptions) -> Images {
    Images::open(home.path().join("images"), Limits::default(), options).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn image_is_pulled_inspected_pushed_and_removed() {
    if !has_tools() {
        return;
    }
    let (registry, home) = (plain(), tempfile::tempdir().unwrap());
    fill(&registry, "team/app:1", 300_000);
    let images = open(&home, RegistryOptions { default_registry: Some(registry.host()), ..options(&registry.host()) });
    let pulled = images.pull("team/app:1", PullOptions::default(), Arc::new(Silent)).await.unwrap();
    let details = images.inspect("team/app:1").unwrap();
    assert_eq!((details.manifest, details.layers.len()), (pulled.manifest, 1));
    let image = &details.configuration.image;
    assert_eq!(
        (image.user.as_str(), &image.env[..], &image.cmd[..]),
        ("app", &["A=1".to_owned()][..], &["/file".to_owned()][..])
    );

    let events = Arc::new(Mutex::new(Vec::new()));
    let seen = events.clone();
    images
        .pull("team/app:1", PullOptions::default(), Arc::new(move |event| seen.lock().unwrap().push(event)))
        .await
        .unwrap();
    assert!(!events.lock().unwrap().iter().any(|event| matches!(event, Event::Transferred { .. })));
    let by_digest = format!("team/app@{}", pulled.manifest);
    images.pull(&by_digest, PullOptions::default(), Arc::new(Silent)).await.unwrap();

    images.push("team/app:1", "other/copy:2", PushOptions::default(), Arc::new(Silent)).await.unwrap();
    run("skopeo", &["inspect", "--tls-verify=false", &format!("docker://{}/other/copy:2", registry.host())]);

    images.tag("team/app:1", "kept:1").unwrap();
    let several = images.remove(&pulled.manifest.to_string(), &[]).unwrap_err();
    assert!(several.to_string().contains("/kept:1, "), "{several}");
    assert_eq!(images.remove("team/app:1", &[]).unwrap().1.files, 0);
    assert_eq!(images.remove(&by_digest, &[]).unwrap().1.files, 0);
    assert_eq!(images.remove(&pulled.manifest.to_string(), &[]).unwrap().1.files, 3);
    assert!(images.list().unwrap().is_empty());
    let missing = images.pull("team/none:1", PullOptions::default(), Arc::new(Silent)).await.unwrap_err();
    assert!(matches!(missing, Error::Registry(RegistryError::NotFound { .. })), "{missing}");
}

/// Passes connections on, and cuts each after a random number of bytes of the answer.
fn cutting_proxy(to: u16) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut random = fastrand::Rng::with_seed(3);
        for client in listener.incoming() {
            let (mut client, budget) = (client.unwrap(), random.usize(70_000..600_000));
            thread::spawn(move || {
                let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, to)).unwrap();
                let (mut from, mut into) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || std::io::copy(&mut from, &mut into));
                let mut buffer = [0; 4096];
                let mut left = budget;
                while left > 0 {
                    let Ok(count @ 1..) = server.read(&mut buffer) else { break };
                    let count = count.min(left);
                    if client.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                    left -= count;
                }
                let _ = client.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn pull_continues_after_cut_connections() {
    if !has_tools() {
        return;
    }
    let (registry, home) = (plain(), tempfile::tempdir().unwrap());
    fill(&registry, "big:1", 3_000_000);
    let host = format!("localhost:{}", cutting_proxy(registry.port()));
    let images = open(&home, options(&host));
    let offsets = Arc::new(Mutex::new(Vec::new()));
    let seen = offsets.clone();
    let note = move |event| {
        if let Event::Retrying { offset, .. } = event {
            seen.lock().unwrap().push(offset);
        }
    };
    images.pull(&format!("{host}/big:1"), PullOptions::default(), Arc::new(note)).await.unwrap();
    let offsets = offsets.lock().unwrap();
    assert!(offsets.len() >= 3 && offsets.is_sorted() && offsets[0] > 0, "{offsets:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn password_and_private_authority_are_used() {
    if !has_tools() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let path = |name: &str| home.path().join(name).display().to_string();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    fs::write(path("cert.pem"), made.cert.pem()).unwrap();
    fs::write(path("key.pem"), made.signing_key.serialize_pem()).unwrap();
    run("htpasswd", &["-Bbc", &path("htpasswd"), "user", "right"]);
    let tls = format!("  tls:\n    certificate: {}\n    key: {}\n", path("cert.pem"), path("key.pem"));
    let auth = format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", path("htpasswd"));
    let authority = home.path().join("cert.pem");
    let registry = Registry::start(home, &tls, &auth);
    let directory = tempfile::tempdir().unwrap();
    layout(directory.path(), 1000);
    let from = format!("oci:{}:test", directory.path().join("layout").display());
    let to = format!("docker://{}/app:1", registry.host());
    run("skopeo", &["copy", "--dest-tls-verify=false", "--dest-creds", "user:right", &from, &to]);

    let store = tempfile::tempdir().unwrap();
    let trusting = RegistryOptions { authorities: vec![authority], ..RegistryOptions::default() };
    let images = open(&store, trusting);
    let name = format!("{}/app:1", registry.host());
    let pull = async |password: Option<&str>| {
        let credentials =
            password.map(|password| Credentials::Password { user: "user".into(), password: password.into() });
        images.pull(&name, PullOptions { credentials }, Arc::new(Silent)).await
    };
    for wrong in [None, Some("wrong")] {
        let error = pull(wrong).await.unwrap_err();
        assert!(matches!(error, Error::Registry(RegistryError::Denied { .. })), "{error}");
    }
    pull(Some("right")).await.unwrap();
    let untrusting = open(&store, RegistryOptions::default());
    let error = untrusting.pull(&name, PullOptions::default(), Arc::new(Silent)).await.unwrap_err().to_string();
    assert!(error.contains("certificate"), "{error}");
}

/// Allows loopback alone.
#[derive(Debug)]
struct Loopback;

impl Reach for Loopback {
    fn may_resolve(&self, host: &str) -> bool {
        host == "localhost"
    }

    fn allows(&self, _: &str, address: SocketAddr) -> bool {
        address.ip().is_loopback()
    }
}

/// Answers every connection with `answer`, and returns its port and the requests.
fn fixed_server(answer: String) -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (port, requests) = (listener.local_addr().unwrap().port(), Arc::new(Mutex::new(Vec::new())));
    let seen = requests.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut buffer = [0; 8192];
            let count = stream.read(&mut buffer).unwrap();
            seen.lock().unwrap().push(String::from_utf8_lossy(&buffer[..count]).into_owned());
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    (port, requests)
}

async fn pull_from(port: u16, mut plain: Vec<String>) -> Error {
    let (host, home) = (format!("localhost:{port}"), tempfile::tempdir().unwrap());
    plain.push(host.clone());
    let with = RegistryOptions { plain_http: plain, reach: Arc::new(Loopback), ..RegistryOptions::default() };
    let credentials = Some(Credentials::Password { user: "user".into(), password: "secret".into() });
    open(&home, with).pull(&format!("{host}/a:1"), PullOptions { credentials }, Arc::new(Silent)).await.unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_and_token_services_cannot_lead_to_forbidden_addresses() {
    for scheme in ["http", "https"] {
        let location = format!("{scheme}://169.254.169.254/latest/meta-data");
        let redirect = format!(
            "HTTP/1.1 307 Temporary Redirect\r\nLocation: {location}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        let challenge = format!(
            "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"{location}\",service=\"x\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        for answer in [redirect, challenge] {
            let error = pull_from(fixed_server(answer.clone()).0, vec!["169.254.169.254".into()]).await;
            assert!(matches!(error, Error::Registry(RegistryError::NotAllowed(_))), "{error}");
            let error = pull_from(fixed_server(answer).0, Vec::new()).await;
            let refused =
                matches!(error, Error::Registry(RegistryError::NotAllowed(_) | RegistryError::NotEncrypted(_)));
            assert!(refused, "{error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redirect_to_another_host_receives_no_credentials() {
    let not_found = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned();
    let (other, requests) = fixed_server(not_found);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let registry = thread::spawn(move || {
        let answers = [
            "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned(),
            format!("HTTP/1.1 307 Temporary Redirect\r\nLocation: http://localhost:{other}/x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
        ];
        answers.map(|answer| {
            let (mut stream, mut buffer) = (listener.accept().unwrap().0, [0; 8192]);
            let count = stream.read(&mut buffer).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&buffer[..count]).to_lowercase().contains("authorization: basic")
        })
    });
    pull_from(port, vec![format!("localhost:{other}")]).await;
    assert_eq!(registry.join().unwrap(), [false, true]);
    let requests = requests.lock().unwrap();
    assert_eq!(requests.len(), 1);
    assert!(!requests[0].to_lowercase().contains("authorization"), "{}", requests[0]);
    drop(requests);
    // A client that trusts every redirect sends them.
    let found = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned();
    let (other, requests) = fixed_server(found);
    let location = format!("Location: http://localhost:{other}/x");
    let (redirecting, _) = fixed_server(format!(
        "HTTP/1.1 307 Temporary Redirect\r\n{location}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    ));
    run("curl", &["-s", "--location-trusted", "-u", "user:secret", &format!("http://localhost:{redirecting}/")]);
    assert!(requests.lock().unwrap()[0].to_lowercase().contains("authorization: basic"));
}

#[test]
fn archives_and_layouts_are_loaded() {
    if !has_tools() {
        return;
    }
    let (home, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    layout(home.path(), 10_000);
    let path = |name: &str| home.path().join(name).display().to_string();
    let from = format!("oci:{}:test", path("layout"));
    run("skopeo", &["copy", &from, &format!("oci-archive:{}", path("oci.tar"))]);
    run("skopeo", &["copy", &from, &format!("docker-archive:{}:registry.example/saved:1", path("docker.tar"))]);
    run("gzip", &["--keep", &path("docker.tar")]);
    let images = open(&store, RegistryOptions::default());
    let name = |text: &str| images.reference(text).unwrap();
    let layout = images.load_layout(&home.path().join("layout"), Some(&name("registry.example/l:1"))).unwrap();
    let open_file = |file: &str| fs::File::open(path(file)).unwrap();
    let archive = images.load(open_file("oci.tar"), Some(&name("registry.example/a:1"))).unwrap();
    assert_eq!(layout[0].manifest, archive[0].manifest);
    let docker = images.load(open_file("docker.tar"), None).unwrap();
    assert_eq!(docker[0].references, [name("registry.example/saved:1")]);
    assert_eq!(images.load(open_file("docker.tar.gz"), None).unwrap(), docker);
    let (one, other) =
        (images.inspect("registry.example/l:1").unwrap(), images.inspect("registry.example/saved:1").unwrap());
    assert_eq!(one.configuration, other.configuration);
    assert!(matches!(images.load(open_file("oci.tar"), None), Err(Error::Load(_))));
    images.save("registry.example/l:1", fs::File::create(path("saved.tar")).unwrap()).unwrap();
    for format in ["oci-archive", "docker-archive"] {
        run("skopeo", &["inspect", &format!("{format}:{}", path("saved.tar"))]);
    }
    images.remove("registry.example/l:1", &[]).unwrap();
    assert_eq!(images.load(open_file("saved.tar"), None).unwrap(), layout);
    let mut cut = fs::read(path("docker.tar")).unwrap();
    cut.truncate(6000);
    images.load(&cut[..], None).unwrap_err();
    assert_eq!(images.prune(&[]).unwrap().files, 0, "failed loads leave nothing");
}

/// The process that the test below kills.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by killed_pulls_leave_nothing_corrupt"]
async fn pull_for_the_test_that_kills() {
    let Ok(text) = std::env::var("SANDBOXVM_OCI_PULL") else { return };
    let (host, root) = text.split_once(' ').unwrap();
    let images = Images::open(root, Limits::default(), options(host)).unwrap();
    images.pull(&format!("{host}/big:1"), PullOptions::default(), Arc::new(Silent)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_pulls_leave_nothing_corrupt() {
    if !has_tools() {
        return;
    }
    let (registry, home) = (plain(), tempfile::tempdir().unwrap());
    fill(&registry, "big:1", 12_000_000);
    let root = home.path().join("images");
    let mut random = fastrand::Rng::with_seed(5);
    let mut killed = 0;
    for _ in 0..12 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "pull_for_the_test_that_kills", "--ignored"])
            .env("SANDBOXVM_OCI_PULL", format!("{} {}", registry.host(), root.display()))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(random.u64(5..900)));
        child.kill().unwrap();
        killed += u32::from(!child.wait().unwrap().success());
        // Whatever has its final name is whole.
        for blob in fs::read_dir(root.join("blobs/sha256")).into_iter().flatten() {
            let path = blob.unwrap().path();
            let digest = sandboxvm_oci::Digest::of(&fs::read(&path).unwrap());
            assert_eq!(path.file_name().unwrap().to_str().unwrap(), digest.hex());
        }
    }
    assert!(killed >= 3, "{killed} pulls were killed");
    let images = open(&home, options(&registry.host()));
    let pulled =
        images.pull(&format!("{}/big:1", registry.host()), PullOptions::default(), Arc::new(Silent)).await.unwrap();
    images.prune(&[]).unwrap();
    assert_eq!(images.list().unwrap()[0].tag.manifest, pulled.manifest);
    let left = |name: &str| fs::read_dir(root.join(name)).unwrap().count();
    assert_eq!((left("blobs/sha256"), left("partial"), left("holds")), (3, 0, 0));
}
