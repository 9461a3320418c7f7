//! Bodies of any size, both ways, and what lives longer than one request.

use super::world::{Certificate, Client, Handler, NAME, ServerBody, VERSIONS, World, echo, run, text};
use bytes::Bytes;
use futures_util::{StreamExt, future::join_all, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::{HeaderMap, Response, body::Frame};
use sandboxvm_egress::tls::Outcome;
use std::{
    cell::RefCell,
    io,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
    time::{sleep, timeout},
};

const PART: usize = 32 * 1024;
const SIZE: usize = 50 << 20;

/// A body whose bytes follow from their position.
fn large(size: usize) -> ServerBody {
    let parts = (0..size / PART).map(|number| Ok::<_, io::Error>(Frame::data(part(number))));
    StreamBody::new(stream::iter(parts)).boxed_unsync()
}

fn part(number: usize) -> Bytes {
    let seed = u8::try_from(number % 251).unwrap();
    Bytes::from(vec![seed; PART])
}

/// Reads a body, checks its bytes, and returns its length.
async fn checked(mut body: impl hyper::body::Body<Data = Bytes, Error = hyper::Error> + Unpin) -> usize {
    let mut len = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.unwrap().into_data() else { continue };
        for (at, byte) in data.iter().enumerate().step_by(997) {
            assert_eq!(usize::from(*byte), (len + at) / PART % 251);
        }
        len += data.len();
    }
    len
}

#[test]
fn large_bodies_pass_both_ways() {
    run(async {
        for protocol in VERSIONS {
            let world = World::new(Certificate::default()).await;
            world.serve(Rc::new(|request| {
                Box::pin(async move {
                    assert_eq!(checked(request.into_body()).await, SIZE);
                    Response::new(large(SIZE))
                })
            }));
            let (mut client, _) = Client::new(&world, protocol).await;
            let request = client.request(NAME, "/").method("PUT").body(large(SIZE)).unwrap();
            let answer = client.send(request).await.unwrap();
            assert_eq!(checked(answer.into_body()).await, SIZE, "{protocol}");
        }
    });
}

#[test]
fn reader_that_does_not_read_holds_its_sender_back_and_no_other_stream() {
    run(async {
        for protocol in VERSIONS {
            let world = World::new(Certificate::default()).await;
            let sent = Arc::new(AtomicUsize::new(0));
            let handler: Handler = {
                let sent = Arc::clone(&sent);
                Rc::new(move |request| {
                    let sent = Arc::clone(&sent);
                    Box::pin(async move {
                        if request.uri().path() != "/large" {
                            return Response::new(text("small"));
                        }
                        let parts = stream::iter(0..SIZE / PART).map(move |number| {
                            sent.fetch_add(PART, Relaxed);
                            Ok::<_, io::Error>(Frame::data(part(number)))
                        });
                        Response::new(StreamBody::new(parts).boxed_unsync())
                    })
                })
            };
            world.serve(handler);
            let (mut client, _) = Client::new(&world, protocol).await;
            let request = client.request(NAME, "/large").body(text("")).unwrap();
            let answer = client.send(request).await.unwrap();
            sleep(Duration::from_millis(500)).await;
            let before = sent.load(Relaxed);
            // The sockets of the host hold up to 6 MiB.
            assert!(before < 12 << 20, "{protocol}: {before}");
            if protocol == "h2" {
                let request = client.request(NAME, "/").body(text("")).unwrap();
                assert_eq!(client.ask(request).await.1, "small");
            }
            sleep(Duration::from_millis(200)).await;
            assert_eq!(sent.load(Relaxed), before, "{protocol}");
            assert_eq!(checked(answer.into_body()).await, SIZE);
        }
    });
}

