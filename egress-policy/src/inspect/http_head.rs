//! The host in the head of an HTTP/1 request (RFC 9112, 2 and 3.2). A head is held to the letter of the specification:
//! line ends are CR LF, there is one Host, and an absolute target has the same. Whatever servers forgive is hidden here.

use crate::{name::DomainName, policy::Shown};

/// Longest method that is known, as in `UPDATEREDIRECTREF`.
const MAX_METHOD: usize = 20;

/// Returns whether these bytes begin what some server takes for an HTTP/1 request; nothing while that is open. Servers
/// skip empty lines and spaces before a request, and some do not mind the case of its method.
pub(super) fn begins(opening: &[u8]) -> Option<bool> {
    if matches!(opening, [b'\r' | b'\n' | b' ' | b'\t', ..]) {
        return Some(true);
    }
    let method = opening.iter().take_while(|byte| byte.is_ascii_alphabetic() || **byte == b'-').count();
    match opening.get(method) {
        None if method <= MAX_METHOD => None,
        Some(b' ' | b'\t') if (1..=MAX_METHOD).contains(&method) => Some(true),
        _ => Some(false),
    }
}

/// Returns the host, or nothing while more bytes are needed.
pub(super) fn read(opening: &[u8]) -> Option<Shown> {
    let is_method = |byte: &u8| byte.is_ascii_uppercase() || *byte == b'-';
    let method = opening.iter().take_while(|byte| is_method(byte)).count();
    if !opening.is_empty() && (method == 0 || !matches!(opening.get(method), None | Some(b' '))) {
        return Some(Shown::Hidden);
    }
    let Some(end) = opening.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
        // A line feed alone ends a line for lenient servers, so that they see an end that is not one here.
        let has_bare_feed =
            opening.iter().enumerate().any(|(at, byte)| *byte == b'\n' && (at == 0 || opening[at - 1] != b'\r'));
        return has_bare_feed.then_some(Shown::Hidden);
    };
    Some(host_in(&opening[..end]).map_or(Shown::Hidden, Shown::Name))
}

/// Returns the one host of a head, without its last line end.
fn host_in(head: &[u8]) -> Option<DomainName> {
    let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    // What is left of bare CRs, NULs and bare LFs after this split means something else to some server.
    let is_plain = |at: usize| match head[at] {
        b'\r' => head.get(at + 1) == Some(&b'\n'),
        b'\n' => at > 0 && head[at - 1] == b'\r',
        byte => byte != 0,
    };
    if !(0..head.len()).all(is_plain) {
        return None;
    }
    let mut request = lines.next()?.split(|byte| *byte == b' ');
    let (method, target, version) = (request.next()?, request.next()?, request.next()?);
    // CONNECT asks a proxy for a connection to anywhere, and HTTP/2's preface is a request of a method PRI.
    if request.next().is_some()
        || !matches!(version, b"HTTP/1.0" | b"HTTP/1.1")
        || matches!(method, b"CONNECT" | b"PRI")
    {
        return None;
    }
    let mut host = None;
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = (&line[..colon], trim(&line[colon + 1..]));
        // A space before the colon, or a line that continues the one before.
        if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
            return None;
        }
        if name.eq_ignore_ascii_case(b"host") && host.replace(value).is_some() {
            return None;
        }
        // After a change to another protocol (HTTP/2, TLS, a tunnel), what follows could name other hosts unseen.
        if name.eq_ignore_ascii_case(b"upgrade") && !value.eq_ignore_ascii_case(b"websocket") {
            return None;
        }
    }
    let host = without_port(host?)?;
    let is_same = match target {
        [b'/', ..] | b"*" => true,
        _ => authority(target).and_then(without_port).is_some_and(|other| other.eq_ignore_ascii_case(host)),
    };
    if is_same { DomainName::parse(host).ok() } else { None }
}

