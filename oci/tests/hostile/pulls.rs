//! Pulls from registries and mirrors that stall, lie, redirect or break.

use crate::server::{Image, Server, answer, open, options, pull};
use sandboxvm_oci::{
    Digest, Error, PullOptions, Silent,
    registry::{RegistryError, RegistryOptions},
    store::StoreError,
};
use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

fn registry_error(result: Result<sandboxvm_oci::Pulled, Error>) -> RegistryError {
    match result {
        Err(Error::Registry(error)) => error,
        other => panic!("expected an error of a registry: {other:?}"),
    }
}

/// The exit code of curl(1) when its time has expired.
const CURL_TIMEOUT: i32 = 28;

/// Fetches a URL with a program that has none of the limits of a pull. Returns its exit code, and what it received.
fn curl(options: &[&str], url: &str) -> (Option<i32>, Vec<u8>) {
    let output = Command::new("curl").args(["-s", "-o", "-"]).args(options).arg(url).output();
    let output = output.expect("curl is installed");
    (output.status.code(), output.stdout)
}

#[tokio::test(flavor = "multi_thread")]
async fn trickling_registry_is_given_up() {
    let image = Image::new(1 << 20, 1);
    let layer = image.names[0].clone();
    let server = Server::start(move |request, stream| {
        if !image.is_layer(&request.path) {
            return image.serve(request, stream);
        }
        let _ = stream.write_all(b"HTTP/1.1 200 X\r\nContent-Length: 1048576\r\n\r\n");
        while stream.write_all(b"x").is_ok() {
            thread::sleep(Duration::from_millis(100));
        }
    });
    // A program without a limit stays: it receives something from time to time.
    let url = format!("http://{}/v2/app/blobs/sha256:{layer}", server.host());
    assert_eq!(curl(&["--max-time", "4"], &url).0, Some(CURL_TIMEOUT));
    let begun = Instant::now();
    let error = registry_error(pull(&server, options(&[&server])).await).to_string();
    assert!(error.ends_with("it sends too slowly"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(200), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn registry_that_never_lets_a_transfer_advance_is_given_up() {
    let (image, turn) = (Image::new(1 << 20, 1), AtomicUsize::new(0));
    let server = Server::start(move |request, stream| {
        if !image.is_layer(&request.path) {
            return image.serve(request, stream);
        }
        // Half of the blob, then no range of it, so that each transfer begins again.
        if turn.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
            let _ = stream.write_all(b"HTTP/1.1 200 X\r\nContent-Length: 1048576\r\n\r\n");
            let _ = stream.write_all(&image.layer[..1 << 19]);
        } else {
            answer(stream, 416, &[], b"");
        }
    });
    let error = registry_error(pull(&server, options(&[&server])).await);
    assert!(matches!(error, RegistryError::Unreachable { .. }), "{error}");
    assert!(server.count("GET", "/blobs/") < 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn pull_ends_at_its_deadline() {
    let server = Server::start(|_, _| thread::sleep(Duration::from_secs(60)));
    let options = RegistryOptions { total: Duration::from_millis(300), ..options(&[&server]) };
    let error = registry_error(pull(&server, options).await);
    assert!(matches!(error, RegistryError::Deadline(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_that_do_not_end_or_lose_encryption_are_refused() {
    let looping = Server::start(|request, stream| {
        answer(stream, 307, &[&format!("Location: {}", request.path)], b"");
    });
    let error = registry_error(pull(&looping, options(&[&looping])).await);
    assert!(matches!(error, RegistryError::Redirects(_)), "{error}");
    assert_eq!(looping.count("GET", ""), 6);

    let other = Server::start(|_, stream| answer(stream, 404, &[], b""));
    let location = format!("Location: http://{}/x", other.host());
    let server = Server::start(move |_, stream| answer(stream, 302, &[&location], b""));
    let error = registry_error(pull(&server, options(&[&server])).await);
    assert!(matches!(error, RegistryError::NotEncrypted(_)), "{error}");
    assert_eq!(other.count("GET", ""), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_is_not_what_was_stated_is_refused() {
    let good = Image::new(100_000, 1);
    for how in ["longer", "shorter", "other"] {
        let image = good.clone();
        let server = Server::start(move |request, stream| {
            if !image.is_layer(&request.path) {
                return image.serve(request, stream);
            }
            let mut layer = image.layer.clone();
            match how {
                "longer" => layer.push(0),
                "shorter" => layer.truncate(50_000),
                _ => layer[99_999] ^= 1,
            }
            // Without a length: the content ends with the connection.
            let _ = stream.write_all(b"HTTP/1.1 200 X\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(&layer);
        });
        // A program that does not compare digests takes it for the layer.
        let url = format!("http://{}/v2/app/blobs/sha256:{}", server.host(), good.names[0]);
        let (code, content) = curl(&[], &url);
        assert!(code == Some(0) && Digest::of(&content).hex() != good.names[0], "{how}");
        let error = registry_error(pull(&server, options(&[&server])).await);
        let is_it = match how {
            "longer" => matches!(error, RegistryError::Store(StoreError::WrongSize { .. })),
            "shorter" => matches!(error, RegistryError::Unreachable { .. }),
            _ => matches!(error, RegistryError::Store(StoreError::WrongDigest { .. })),
        };
        assert!(is_it, "{how}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_asked_first_and_their_faults_cost_no_pull() {
    let image = Image::new(300_000, 1);
    for fault in ["none", "missing", "corrupt", "broken", "manifest"] {
        let (served, of_mirror) = (image.clone(), image.clone());
        let server = Server::start(move |request, stream| served.serve(request, stream));
        let mirror = Server::start(move |request, stream| {
            if !request.path.ends_with(&format!("ns={}", "reg%2Eexample")) {
                return answer(stream, 400, &[], b"");
            }
            let path = request.path.split('?').next().unwrap();
            match (fault, of_mirror.is_layer(path)) {
                ("missing", _) => answer(stream, 404, &[], b""),
                ("manifest", false) => answer(stream, 200, &[], b"{}"),
                // Bytes that the registry is not asked for again.
                ("broken", true) => {
                    let _ = stream.write_all(b"HTTP/1.1 200 X\r\nContent-Length: 300000\r\n\r\n");
                    let _ = stream.write_all(&[7; 100_000]);
                }
                ("corrupt", true) => answer(stream, 200, &[], &[7; 300_000]),
                _ => answer(stream, 200, &[], of_mirror.content(&request.path).unwrap()),
            }
        });
        // The registry itself is found under another name, as a second mirror.
        let mirrors = BTreeMap::from([("reg.example".to_owned(), vec![mirror.host(), server.host()])]);
        let home = tempfile::tempdir().unwrap();
        let images = open(&home, RegistryOptions { mirrors, ..options(&[&mirror, &server]) });
        let pulled = images.pull("reg.example/app:1", PullOptions::default(), Arc::new(Silent)).await;
        if fault == "manifest" {
            // A mirror is trusted for what a tag leads to, but for no content.
            assert!(matches!(pulled, Err(Error::Manifest(_))), "{pulled:?}");
            continue;
        }
        pulled.unwrap();
        assert_eq!(server.count("GET", "/blobs/") == 0, fault == "none", "{fault}");
        assert!(mirror.count("GET", "/v2/") > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_start_of_an_earlier_pull_is_discarded() {
    let image = Image::new(300_000, 1);
    let (served, hex) = (image.clone(), sandboxvm_oci::Digest::of(&image.layer).hex());
    let server = Server::start(move |request, stream| {
        let from = request.head.split("bytes=").nth(1).map(|text| text.split('-').next().unwrap().parse().unwrap());
        match (served.is_layer(&request.path), from) {
            (true, Some(from)) => {
                let range = format!("Content-Range: bytes {from}-299999/300000");
                answer(stream, 206, &[&range], &served.layer[from..]);
            }
            _ => served.serve(request, stream),
        }
    });
    let home = tempfile::tempdir().unwrap();
    let images = open(&home, options(&[&server]));
    fs::write(home.path().join("images/partial").join(hex), "what another registry sent").unwrap();
    images.pull(&format!("{}/app:1", server.host()), PullOptions::default(), Arc::new(Silent)).await.unwrap();
    assert_eq!(server.count("GET", "/blobs/"), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn digests_of_another_algorithm_are_refused_by_name() {
    let mut image = Image::new(10, 1);
    let text = String::from_utf8(image.manifest.clone()).unwrap();
    let sha512 = format!("sha512:{}", "0".repeat(128));
    image.manifest = text.replace(&sandboxvm_oci::Digest::of(&image.layer).to_string(), &sha512).into_bytes();
    let server = Server::start(move |request, stream| image.serve(request, stream));
    let error = pull(&server, options(&[&server])).await.unwrap_err().to_string();
    assert!(error.contains("digest algorithm \"sha512\""), "{error}");
    let home = tempfile::tempdir().unwrap();
    let name = format!("{}/app@{sha512}", server.host());
    let images = open(&home, options(&[&server]));
    let error = images.pull(&name, PullOptions::default(), Arc::new(Silent)).await.unwrap_err().to_string();
    assert!(error.contains("digest algorithm \"sha512\""), "{error}");
}