#[test]
fn events_of_a_server_arrive_one_by_one() {
    run(async {
        for protocol in VERSIONS {
            let world = World::new(Certificate::default()).await;
            let (events, receiver) = mpsc::channel::<Bytes>(1);
            let receiver = RefCell::new(Some(receiver));
            world.serve(Rc::new(move |_| {
                let receiver = receiver.borrow_mut().take().unwrap();
                let body = stream::unfold(receiver, |mut receiver| async {
                    let event = receiver.recv().await?;
                    Some((Ok::<_, io::Error>(Frame::data(event)), receiver))
                });
                let mut answer = Response::new(StreamBody::new(body).boxed_unsync());
                answer.headers_mut().insert("content-type", "text/event-stream".parse().unwrap());
                Box::pin(async { answer })
            }));
            let (mut client, _) = Client::new(&world, protocol).await;
            let request = client.request(NAME, "/").body(text("")).unwrap();
            let mut answer = client.send(request).await.unwrap();
            for number in 0..20 {
                let event = Bytes::from(format!("data: {number}\n\n"));
                events.send(event.clone()).await.unwrap();
                let frame = timeout(Duration::from_secs(1), answer.frame()).await.unwrap().unwrap().unwrap();
                assert_eq!(frame.into_data().unwrap(), event);
            }
        }
    });
}

#[test]
fn trailers_pass_both_ways() {
    run(async {
        for protocol in VERSIONS {
            let world = World::new(Certificate::default()).await;
            world.serve(Rc::new(|request| {
                Box::pin(async move {
                    let body = request.into_body().collect().await.unwrap();
                    let trailers = body.trailers().cloned().unwrap_or_default();
                    let frames = [Frame::data(body.to_bytes()), Frame::trailers(trailers)];
                    let mut answer =
                        Response::new(StreamBody::new(stream::iter(frames.map(Ok::<_, io::Error>))).boxed_unsync());
                    answer.headers_mut().insert("trailer", "grpc-status".parse().unwrap());
                    answer
                })
            }));
            let (mut client, _) = Client::new(&world, protocol).await;
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "7".parse().unwrap());
            let frames = [Frame::data(Bytes::from_static(b"x")), Frame::trailers(trailers.clone())];
            let body = StreamBody::new(stream::iter(frames.map(Ok::<_, io::Error>))).boxed_unsync();
            let request = client.request(NAME, "/").method("POST").header("te", "trailers");
            let request = request.header("trailer", "grpc-status").body(body).unwrap();
            let answer = client.send(request).await.unwrap().into_body().collect().await.unwrap();
            assert_eq!(answer.trailers(), Some(&trailers), "{protocol}");
        }
    });
}

#[test]
fn hundreds_of_requests_share_a_connection_of_http_2() {
    run(async {
        let world = World::new(Certificate::default()).await;
        world.serve(Rc::new(|request| {
            Box::pin(async move {
                let size = checked(request.into_body()).await;
                sleep(Duration::from_millis(5)).await;
                Response::new(large(size))
            })
        }));
        let (client, _) = Client::new(&world, "h2").await;
        let Client::Http2(sender) = client else { panic!("not HTTP/2") };
        let requests = (0..300).map(|_| {
            let mut client = Client::Http2(sender.clone());
            async move {
                let request = client.request(NAME, "/").method("POST").body(large(4 * PART)).unwrap();
                checked(client.send(request).await.unwrap().into_body()).await
            }
        });
        assert!(join_all(requests).await.iter().all(|len| *len == 4 * PART));
    });
}

