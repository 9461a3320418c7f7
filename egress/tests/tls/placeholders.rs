//! A placeholder in every place where it may not be.

use super::world::{
    Certificate, Client, Handler, NAME, OTHER_PLACEHOLDER, PLACEHOLDER, ServerBody, VERSIONS, World, run, text,
};
use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::{HeaderMap, Response, body::Frame};
use std::{cell::RefCell, io, rc::Rc};

/// Bodies that reached the server: whether each was complete.
type Seen = Rc<RefCell<Vec<bool>>>;

fn counting() -> (Handler, Seen) {
    let seen = Seen::default();
    let handler: Handler = {
        let seen = Rc::clone(&seen);
        Rc::new(move |request| {
            let seen = Rc::clone(&seen);
            Box::pin(async move {
                let whole = request.into_body().collect().await.is_ok();
                seen.borrow_mut().push(whole);
                Response::new(text("seen"))
            })
        })
    };
    (handler, seen)
}

fn parts(parts: Vec<Frame<Bytes>>) -> ServerBody {
    StreamBody::new(stream::iter(parts.into_iter().map(Ok::<_, io::Error>))).boxed_unsync()
}

#[test]
fn placeholder_in_the_wrong_place_of_a_head_is_blocked() {
    run(async {
        for protocol in VERSIONS {
            for (path, header, secret) in [
                (format!("/?key={PLACEHOLDER}"), ("x", "y"), "API_TOKEN"),
                (format!("/%73{}", &PLACEHOLDER[1..]), ("x", "y"), "API_TOKEN"),
                ("/".to_owned(), (PLACEHOLDER, "y"), "API_TOKEN"),
                ("/".to_owned(), ("authorization", OTHER_PLACEHOLDER), "OTHER"),
            ] {
                let world = World::new(Certificate::default()).await;
                let (handler, seen) = counting();
                world.serve(handler);
                let (mut client, _) = Client::new(&world, protocol).await;
                let request = client.request(NAME, &path).header(header.0, header.1).body(text("")).unwrap();
                let (status, shown) = client.ask(request).await;
                assert_eq!(status, 403, "{shown}");
                assert!(seen.borrow().is_empty());
                let (blocked, _) = world.recorded();
                assert_eq!((blocked.len(), &*blocked[0].secret, &*blocked[0].host), (1, secret, NAME));
            }
        }
    });
}

#[test]
fn placeholder_in_a_body_cuts_the_request_off() {
    run(async {
        let percent: String = PLACEHOLDER.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let (first, second) = PLACEHOLDER.split_at(20);
        let data = |text: &str| Frame::data(Bytes::from(text.to_owned()));
        let trailers = || {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-checksum", PLACEHOLDER.parse().unwrap());
            Frame::trailers(trailers)
        };
        for protocol in VERSIONS {
            let bodies: Vec<ServerBody> = vec![
                text(format!("{{\"key\":\"{PLACEHOLDER}\"}}")),
                text(format!("key={percent}")),
                parts(vec![data("x"), data(first), data(second), data("y")]),
                parts(vec![data(&"x".repeat(100_000)), data(PLACEHOLDER), data(&"y".repeat(100_000))]),
                parts(vec![data("x"), trailers()]),
            ];
            for (number, body) in bodies.into_iter().enumerate() {
                let world = World::new(Certificate::default()).await;
                let (handler, seen) = counting();
                world.serve(handler);
                let (mut client, _) = Client::new(&world, protocol).await;
                let request = client.request(NAME, "/").method("POST").header("trailer", "x-checksum");
                // The connection can end before the answer is read.
                if let Ok(answer) = client.send(request.body(body).unwrap()).await {
                    assert_eq!(answer.status(), 403, "{protocol} {number}");
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                assert!(!seen.borrow().contains(&true), "{protocol} {number}");
                let (blocked, _) = world.recorded();
                assert_eq!(blocked.len(), 1, "{protocol} {number}");
                assert_eq!(blocked[0].reason, "the body contains the placeholder of a secret");
            }
        }
    });
}
