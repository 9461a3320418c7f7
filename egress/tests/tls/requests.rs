//! Requests to the host of their connection, and to others.

use super::world::{Certificate, Client, NAME, PLACEHOLDER, VALUE, VERSIONS, World, echo, run, text};
use base64::{Engine, engine::general_purpose::STANDARD};

#[test]
fn headers_are_set_and_placeholders_become_secrets() {
    run(async {
        for protocol in VERSIONS {
            let world = World::new(Certificate::default()).await;
            world.serve(echo());
            let (mut client, _) = Client::new(&world, protocol).await;
            let basic = format!("Basic {}", STANDARD.encode(format!("git:{PLACEHOLDER}")));
            for authorization in [format!("Bearer {PLACEHOLDER}"), basic] {
                let request = client
                    .request(NAME, "/path?query")
                    .method("POST")
                    .header("authorization", &authorization)
                    .header("x-rule", "of the guest")
                    .body(text("a body"))
                    .unwrap();
                let (status, shown) = client.ask(request).await;
                assert_eq!(status, 200, "{shown}");
                let basic = format!("Basic {}", STANDARD.encode(format!("git:{VALUE}")));
                let expected = if authorization.starts_with("Bearer") { format!("Bearer {VALUE}") } else { basic };
                assert!(shown.contains(&format!("authorization: {expected}\n")), "{shown}");
                assert!(shown.contains("x-rule: of the rule\n") && !shown.contains("of the guest"), "{shown}");
                assert!(shown.ends_with("a body") && shown.contains("/path?query"), "{shown}");
                assert!(!shown.contains(PLACEHOLDER), "{shown}");
            }
            let (blocked, flows) = world.recorded();
            assert!(blocked.is_empty() && flows.is_empty());
        }
    });
}

#[test]
fn request_for_another_host_is_answered_by_421_and_recorded() {
    run(async {
        for protocol in VERSIONS {
            let world = World::new(Certificate::default()).await;
            world.serve(echo());
            let (mut client, _) = Client::new(&world, protocol).await;
            // The second request of a connection is for another host: a kept connection, or one of HTTP/2 that is used for
            // a second name of the same certificate.
            let first = client.request(NAME, "/").body(text("")).unwrap();
            assert_eq!(client.ask(first).await.0, 200);
            let authorization = format!("Bearer {PLACEHOLDER}");
            let second = client.request("other.example", "/").header("authorization", authorization);
            let (status, shown) = client.ask(second.body(text("")).unwrap()).await;
            assert_eq!((status, shown.contains("for another host than its connection")), (421, true), "{shown}");
            let (_, flows) = world.recorded();
            assert_eq!((flows.len(), flows[0].name.as_deref()), (1, Some("other.example")));
            // A third one for the right host still works.
            let third = client.request(NAME, "/").body(text("")).unwrap();
            assert_eq!(client.ask(third).await.0, 200);
        }
    });
}

#[test]
fn connect_is_refused() {
    run(async {
        for protocol in VERSIONS {
            let world = World::new(Certificate::default()).await;
            world.serve(echo());
            let (mut client, _) = Client::new(&world, protocol).await;
            let connect = hyper::Request::connect("api.example:443").header("host", NAME).body(text("")).unwrap();
            if let Ok(answer) = client.send(connect).await {
                assert_eq!(answer.status(), 405);
            }
        }
    });
}

#[test]
fn change_of_the_settings_holds_for_the_next_request() {
    run(async {
        for protocol in VERSIONS {
            let mut world = World::new(Certificate::default()).await;
            world.serve(echo());
            let (mut client, _) = Client::new(&world, protocol).await;
            let ask = |client: &Client| {
                let request = client.request(NAME, "/").header("authorization", PLACEHOLDER);
                request.body(text("")).unwrap()
            };
            let request = ask(&client);
            assert!(client.ask(request).await.1.contains(VALUE));
            world.settings.header_rules[0].headers[0].value = "changed".into();
            world.settings.secrets[0].hosts = vec!["other.example".into()];
            world.configure();
            let request = ask(&client);
            assert_eq!(client.ask(request).await.0, 403);
            let request = client.request(NAME, "/").body(text("")).unwrap();
            assert!(client.ask(request).await.1.contains("x-rule: changed"));
        }
    });
}
