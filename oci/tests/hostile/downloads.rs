//! Downloads by URL from servers that lie, redirect or break.

use crate::server::{Server, answer, options};
use sandboxvm_oci::{
    Digest,
    registry::{Downloaded, Reach, RegistryError, RegistryOptions, download},
};
use std::{
    io::Write,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

async fn fetch(url: &str, options: &RegistryOptions) -> (Result<Downloaded, RegistryError>, Vec<u8>) {
    let mut content = Vec::new();
    let result = download(url, true, options, 100, &mut content).await;
    (result, content)
}

/// Allows one port.
#[derive(Debug)]
struct Only(u16);

impl Reach for Only {
    fn may_resolve(&self, host: &str) -> bool {
        host == "localhost"
    }

    fn allows(&self, host: &str, address: SocketAddr) -> bool {
        host == "localhost" && address.port() == self.0
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn downloads_have_their_size_and_date_and_nothing_more_than_the_maximum() {
    let server = Server::start(|request, stream| {
        let date = "Last-Modified: Thu, 01 Jan 1970 00:01:40 GMT";
        match request.path.as_str() {
            "/file?q" => answer(stream, 200, &[date], b"content"),
            "/moved" => answer(stream, 302, &["Location: /file?q"], b""),
            "/loop" => answer(stream, 302, &["Location: /loop"], b""),
            "/large" => answer(stream, 200, &[], &[0; 101]),
            "/short" => drop(stream.write_all(b"HTTP/1.1 200 X\r\nContent-Length: 50\r\n\r\nhalf")),
            "/endless" => {
                let _ = stream.write_all(b"HTTP/1.1 200 X\r\nConnection: close\r\n\r\n");
                while stream.write_all(&[b'x'; 64]).is_ok() {}
            }
            _ => answer(stream, 404, &[], b""),
        }
    });
    let options = options(&[&server]);
    let url = |path: &str| format!("http://{}{path}", server.host());
    for path in ["/file?q#part", "/moved"] {
        let (result, content) = fetch(&url(path), &options).await;
        let modified = Some(UNIX_EPOCH + Duration::from_secs(100));
        assert_eq!(
            (result.unwrap(), content.as_slice()),
            (Downloaded { size: 7, digest: Digest::of(b"content"), modified }, &b"content"[..])
        );
    }
    assert!(server.requests.lock().unwrap().iter().all(|request| request.authorization.is_none()));
    let error = async |path: &str| fetch(&url(path), &options).await.0.unwrap_err();
    assert!(matches!(error("/loop").await, RegistryError::Redirects(_)));
    assert!(matches!(error("/none").await, RegistryError::NotFound { .. }));
    assert!(matches!(error("/short").await, RegistryError::Unreachable { .. }));
    for path in ["/large", "/endless"] {
        let error = error(path).await.to_string();
        assert!(error.ends_with("the file has more than 100 bytes"), "{error}");
    }
    assert!(fetch(&url("/endless"), &options).await.1.len() <= 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_lead_to_no_address_that_is_not_allowed() {
    let secret = Server::start(|_, stream| answer(stream, 200, &[], b"metadata"));
    let location = format!("Location: http://{}/", secret.host());
    let server = Server::start(move |_, stream| answer(stream, 302, &[&location], b""));
    let url = format!("http://{}/", server.host());
    // Without the rule the redirect works.
    let anywhere = options(&[&server, &secret]);
    assert_eq!(fetch(&url, &anywhere).await.1, b"metadata");
    let limited = RegistryOptions { reach: Arc::new(Only(server.port)), ..options(&[&server, &secret]) };
    assert!(matches!(fetch(&url, &limited).await.0, Err(RegistryError::NotAllowed(_))));
    // The other server may not be spoken to without TLS.
    let encrypted = options(&[&server]);
    assert!(matches!(fetch(&url, &encrypted).await.0, Err(RegistryError::NotEncrypted(_))));
    let error = download(&url, false, &anywhere, 100, &mut Vec::new()).await.unwrap_err();
    assert!(matches!(error, RegistryError::NotEncrypted(_)));
    assert_eq!(secret.count("GET", "/"), 1);
}

/// A resolver's question carries data to the owner of a zone.
#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_not_allowed_are_not_resolved() {
    // No such name exists, so resolving it fails, after the host's resolver was asked.
    let url = "https://data.attacker.invalid/";
    let error = fetch(url, &options(&[])).await.0.unwrap_err();
    assert!(matches!(error, RegistryError::Unreachable { .. }), "{error}");
    let limited = RegistryOptions { reach: Arc::new(Only(443)), ..options(&[]) };
    let error = fetch(url, &limited).await.0.unwrap_err();
    assert!(matches!(error, RegistryError::NotAllowed(_)), "{error}");
}
