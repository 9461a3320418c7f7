//! Images from docker's daemon, by its API on a socket.

use crate::{archives::archive_of, server::Image};
use sandboxvm_oci::{Digest, Images, Limits, registry::RegistryOptions};
use std::{
    env,
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
};
use tempfile::TempDir;

/// Answers every connection to a socket in `home`, and returns the socket and the first lines of the
/// requests.
fn daemon(home: &TempDir, answer: impl Fn(&mut UnixStream) + Send + 'static) -> (PathBuf, Arc<Mutex<Vec<String>>>) {
    let socket = home.path().join("docker.sock");
    let _ = std::fs::remove_file(&socket);
    let (listener, requests) = (UnixListener::bind(&socket).unwrap(), Arc::new(Mutex::new(Vec::new())));
    let seen = requests.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, mut buffer) = (stream.unwrap(), [0; 8192]);
            let count = stream.read(&mut buffer).unwrap();
            let request = String::from_utf8_lossy(&buffer[..count]).into_owned();
            seen.lock().unwrap().push(request.lines().next().unwrap().to_owned());
            answer(&mut stream);
        }
    });
    (socket, requests)
}

fn open(home: &TempDir) -> Images {
    Images::open(home.path().join("images"), Limits::default(), RegistryOptions::default()).unwrap()
}

/// Sends an archive as the daemon does: in pieces, without its length.
fn chunked(stream: &mut UnixStream, bytes: &[u8]) -> std::io::Result<()> {
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-tar\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    for piece in bytes.chunks(10_000) {
        stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes())?;
        stream.write_all(piece)?;
        stream.write_all(b"\r\n")?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn image_of_a_daemon_is_loaded_under_the_name_that_was_asked_for() {
    let (home, image) = (tempfile::tempdir().unwrap(), Image::new(100_000, 1));
    let archive = archive_of(&image, "reg.example/what-the-archive-says:1");
    let (socket, requests) = daemon(&home, move |stream| {
        chunked(stream, &archive).and_then(|()| stream.write_all(b"0\r\n\r\n")).unwrap();
    });
    let images = open(&home);
    let name = images.reference("reg.example:5000/team/app:1").unwrap();
    let loaded = images.load_daemon(&socket, &name, &name).await.unwrap();
    assert_eq!((loaded.len(), &loaded[0].references[..]), (1, &[name][..]));
    assert_eq!(images.inspect("reg.example:5000/team/app:1").unwrap().layers[0].digest, Digest::of(&image.layer));
    assert_eq!(requests.lock().unwrap()[..], ["GET /images/reg.example:5000/team/app:1/get HTTP/1.1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_of_a_daemon_are_reported_and_leave_nothing() {
    let (home, image) = (tempfile::tempdir().unwrap(), Image::new(100_000, 1));
    let archive = archive_of(&image, "reg.example/app:1");
    let images = open(&home);
    let name = images.reference("reg.example/app:1").unwrap();
    let missing = home.path().join("none.sock");
    let error = images.load_daemon(&missing, &name, &name).await.unwrap_err().to_string();
    assert!(error.contains("none.sock: No such file"), "{error}");
    let answer = |status: &str, body: &str| {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()).into_bytes()
    };
    let message = answer("404 Not Found", "{\"message\":\"reference does not exist\\u001b[31m\"}");
    let large = answer("500 Internal Server Error", &"x".repeat(1 << 20));
    let garbage = b"SSH-2.0-x\r\n\r\n".to_vec();
    for (bytes, expected) in
        [(message, "reference does not exist[31m"), (large, "it answers 500 Internal Server Error"), (garbage, "")]
    {
        let (socket, _) = daemon(&home, move |stream| _ = stream.write_all(&bytes));
        let error = images.load_daemon(&socket, &name, &name).await.unwrap_err().to_string();
        assert!(error.starts_with("cannot load the image from docker at ") && error.ends_with(expected), "{error}");
    }
    // An archive that is cut, in the middle and before its last piece.
    for length in [30_000, archive.len()] {
        let cut = archive[..length].to_vec();
        let (socket, _) = daemon(&home, move |stream| _ = chunked(stream, &cut));
        let loaded = images.load_daemon(&socket, &name, &name).await;
        assert_eq!(loaded.is_ok(), length == archive.len(), "{loaded:?}");
    }
    images.remove("reg.example/app:1", &[]).unwrap();
    assert_eq!(images.prune(&[]).unwrap().files, 0);
}

/// Loads an image of a real daemon: `SANDBOXVM_DOCKER="/run/docker.sock NAME" cargo test -- --ignored`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs docker's daemon"]
async fn image_of_a_real_daemon_is_loaded() {
    let stated = env::var("SANDBOXVM_DOCKER").unwrap();
    let (socket, name) = stated.split_once(' ').unwrap();
    let home = tempfile::tempdir().unwrap();
    let images = open(&home);
    let wanted = images.reference(name).unwrap();
    let loaded = images.load_daemon(Path::new(socket), &wanted, &wanted).await.unwrap();
    println!("{loaded:?}\n{:?}", images.inspect(name).unwrap());
    let error = images.load_daemon(Path::new(socket), &images.reference("none:1").unwrap(), &wanted).await.unwrap_err();
    println!("{error}");
}
