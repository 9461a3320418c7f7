//! The head of a request to a host whose TLS is ended: it has to be for that host, the rule's headers replace the guest's,
//! and placeholders in header values become their secrets.

use super::{
    Credentials, Value,
    aws::{self, Unsigned},
    placeholders::Placeholders,
    sensitive,
    verdict::{About, Rejected, Target},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::{
    HeaderMap, Method, StatusCode, Uri, Version,
    header::{self, HeaderName, HeaderValue},
    http::{request, uri},
};
use memchr::memmem;
use sandboxvm_egress_policy::name::DomainName;
use zeroize::Zeroizing;

/// Maximum length in bytes of a header value in which placeholders were replaced.
const MAX_VALUE: usize = 32 * 1024;

/// Headers that are for one connection, in addition to those that `Connection` names (RFC 9110, 7.6.1).
const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHORIZATION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// How a request that may be forwarded continues.
#[derive(Debug, PartialEq, Eq)]
pub struct Prepared {
    /// Whether it asks for a WebSocket.
    pub upgrades: bool,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub waits: bool,
    /// What is to be signed, if the guest signed it with a placeholder.
    pub unsigned: Option<Unsigned>,
}

/// Checks the head of a request, and makes the one that is forwarded of it.
///
/// # Errors
/// When the request may not be forwarded.
pub fn prepare(head: &mut request::Parts, target: &Target, credentials: &Credentials) -> Result<Prepared, Rejected> {
    // CONNECT goes elsewhere, and TRACE (TRACK) has the server send the request back, with the secrets in it.
    if head.method == Method::CONNECT || head.method == Method::TRACE || head.method.as_str() == "TRACK" {
        let reason = "CONNECT and TRACE are not forwarded where sandboxvm ends TLS";
        return Err(Rejected { status: StatusCode::METHOD_NOT_ALLOWED, reason, about: About::Nothing });
    }
    let host = host(head, target)?;
    let placeholders = credentials.placeholders();
    if let Some(secret) = placeholders.find(head.uri.to_string().as_bytes()) {
        return Err(Rejected::secret(secret, "the URL contains the placeholder of a secret"));
    }
    let unsigned = aws::take(head, target, credentials)?;
    replace(&mut head.headers, &placeholders, target, credentials)?;
    let upgrades = head.version == Version::HTTP_11 && is_web_socket(&head.headers);
    let waits =
        head.headers.get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    remove_hop_by_hop(&mut head.headers);
    if upgrades {
        head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        head.headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    }
    for (name, value) in credentials.headers(&target.name) {
        head.headers.insert(name, value.clone());
    }
    address(head, host)?;
    Ok(Prepared { upgrades, waits, unsigned })
}

/// Returns the one host that the request names, in its normal form.
fn host(head: &request::Parts, target: &Target) -> Result<uri::Authority, Rejected> {
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let (host, other) = (hosts.next(), hosts.next());
    if other.is_some() {
        return Err(Rejected::host("the request has two Host headers"));
    }
    let host = match host {
        Some(host) => Some(
            uri::Authority::try_from(host.as_bytes())
                .map_err(|_| Rejected::host("the Host header of the request is not a host"))?,
        ),
        None => None,
    };
    let mut found = None;
    for authority in [head.uri.authority().cloned(), host].into_iter().flatten() {
        // `user@host`, and a second colon, mean something else to some server.
        let is_plain = !authority.as_str().contains(['@', '[']);
        let name = DomainName::parse(authority.host().as_bytes()).ok().filter(|_| is_plain);
        let port = authority.port_u16();
        let has_port = authority.as_str().contains(':');
        if name.as_ref() != Some(&target.name) || (has_port && port != Some(target.port)) {
            return Err(Rejected::host("the request is for another host than its connection"));
        }
        let text = if has_port { format!("{}:{}", target.name, target.port) } else { target.name.to_string() };
        let normal = text.parse().map_err(|_| Rejected::host("the host of the request is not a host"))?;
        found = Some(normal);
    }
    let is_secure = head.uri.scheme().is_none_or(|scheme| *scheme == uri::Scheme::HTTPS);
    found.filter(|_| is_secure).ok_or(Rejected::host("the request does not say which host it is for"))
}

/// Writes the host where the version of HTTP has it.
fn address(head: &mut request::Parts, host: uri::Authority) -> Result<(), Rejected> {
    let mut to = uri::Parts::default();
    to.path_and_query = Some(head.uri.path_and_query().cloned().unwrap_or(uri::PathAndQuery::from_static("/")));
    head.headers.remove(header::HOST);
    if head.version == Version::HTTP_2 {
        to.scheme = Some(uri::Scheme::HTTPS);
        to.authority = Some(host);
    } else {
        // Of names of DNS and ports, which are valid in headers.
        let value = HeaderValue::from_str(host.as_str());
        head.headers.insert(header::HOST, value.map_err(|_| Rejected::host("the host of the request is not a host"))?);
        head.version = Version::HTTP_11;
    }
    head.uri = Uri::from_parts(to).map_err(|_| Rejected::host("the target of the request is not a path"))?;
    Ok(())
}

/// Replaces placeholders in header values.
fn replace(
    headers: &mut HeaderMap,
    placeholders: &Placeholders,
    target: &Target,
    credentials: &Credentials,
) -> Result<(), Rejected> {
    if placeholders.is_empty() {
        return Ok(());
    }
    let mut found = false;
    for (name, value) in headers.iter() {
        // Names are in lower case here.
        if let Some(secret) = placeholders.find(name.as_str().as_bytes()) {
            return Err(Rejected::secret(secret, "the name of a header contains the placeholder of a secret"));
        }
        let encoded = basic(value).and_then(|(_, credential)| placeholders.find(&credential));
        let placed = placeholders.find(value.as_bytes()).or(encoded);
        if let Some(secret) = placed.filter(|_| !carries_credentials(name.as_str())) {
            let reason = "the placeholder of a secret is in a header that is not one for credentials";
            return Err(Rejected::secret(secret, reason));
        }
        found = found || placed.is_some();
    }
    if !found {
        return Ok(());
    }
    for value in headers.values_mut() {
        if let Some((scheme, credential)) = basic(value)
            && let Some(replaced) = replaced(&credential, placeholders, target, credentials)?
        {
            let encoded = Zeroizing::new(format!("{scheme} {}", STANDARD.encode(&*replaced)));
            *value = sensitive(encoded.as_bytes()).ok_or(UNUSABLE)?;
        } else if let Some(replaced) = replaced(value.as_bytes(), placeholders, target, credentials)? {
            *value = sensitive(&replaced).ok_or(UNUSABLE)?;
        }
    }
    Ok(())
}

/// Returns true for headers that clients send credentials in and that servers do not send back: of others, such as `Origin`
/// or `Idempotency-Key`, they do, and a guest would have the secret. `name` is in lower case.
fn carries_credentials(name: &str) -> bool {
    const NAMED: [&str; 5] = ["authorization", "cookie", "apikey", "ocp-apim-subscription-key", "x-functions-key"];
    NAMED.contains(&name) || ["-token", "api-key", "auth-key"].iter().any(|end| name.ends_with(end))
}

const UNUSABLE: Rejected = Rejected {
    status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
    reason: "a header is not valid once its placeholder is replaced",
    about: About::Nothing,
};

/// Returns `text` with secrets in place of their placeholders, or `None` if there are none.
fn replaced(
    text: &[u8],
    placeholders: &Placeholders,
    target: &Target,
    credentials: &Credentials,
) -> Result<Option<Zeroizing<Vec<u8>>>, Rejected> {
    let mut made: Option<Zeroizing<Vec<u8>>> = None;
    for (position, secret) in credentials.secrets.iter().enumerate() {
        let text = made.as_ref().map_or(text, |made| made.as_slice());
        if memmem::find(text, secret.placeholder.as_bytes()).is_none() {
            continue;
        }
        if !secret.is_for(&target.name) {
            return Err(Rejected::secret(position, "the secret is not for this host"));
        }
        // A host with a secret that cannot be read is refused before it gets a request, unless the settings changed.
        let value = match &secret.value {
            Ok(Value::Text(value)) => value.as_bytes(),
            Ok(Value::AccessKey(_)) => {
                let reason = "an access key of AWS is only for requests that are signed with AWS4-HMAC-SHA256";
                return Err(Rejected::secret(position, reason));
            }
            Err(_) => return Err(Rejected::secret(position, "the secret cannot be read")),
        };
        made = Some(substituted(text, secret.placeholder.as_bytes(), value)?);
    }
    match (made, placeholders.find(text)) {
        (None, Some(secret)) => Err(Rejected::secret(secret, "the placeholder of a secret is encoded in a header")),
        (made, _) => Ok(made),
    }
}

fn substituted(text: &[u8], placeholder: &[u8], value: &[u8]) -> Result<Zeroizing<Vec<u8>>, Rejected> {
    let (mut made, mut rest) = (Zeroizing::new(Vec::with_capacity(text.len() + value.len())), 0);
    for at in memmem::find_iter(text, placeholder) {
        made.extend_from_slice(&text[rest..at]);
        made.extend_from_slice(value);
        rest = at + placeholder.len();
        if made.len() > MAX_VALUE {
            return Err(UNUSABLE);
        }
    }
    made.extend_from_slice(&text[rest..]);
    Ok(made)
}

/// Returns the scheme and the decoded credential of `Basic BASE64` (RFC 7617).
fn basic(value: &HeaderValue) -> Option<(&str, Zeroizing<Vec<u8>>)> {
    let (scheme, encoded) = value.to_str().ok()?.trim().split_once(' ')?;
    let credential = scheme.eq_ignore_ascii_case("basic").then(|| STANDARD.decode(encoded.trim()).ok())??;
    Some((scheme, Zeroizing::new(credential)))
}

/// Removes the headers that are for the guest's connection alone. Both connections are framed on their own.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let has_trailers = headers.get_all(header::TE).iter().any(|value| value.as_bytes() == b"trailers");
    for name in named.iter().chain(&HOP_BY_HOP).chain([&header::TE]) {
        headers.remove(name);
    }
    if has_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Returns true for a request that asks for a WebSocket. Every other upgrade is left out, so the server answers as if the
/// client had not asked: after one to HTTP/2, requests could not be checked.
fn is_web_socket(headers: &HeaderMap) -> bool {
    let mut protocols = headers.get_all(header::UPGRADE).iter();
    let is_asked = protocols.next().is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    is_asked && protocols.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{OTHER, PLACEHOLDER, VALUE, name, settings},
        *,
    };
    use hyper::Request;

    fn prepared(request: hyper::http::request::Builder) -> Result<(request::Parts, Prepared), Rejected> {
        let credentials = Credentials::new(&settings()).unwrap();
        let target = Target { name: name("api.example"), address: [198, 51, 100, 1].into(), port: 443 };
        let mut head = request.body(()).unwrap().into_parts().0;
        prepare(&mut head, &target, &credentials).map(|prepared| (head, prepared))
    }

    fn get() -> hyper::http::request::Builder {
        Request::get("/").header("host", "api.example")
    }

    #[test]
    fn request_for_another_host_is_rejected() {
        let h2 = || Request::get("https://api.example/").version(Version::HTTP_2);
        for good in [
            get(),
            Request::get("https://API.example./x").header("host", "Api.Example"),
            Request::get("/").header("host", "api.example:443"),
            h2(),
            h2().header("host", "api.example"),
            Request::get("/").version(Version::HTTP_2).header("host", "api.example"),
            Request::options("*").header("host", "api.example"),
        ] {
            prepared(good).unwrap();
        }
        for bad in [
            Request::get("/"),
            Request::get("/").header("host", "other.example"),
            Request::get("/").header("host", "api.example.other.example"),
            Request::get("/").header("host", "api.example:8443"),
            Request::get("/").header("host", "api.example:"),
            Request::get("/").header("host", "api.example@other.example"),
            Request::get("/").header("host", "other.example@api.example"),
            Request::get("/").header("host", "127.0.0.1"),
            Request::get("/").header("host", "[::1]"),
            Request::get("/").header("host", ""),
            get().header("host", "api.example"),
            get().header("host", "other.example"),
            Request::get("https://other.example/").header("host", "api.example"),
            Request::get("http://api.example/").header("host", "api.example"),
            Request::get("https://api.example/").header("host", "other.example"),
            h2().header("host", "other.example"),
            Request::get("https://other.example/").version(Version::HTTP_2),
        ] {
            let what = format!("{bad:?}");
            let rejected = prepared(bad).unwrap_err();
            assert_eq!((rejected.status, rejected.about), (StatusCode::MISDIRECTED_REQUEST, About::Host), "{what}");
        }
        let connect = prepared(Request::connect("api.example:443").header("host", "api.example")).unwrap_err();
        assert_eq!(connect.status, StatusCode::METHOD_NOT_ALLOWED);
        // The server would send the request back, with the headers of the rule.
        for method in ["TRACE", "TRACK"] {
            let trace = prepared(get().method(method)).unwrap_err();
            assert_eq!(trace.status, StatusCode::METHOD_NOT_ALLOWED);
        }
    }

    #[test]
    fn host_is_written_where_the_version_has_it() {
        let (head, _) = prepared(Request::get("https://API.example/x?y").header("host", "Api.Example:443")).unwrap();
        assert_eq!((head.uri.to_string(), head.headers["host"].to_str().unwrap()), ("/x?y".into(), "api.example:443"));
        let (head, _) =
            prepared(Request::get("https://api.example/x?y").version(Version::HTTP_2).header("host", "Api.Example"))
                .unwrap();
        assert_eq!(head.uri.to_string(), "https://api.example/x?y");
        assert!(!head.headers.contains_key("host"));
        let (head, _) = prepared(Request::options("*").header("host", "api.example")).unwrap();
        assert_eq!(head.uri.to_string(), "*");
    }

    #[test]
    fn placeholder_in_a_header_value_becomes_the_secret() {
        let encoded = STANDARD.encode(format!("user:{PLACEHOLDER}"));
        let (head, _) = prepared(
            get()
                .header("authorization", format!("Bearer {PLACEHOLDER}"))
                .header("x-two-token", format!("{PLACEHOLDER},{PLACEHOLDER}"))
                .header("proxy-authorization", "Basic eDp5")
                .header("x-api-key", format!("basic {encoded}")),
        )
        .unwrap();
        assert_eq!(head.headers["authorization"], format!("Bearer {VALUE}"));
        assert!(head.headers["authorization"].is_sensitive());
        assert_eq!(head.headers["x-two-token"], format!("{VALUE},{VALUE}"));
        assert_eq!(head.headers["x-api-key"], format!("basic {}", STANDARD.encode(format!("user:{VALUE}"))));
        assert!(!head.headers.contains_key("proxy-authorization"));
    }

    #[test]
    fn placeholder_anywhere_else_is_rejected() {
        let percent: String = PLACEHOLDER.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        for (request, position) in [
            (Request::get(format!("/?key={PLACEHOLDER}")).header("host", "api.example"), 0),
            (Request::get(format!("/{percent}")).header("host", "api.example"), 0),
            (get().header(PLACEHOLDER, "x"), 0),
            (get().header("x-api-key", &percent), 0),
            // Servers send these back.
            (get().header("origin", format!("https://{PLACEHOLDER}.example")), 0),
            (get().header("idempotency-key", PLACEHOLDER), 0),
            (get().header("sec-websocket-protocol", PLACEHOLDER), 0),
            (get().header("x-request-id", basic(PLACEHOLDER)), 0),
            (get().header("authorization", format!("Bearer {OTHER}")), 1),
            (get().header("authorization", basic(&format!("user:{OTHER}"))), 1),
            (get().header("authorization", format!("{PLACEHOLDER} {OTHER}")), 1),
            (get().header("authorization", basic(&percent)), 0),
        ] {
            let rejected = prepared(request).unwrap_err();
            assert_eq!((rejected.status, rejected.about), (StatusCode::FORBIDDEN, About::Secret(position)));
        }
    }

    #[test]
    fn replaced_header_has_a_maximum_length() {
        let mut settings = settings();
        settings.secrets[0].value = Ok("x".repeat(16 * 1024));
        let credentials = Credentials::new(&settings).unwrap();
        let target = Target { name: name("api.example"), address: [198, 51, 100, 1].into(), port: 443 };
        let request = get().header("x-token", PLACEHOLDER.repeat(100)).body(()).unwrap();
        assert_eq!(prepare(&mut request.into_parts().0, &target, &credentials), Err(UNUSABLE));
    }

    #[test]
    fn headers_of_the_rule_replace_those_of_the_guest() {
        let (head, _) = prepared(get().header("x-key", "mine").header("X-Key", "mine too")).unwrap();
        assert_eq!(head.headers.get_all("x-key").iter().collect::<Vec<_>>(), ["short"]);
    }

    #[test]
    fn headers_for_one_connection_are_removed_and_only_web_sockets_upgrade() {
        let request = |upgrade: &str| {
            get()
                .header("connection", "keep-alive, Upgrade, x-hop")
                .header("x-hop", "1")
                .header("te", "trailers")
                .header("transfer-encoding", "chunked")
                .header("upgrade", upgrade)
        };
        let (head, how) = prepared(request("WebSocket")).unwrap();
        assert!(how.upgrades && head.headers["upgrade"] == "websocket" && head.headers["connection"] == "upgrade");
        assert!(!head.headers.contains_key("x-hop") && !head.headers.contains_key("transfer-encoding"));
        assert_eq!(head.headers["te"], "trailers");
        for other in ["h2c", "websocket, h2c", "tcp"] {
            let (head, how) = prepared(request(other)).unwrap();
            assert!(!how.upgrades && !head.headers.contains_key("upgrade") && !head.headers.contains_key("connection"));
        }
        assert!(prepared(get().header("expect", "100-Continue")).unwrap().1.waits);
    }
}