/// Removes spaces and tabs at both ends, which is all that may be there (RFC 9110, 5.5).
fn trim(value: &[u8]) -> &[u8] {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t');
    let begin = value.iter().position(|byte| !is_space(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !is_space(byte)).map_or(begin, |last| last + 1);
    &value[begin..end]
}

/// A character of a token (RFC 9110, 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The authority of an absolute target such as `http://example.com/`.
fn authority(target: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = target.split_at_checked(7)?;
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    (scheme.eq_ignore_ascii_case(b"http://") && !rest[..end].contains(&b'@')).then_some(&rest[..end])
}

/// A host without its port.
fn without_port(host: &[u8]) -> Option<&[u8]> {
    match host.iter().position(|byte| *byte == b':') {
        Some(at) if host[at + 1..].iter().all(u8::is_ascii_digit) => Some(&host[..at]),
        Some(_) => None,
        None => Some(host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(head: &str) -> Option<Shown> {
        read(head.as_bytes())
    }

    fn example() -> Option<Shown> {
        Some(Shown::Name("example.com".parse().unwrap()))
    }

    #[test]
    fn the_host_is_found() {
        for head in [
            "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n",
            "GET / HTTP/1.1\r\nAccept: */*\r\nhost:Example.COM:80\r\n\r\nbody",
            "GET http://example.com/x HTTP/1.1\r\nHost: example.com\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\nHost: example.com\t\r\n\r\n",
            "POST /a?b HTTP/1.0\r\nHost: example.com.\r\nUpgrade: websocket\r\n\r\n",
        ] {
            assert_eq!(shown(head), example(), "{head:?}");
            for end in 0..head.find("\r\n\r\n").unwrap() + 3 {
                assert_eq!(read(&head.as_bytes()[..end]), None, "{head:?} {end}");
            }
        }
    }

    #[test]
    fn a_head_that_two_servers_could_read_in_two_ways_hides_its_host() {
        for head in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: example.com\r\nHost: evil.example\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: example.com\r\nHost: example.com\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : example.com\r\n\r\n",
            "GET / HTTP/1.1\r\nX: a\r\n Host: evil.example\r\nHost: example.com\r\n\r\n",
            "GET / HTTP/1.1\r\nX: a\nHost: evil.example\r\nHost: example.com\r\n\r\n",
            "GET / HTTP/1.1\nHost: evil.example\n\nX\r\nHost: example.com\r\n\r\n",
            "GET / HTTP/1.1\r\nX: a\rHost: evil.example\r\nHost: example.com\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: example.com\0.evil.example\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: example.com, evil.example\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: user@example.com\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: example.com:80:80\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: 198.51.100.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: 0x7f.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n",
            "GET / HTTP/1.1\r\nHost:\r\n\r\n",
            "GET http://evil.example/ HTTP/1.1\r\nHost: example.com\r\n\r\n",
            "GET http://example.com@evil.example/ HTTP/1.1\r\nHost: example.com\r\n\r\n",
            "GET https://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n",
            "GET evil.example HTTP/1.1\r\nHost: example.com\r\n\r\n",
            "GET / x HTTP/1.1\r\nHost: example.com\r\n\r\n",
            "GET / HTTP/2.0\r\nHost: example.com\r\n\r\n",
            "GET /\r\nHost: example.com\r\n\r\n",
            "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: example.com\r\nUpgrade: foo, H2C\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: example.com\r\nUpgrade: TLS/1.2\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: \x0cexample.com\r\n\r\n",
            "GET / HTTP/1.00\r\nHost: example.com\r\n\r\n",
            "\r\nGET / HTTP/1.1\r\nHost: example.com\r\n\r\n",
            " GET / HTTP/1.1\r\nHost: example.com\r\n\r\n",
            "get / HTTP/1.1\r\nHost: example.com\r\n\r\n",
            "GET\t/ HTTP/1.1\r\nHost: example.com\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: example.com\r\nno colon\r\n\r\n",
        ] {
            assert_eq!(shown(head), Some(Shown::Hidden), "{head:?}");
        }
    }

    #[test]
    fn only_requests_begin_like_requests() {
        assert_eq!(begins(b""), None);
        assert_eq!(begins(b"GE"), None);
        assert_eq!(begins(b"GET "), Some(true));
        assert_eq!(begins(b"M-SEARCH * "), Some(true));
        for like in [&b"get / "[..], b" GET", b"\r\nGET", b"\n", b"Get\t"] {
            assert_eq!(begins(like), Some(true), "{like:?}");
        }
        for other in [&b"SSH-2.0-x"[..], b"\0", b"*3\r\n", b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"] {
            assert_eq!(begins(other), Some(false), "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes);
            let _ = read(&[&b"GET / HTTP/1.1\r\n"[..], &bytes, b"\r\n\r\n"].concat());
        }

        #[test]
        fn a_host_that_is_shown_is_in_the_head(head in "GET / HTTP/1.1\r\n([A-Za-z: ,.\r\n]{0,30}|Host: a.example\r\n){0,6}\r\n") {
            if let Some(Shown::Name(name)) = read(head.as_bytes()) {
                prop_assert!(head.to_ascii_lowercase().contains(name.as_str()));
            }
        }
    }
}
