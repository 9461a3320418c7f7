//! Pushes to registries that stall, break, or received something else.

use crate::server::{Image, Request, Server, answer, open, options};
use sandboxvm_oci::{
    Digest, Error, Event, PullOptions, PushOptions, Silent,
    registry::{RegistryError, RegistryOptions},
};
use std::{
    io::Read,
    net::TcpStream,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

/// Pushes an image with a layer of `size` bytes to a registry that has nothing. `put` answers the uploads
/// of blobs, `manifest` that of the manifest.
async fn push(
    size: usize,
    put: impl Fn(&Request, &mut TcpStream) + Send + Sync + 'static,
    manifest: impl Fn(&Request, &mut TcpStream) + Send + Sync + 'static,
    change: impl Fn(RegistryOptions) -> RegistryOptions,
) -> (Result<(), Error>, Vec<Event>) {
    let image = Image::new(size, 1);
    let from = Server::start(move |request, stream| image.serve(request, stream));
    let to = Server::start(move |request, stream| match request.method.as_str() {
        "HEAD" => answer(stream, 404, &[], b""),
        "POST" => answer(stream, 202, &["Location: /v2/app/blobs/uploads/1?state=x"], b""),
        _ if request.path.contains("/manifests/") => manifest(request, stream),
        _ => put(request, stream),
    });
    let home = tempfile::tempdir().unwrap();
    let images = open(&home, options(&[&from, &to]));
    let name = format!("{}/app:1", from.host());
    images.pull(&name, PullOptions::default(), Arc::new(Silent)).await.unwrap();
    let events = Arc::new(Mutex::new(Vec::new()));
    let seen = events.clone();
    let note = move |event| seen.lock().unwrap().push(event);
    let target = format!("{}/app:1", to.host());
    let images = open(&home, change(options(&[&to])));
    let pushed = images.push(&name, &target, PushOptions::default(), Arc::new(note)).await;
    let events = events.lock().unwrap().clone();
    (pushed, events)
}

fn length(request: &Request) -> usize {
    request.head.split("content-length: ").nth(1).unwrap().split('\r').next().unwrap().parse().unwrap()
}

fn created(request: &Request, stream: &mut TcpStream) {
    let mut body = vec![0; length(request) - request.body.len()];
    if stream.read_exact(&mut body).is_ok() {
        answer(stream, 201, &[], b"");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stalled_upload_is_given_up() {
    let stall = |request: &Request, stream: &mut TcpStream| {
        if length(request) < 100_000 {
            return created(request, stream);
        }
        let mut some = [0; 1000];
        let _ = stream.read_exact(&mut some);
        thread::sleep(Duration::from_secs(120));
    };
    let (pushed, events) = push(12_000_000, stall, created, |options| options).await;
    let error = pushed.unwrap_err().to_string();
    assert!(error.ends_with("it accepts nothing, or too slowly"), "{error}");
    assert_eq!(events.iter().filter(|event| matches!(event, Event::Retrying { .. })).count(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_uploads_are_tried_again() {
    let (turn, other_turn) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let cut = move |request: &Request, stream: &mut TcpStream| {
        if length(request) > 100_000 && turn.fetch_add(1, Ordering::SeqCst) < 2 {
            let mut some = vec![0; 50_000];
            let _ = stream.read_exact(&mut some);
            return;
        }
        created(request, stream);
    };
    let unavailable = move |request: &Request, stream: &mut TcpStream| match other_turn.fetch_add(1, Ordering::SeqCst) {
        0 => answer(stream, 503, &[], b""),
        1 => {}
        _ => created(request, stream),
    };
    let (pushed, events) = push(300_000, cut, unavailable, |options| options).await;
    pushed.unwrap();
    assert_eq!(events.iter().filter(|event| matches!(event, Event::Retrying { offset: 0, .. })).count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn registry_that_received_something_else_is_an_error() {
    let other = |request: &Request, stream: &mut TcpStream| {
        let mut body = vec![0; length(request) - request.body.len()];
        stream.read_exact(&mut body).unwrap();
        answer(stream, 201, &[&format!("Docker-Content-Digest: {}", Digest::of(b"other"))], b"");
    };
    for (pushed, _) in
        [push(1000, other, created, |options| options).await, push(1000, created, other, |options| options).await]
    {
        let error = pushed.unwrap_err();
        assert!(matches!(error, Error::Registry(RegistryError::WrongDigest { .. })), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn push_ends_at_its_deadline() {
    let slow = |_: &Request, _: &mut TcpStream| thread::sleep(Duration::from_secs(60));
    let total = Duration::from_millis(500);
    let (pushed, _) =
        push(1000, slow, created, |options| RegistryOptions { total, idle: Duration::from_secs(20), ..options }).await;
    let error = pushed.unwrap_err();
    assert!(matches!(error, Error::Registry(RegistryError::Deadline(_))), "{error}");
}
