//! Which connections are carried at all.

use super::world::{Certificate, Client, NAME, World, echo, run, text};
use sandboxvm_egress::tls::Outcome;
use sandboxvm_protocol::egress::SecretValue;
use std::{cell::Cell, rc::Rc};

fn refused(outcome: Outcome) -> String {
    match outcome {
        Outcome::Refused(reason) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn server_whose_certificate_cannot_be_verified_gets_no_request() {
    run(async {
        for (certificate, reason) in [
            (Certificate { is_trusted: false, ..Certificate::default() }, "BadSignature"),
            (Certificate { is_expired: true, ..Certificate::default() }, "expired"),
            (Certificate { name: "other.example", ..Certificate::default() }, "not valid for name \"api.example\""),
        ] {
            let world = World::new(certificate).await;
            let server = world.serve(echo());
            let (guest, carried) = world.guest(NAME, &["http/1.1"]).await;
            let alert = guest.unwrap_err().to_string();
            assert!(alert.contains("AccessDenied"), "{alert}");
            let refused = refused(carried.await.unwrap());
            assert!(refused.starts_with("cannot begin TLS with the server:") && refused.contains(reason), "{refused}");
            server.await.unwrap();
        }
    });
}

#[test]
fn guest_gets_the_protocol_that_the_server_chose() {
    run(async {
        const OLD: Certificate =
            Certificate { name: NAME, is_expired: false, is_trusted: true, protocols: &["http/1.1"] };
        const SILENT: Certificate = Certificate { protocols: &[], ..OLD };
        const NEW: Certificate = Certificate { protocols: &["h2"], ..OLD };
        for (certificate, offered, chosen) in [
            (Certificate::default(), vec!["h2", "http/1.1"], Some("h2")),
            (Certificate::default(), vec!["http/1.1"], Some("http/1.1")),
            (Certificate::default(), vec![], None),
            (OLD, vec!["h2", "http/1.1"], Some("http/1.1")),
            (SILENT, vec!["h2", "http/1.1"], Some("http/1.1")),
            (SILENT, vec![], None),
            (NEW, vec!["http/1.1", "h2", "x"], Some("h2")),
        ] {
            let world = World::new(certificate).await;
            world.serve(echo());
            let (guest, _) = world.guest(NAME, &offered).await;
            let agreed = guest.unwrap().get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
            assert_eq!(agreed.as_deref(), chosen.map(str::as_bytes), "{offered:?}");
        }
        for (certificate, offered, reason) in [
            (Certificate::default(), "acme-tls/1", "offers a protocol other than HTTP"),
            (SILENT, "h2", "the server chose a protocol that the guest did not offer"),
            (OLD, "h2", "cannot begin TLS with the server"),
        ] {
            let world = World::new(certificate).await;
            world.serve(echo());
            let (guest, carried) = world.guest(NAME, &[offered]).await;
            guest.unwrap_err();
            let refused = refused(carried.await.unwrap());
            assert!(refused.contains(reason), "{refused}");
        }
    });
}

#[test]
fn handshake_for_another_name_is_refused() {
    run(async {
        let world = World::new(Certificate::default()).await;
        world.serve(echo());
        let (guest, carried) = world.guest("other.example", &["h2"]).await;
        guest.unwrap_err();
        assert!(refused(carried.await.unwrap()).contains("another host in its handshake"));
    });
}

#[test]
fn host_of_a_secret_that_cannot_be_read_is_refused_with_the_reason() {
    run(async {
        let mut world = World::new(Certificate::default()).await;
        world.settings.secrets[0] =
            SecretValue { value: Err("no such file".into()), ..world.settings.secrets[0].clone() };
        world.configure();
        let asked = Rc::new(Cell::new(false));
        let server = {
            let asked = Rc::clone(&asked);
            world.serve(Rc::new(move |_| {
                asked.set(true);
                Box::pin(async { hyper::Response::new(text("")) })
            }))
        };
        let (guest, carried) = world.guest(NAME, &["h2"]).await;
        guest.unwrap_err();
        assert_eq!(refused(carried.await.unwrap()), "the secret API_TOKEN cannot be read: no such file");
        server.await.unwrap();
        assert!(!asked.get());

        world.settings.authority = None;
        world.settings.secrets.clear();
        world.configure();
        world.serve(echo());
        let (guest, carried) = world.guest(NAME, &["h2"]).await;
        guest.unwrap_err();
        assert!(refused(carried.await.unwrap()).contains("no certificate authority"));
    });
}

#[test]
fn guest_that_does_not_trust_the_authority_gets_no_request_through() {
    run(async {
        let mut world = World::new(Certificate::default()).await;
        let (settings, _) = super::world::settings();
        world.settings = settings;
        world.configure();
        let server = world.serve(echo());
        let (guest, carried) = world.guest(NAME, &["h2"]).await;
        guest.unwrap_err();
        assert!(refused(carried.await.unwrap()).contains("the guest did not accept the certificate"));
        server.await.unwrap();
    });
}

#[test]
fn guest_that_speaks_no_tls_is_refused() {
    run(async {
        let world = World::new(Certificate::default()).await;
        let (mut guest, carried) = world.carry().await;
        tokio::io::AsyncWriteExt::write_all(&mut guest, b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert!(refused(carried.await.unwrap()).contains("the guest began no TLS"));
    });
}

#[test]
fn dropping_a_connection_ends_both_sides_of_it() {
    run(async {
        for protocol in super::world::VERSIONS {
            let world = World::new(Certificate::default()).await;
            let server = world.serve(Rc::new(|_| Box::pin(std::future::pending())));
            let (mut client, carried) = Client::new(&world, protocol).await;
            let request = client.request(NAME, "/").body(text("")).unwrap();
            let asking = tokio::task::spawn_local(async move { client.send(request).await.map(|_| ()) });
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            carried.abort();
            asking.await.unwrap().unwrap_err();
            server.await.unwrap();
        }
    });
}