#[test]
fn guest_is_asked_for_its_body_when_the_server_asks() {
    run(async {
        for answers_first in [false, true] {
            let world = World::new(Certificate { protocols: &["http/1.1"], ..Certificate::default() }).await;
            let server = world.serve_raw(move |mut server| async move {
                let mut head = vec![0; 4096];
                let len = server.read(&mut head).await.unwrap();
                let head = String::from_utf8_lossy(&head[..len]).to_lowercase();
                assert!(head.ends_with("\r\n\r\n") && head.contains("expect: 100-continue"), "{head}");
                sleep(Duration::from_millis(200)).await;
                if answers_first {
                    server.write_all(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\nno").await.unwrap();
                } else {
                    server.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
                    let mut body = [0; 4];
                    server.read_exact(&mut body).await.unwrap();
                    assert_eq!(&body, b"body");
                    server.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nyes").await.unwrap();
                }
                sleep(Duration::from_millis(200)).await;
            });
            let (mut guest, _) = world.guest_http1().await;
            let head = format!("PUT / HTTP/1.1\r\nHost: {NAME}\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
            guest.write_all(head.as_bytes()).await.unwrap();
            let mut early = [0; 1];
            let nothing = timeout(Duration::from_millis(100), guest.read(&mut early)).await;
            assert!(nothing.is_err(), "the server has not asked yet");
            let mut answer = vec![0; 4096];
            let len = guest.read(&mut answer).await.unwrap();
            let text = String::from_utf8_lossy(&answer[..len]).into_owned();
            if answers_first {
                assert!(text.starts_with("HTTP/1.1 401"), "{text}");
            } else {
                assert_eq!(text, "HTTP/1.1 100 Continue\r\n\r\n");
                guest.write_all(b"body").await.unwrap();
                let len = guest.read(&mut answer).await.unwrap();
                assert!(answer[..len].starts_with(b"HTTP/1.1 200"));
            }
            server.await.unwrap();
        }
    });
}

#[test]
fn web_socket_gets_its_secret_and_then_passes_bytes_both_ways() {
    run(async {
        let world = World::new(Certificate { protocols: &["http/1.1"], ..Certificate::default() }).await;
        let server = world.serve_raw(|mut server| async move {
            let mut head = vec![0; 4096];
            let len = server.read(&mut head).await.unwrap();
            let head = String::from_utf8_lossy(&head[..len]).to_lowercase();
            assert!(head.contains("upgrade: websocket") && head.contains("connection: upgrade"), "{head}");
            assert!(head.contains(super::world::VALUE) && head.contains("sec-websocket-key: x3jjhm"), "{head}");
            // The first frame comes with the answer.
            let answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello";
            server.write_all(answer).await.unwrap();
            let mut bytes = [0; 5];
            server.read_exact(&mut bytes).await.unwrap();
            server.write_all(&bytes).await.unwrap();
            server.shutdown().await.unwrap();
            assert_eq!(server.read(&mut bytes).await.unwrap_or(0), 0);
        });
        let (mut guest, carried) = world.guest_http1().await;
        let head = format!(
            "GET /chat HTTP/1.1\r\nHost: {NAME}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: \
             x3JJHM\r\nAuthorization: Bearer {}\r\n\r\n",
            super::world::PLACEHOLDER
        );
        guest.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\nhello") {
            assert!(guest.read_buf(&mut answer).await.unwrap() > 0, "{}", String::from_utf8_lossy(&answer));
        }
        assert!(answer.starts_with(b"HTTP/1.1 101"));
        guest.write_all(b"\x81\x03\0\xff\n").await.unwrap();
        let mut rest = Vec::new();
        guest.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"\x81\x03\0\xff\n");
        guest.shutdown().await.unwrap();
        server.await.unwrap();
        assert_eq!(carried.await.unwrap(), Outcome::Closed);
    });
}

#[test]
fn connection_that_the_server_closes_ends_for_the_guest_as_well() {
    run(async {
        let world = World::new(Certificate { protocols: &["http/1.1"], ..Certificate::default() }).await;
        world.serve_raw(|mut server| async move {
            let mut head = vec![0; 4096];
            assert!(server.read(&mut head).await.unwrap() > 0);
            // Its length is where the connection ends.
            server.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end").await.unwrap();
            server.shutdown().await.unwrap();
        });
        let (mut guest, carried) = world.guest_http1().await;
        guest.write_all(format!("GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        guest.read_to_end(&mut answer).await.unwrap();
        assert!(String::from_utf8_lossy(&answer).contains("until the end"));
        assert_eq!(carried.await.unwrap(), Outcome::Closed);
    });
}

#[test]
fn guest_that_closes_ends_the_connection_to_the_server() {
    run(async {
        for protocol in VERSIONS {
            let world = World::new(Certificate::default()).await;
            let server = world.serve(echo());
            let (mut client, carried) = Client::new(&world, protocol).await;
            let request = client.request(NAME, "/").body(text("")).unwrap();
            assert_eq!(client.ask(request).await.0, 200);
            drop(client);
            assert_eq!(carried.await.unwrap(), Outcome::Closed, "{protocol}");
            server.await.unwrap();
        }
    });
}
