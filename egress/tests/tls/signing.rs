//! Requests that the guest signed with the placeholder of an access key of AWS.

use super::world::{Certificate, Client, NAME, PLACEHOLDER, ServerBody, VERSIONS, World, echo, run, text};
use bytes::Bytes;
use futures_util::{future::join, future::join_all, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::{Request, Response, body::Frame};
use std::{io, rc::Rc, time::Duration};
use tokio::{sync::Semaphore, time::sleep};

const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const HEADERS: &str = "content-type;host;x-amz-date";

/// botocore's signature of the request of [`post`], with the body `{"a":1}`.
const SIGNED: &str = "authorization: AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/dynamodb/aws4_request, \
    SignedHeaders=content-type;host;x-amz-date, \
    Signature=5267359778708ea01052891186b5143c823ef2eb95c84ba752e295527aa95fe5";

async fn world() -> World {
    let mut world = World::new(Certificate::default()).await;
    world.settings.header_rules.clear();
    world.settings.secrets[0].name = "AWS_ACCESS_KEY_ID".into();
    world.settings.secrets[0].value = Ok(format!("AKIDEXAMPLE\n{SECRET}"));
    world.configure();
    world
}

async fn echoing() -> World {
    let world = world().await;
    world.serve(echo());
    world
}

fn post(client: &Client, body: ServerBody, more: &[(&str, &str)]) -> Request<ServerBody> {
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={PLACEHOLDER}/20150830/us-east-1/dynamodb/aws4_request, \
         SignedHeaders={HEADERS}, Signature=5e"
    );
    let request = client.request(NAME, "/").method("POST").header("content-type", "application/x-amz-json-1.0");
    let request = request.header("x-amz-date", "20150830T123600Z").header("authorization", authorization);
    more.iter().fold(request, |request, (name, value)| request.header(*name, *value)).body(body).unwrap()
}

/// A body in parts whose length the head does not have.
fn parts(parts: &[&'static [u8]]) -> ServerBody {
    let frames: Vec<_> = parts.iter().map(|part| Ok::<_, io::Error>(Frame::data(Bytes::from_static(part)))).collect();
    StreamBody::new(stream::iter(frames)).boxed_unsync()
}

#[test]
fn request_is_signed_again_with_the_true_key_and_the_hash_of_its_body() {
    run(async {
        for protocol in VERSIONS {
            for body in [text("{\"a\":1}"), parts(&[b"{\"a\"", b":1}"])] {
                let world = echoing().await;
                let (mut client, _) = Client::new(&world, protocol).await;
                let request = post(&client, body, &[("expect", "100-continue")]);
                let (status, seen) = client.ask(request).await;
                assert_eq!(status, 200, "{seen}");
                assert!(seen.contains(SIGNED) && seen.ends_with("{\"a\":1}"), "{protocol}: {seen}");
                assert!(!seen.contains(PLACEHOLDER) && !seen.contains(SECRET), "{seen}");
                assert_eq!(world.recorded().0, []);
            }
        }
    });
}

#[test]
fn bodies_that_cannot_be_signed_do_not_reach_the_server() {
    run(async {
        for protocol in VERSIONS {
            let long: &'static [u8] = vec![b'x'; (8 << 20) + 1].leak();
            let placeholder: &'static [u8] = PLACEHOLDER.as_bytes();
            let streaming = [("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD")];
            for (body, more, status, reason) in [
                (parts(&[long]), &[][..], 501, "longer than 8 MiB"),
                (text("x"), &streaming, 501, "the parts of a streamed AWS payload"),
                (parts(&[b"a", placeholder]), &[], 403, "the body contains the placeholder of a secret"),
            ] {
                let world = echoing().await;
                let (mut client, _) = Client::new(&world, protocol).await;
                let request = post(&client, body, more);
                // The connection can end before the answer is read.
                if let Ok(answer) = client.send(request).await {
                    let (got, seen) = super::world::read(answer).await;
                    assert!(got == status && seen.contains(reason), "{protocol}: {got} {seen}");
                }
                let (blocked, flows) = world.recorded();
                assert_eq!((blocked.len(), flows.len()), if status == 403 { (1, 0) } else { (0, 1) }, "{reason}");
            }
        }
    });
}

/// A body that was read to be signed is in memory until the server has taken it.
#[test]
fn bodies_that_the_server_does_not_read_count_until_they_are_sent() {
    run(async {
        let world = world().await;
        let (begun, open) = (Rc::new(Semaphore::new(0)), Rc::new(Semaphore::new(0)));
        let (begins, opened) = (Rc::clone(&begun), Rc::clone(&open));
        world.serve(Rc::new(move |request| {
            begins.add_permits(1);
            let opened = Rc::clone(&opened);
            Box::pin(async move {
                opened.acquire().await.unwrap().forget();
                let body = request.into_body().collect().await.unwrap().to_bytes();
                Response::new(text(body.len().to_string()))
            })
        }));
        let (client, _) = Client::new(&world, "h2").await;
        let Client::Http2(sender) = client else { panic!("not HTTP/2") };
        let ask = |len: usize| {
            let mut client = Client::Http2(sender.clone());
            async move {
                let request = post(&client, text(vec![b'x'; len]), &[]);
                client.ask(request).await
            }
        };
        let first = join_all((0..4).map(|_| ask(2 << 20)));
        let others = async {
            // Each was read as a whole before its head was sent.
            begun.acquire_many(4).await.unwrap().forget();
            let (status, seen) = ask(1).await;
            assert!(status == 501 && seen.contains("signed at the same time"), "{status} {seen}");
            open.add_permits(10);
        };
        let (answers, ()) = join(first, others).await;
        assert!(answers.iter().all(|answer| *answer == (200, (2 << 20).to_string())), "{answers:?}");
        sleep(Duration::from_millis(100)).await;
        assert_eq!(ask(1).await, (200, "1".to_owned()));
    });
}

/// The body that is too long for a hash is passed on where the guest states that it is not signed.
#[test]
fn body_of_any_length_is_passed_on_when_it_is_not_signed() {
    run(async {
        let world = echoing().await;
        let (mut client, _) = Client::new(&world, "h2").await;
        let long = text(vec![b'x'; (8 << 20) + 1]);
        let request = post(&client, long, &[("x-amz-content-sha256", "UNSIGNED-PAYLOAD")]);
        let (status, seen) = client.ask(request).await;
        assert_eq!(status, 200);
        assert!(seen.contains("Credential=AKIDEXAMPLE/") && seen.len() > 8 << 20);
    });
}
