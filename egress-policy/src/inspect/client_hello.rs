//! The name in a TLS ClientHello (RFC 8446, 4.1.2; RFC 6066, 3), in however many records and segments it comes.
//!
//! The encrypted ClientHello (ECH) hides a second name. No reader can tell it from its imitation, which browsers send to
//! every server (GREASE), so the outer name counts: an allowed host that forwards by an inner name is the same as one that
//! forwards by a Host header inside TLS. The resolver leaves the keys of ECH out of its answers.

use super::cursor::Cursor;
use crate::{name::DomainName, policy::Shown};

/// Content type of a record with handshake messages.
const HANDSHAKE: u8 = 22;
/// Message type.
const CLIENT_HELLO: u8 = 1;
/// Largest fragment of a record in bytes (RFC 8446, 5.1).
const MAX_FRAGMENT: usize = 1 << 14;
/// Largest ClientHello that is read, in bytes: those with post-quantum key shares have about 2,000.
const MAX_HELLO: usize = 32 * 1024;
/// Extension with the server's name, and its only kind of name.
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;

/// First byte of the ClientHello of SSL 2.0 (RFC 5246, E.2), which some servers still read.
const SSL_2: u8 = 0x80;

/// Returns true if these bytes begin a record of TLS, of whatever content and version: servers skip warnings before the
/// ClientHello, and do not look at the version of the first record. What is not a ClientHello hides its name.
pub(super) fn is_tls(opening: &[u8]) -> bool {
    // change_cipher_spec, alert, handshake, application_data and heartbeat.
    matches!(opening, [20..=24 | SSL_2, ..])
}

/// Returns the name, or nothing while more bytes are needed.
pub(super) fn read(opening: &[u8]) -> Option<Shown> {
    let mut records = Cursor(opening);
    let mut message: Vec<u8> = Vec::new();
    loop {
        let (fragment, is_whole) = match next_fragment(&mut records) {
            Fragment::Some(fragment, is_whole) => (fragment, is_whole),
            Fragment::Cut => return None,
            Fragment::Invalid => return Some(Shown::Hidden),
        };
        message.extend_from_slice(fragment);
        match hello(&message) {
            Hello::Whole(body) => return Some(name_in(body).map_or(Shown::Hidden, Shown::Name)),
            Hello::Invalid => return Some(Shown::Hidden),
            Hello::Cut if is_whole => {}
            Hello::Cut => return None,
        }
    }
}

/// A record's content.
enum Fragment<'b> {
    /// As much as there is, and whether that is all of the record.
    Some(&'b [u8], bool),
    /// Not even its header is there.
    Cut,
    /// Another kind of record, or one that is too long or empty.
    Invalid,
}

fn next_fragment<'b>(records: &mut Cursor<'b>) -> Fragment<'b> {
    let header = (records.u8(), records.u8(), records.u8(), records.u16());
    match header {
        (Some(kind), ..) if kind != HANDSHAKE => Fragment::Invalid,
        (_, Some(major), ..) if major != 3 => Fragment::Invalid,
        (Some(_), Some(_), Some(_), Some(len)) => {
            let len = usize::from(len);
            // An empty fragment of a handshake is forbidden: it would let a client write records without end.
            if len == 0 || len > MAX_FRAGMENT {
                return Fragment::Invalid;
            }
            let there = len.min(records.0.len());
            Fragment::Some(records.take(there).unwrap_or_default(), there == len)
        }
        _ => Fragment::Cut,
    }
}

/// A handshake message.
enum Hello<'b> {
    Whole(&'b [u8]),
    Cut,
    Invalid,
}

fn hello(message: &[u8]) -> Hello<'_> {
    let mut cursor = Cursor(message);
    match (cursor.u8(), cursor.u24()) {
        (Some(kind), _) if kind != CLIENT_HELLO => Hello::Invalid,
        (_, Some(len)) if len > MAX_HELLO => Hello::Invalid,
        (_, Some(len)) => cursor.take(len).map_or(Hello::Cut, Hello::Whole),
        _ => Hello::Cut,
    }
}

/// Returns the one name in a ClientHello; nothing if it is malformed, has no name, has two, or has one that is none.
fn name_in(body: &[u8]) -> Option<DomainName> {
    let mut cursor = Cursor(body);
    let _version = cursor.u16()?;
    let _random = cursor.take(32)?;
    let session = cursor.short_vector()?;
    let suites = cursor.vector()?;
    let _compression = cursor.short_vector()?;
    if session.len() > 32 || suites.len() % 2 != 0 {
        return None;
    }
    let mut extensions = Cursor(cursor.vector()?);
    if !cursor.0.is_empty() {
        return None;
    }
    let mut found = None;
    while !extensions.0.is_empty() {
        let (kind, content) = (extensions.u16()?, extensions.vector()?);
        if kind == SERVER_NAME && found.replace(content).is_some() {
            return None;
        }
    }
    let mut content = Cursor(found?);
    let mut names = Cursor(content.vector()?);
    let (kind, name) = (names.u8()?, names.vector()?);
    // RFC 6066 allows one name of each kind, and has one kind.
    let is_alone = content.0.is_empty() && names.0.is_empty() && kind == HOST_NAME;
    // The dot of the root is not allowed here; a server may read such a name as another one.
    if !is_alone || name.ends_with(b".") {
        return None;
    }
    DomainName::parse(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vector(bytes: &[u8]) -> Vec<u8> {
        [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
    }

    fn server_name(name: &[u8]) -> Vec<u8> {
        [&[0, 0][..], &vector(&vector(&[&[0][..], &vector(name)].concat()))].concat()
    }

    fn message(extensions: &[u8]) -> Vec<u8> {
        let body = [&[3, 3][..], &[7; 32], &[0], &vector(&[0x13, 1]), &[1, 0], &vector(extensions)].concat();
        let len = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[1][..], &len[1..], &body].concat()
    }

    fn records(message: &[u8], size: usize) -> Vec<u8> {
        message.chunks(size).flat_map(|chunk| [&[22, 3, 1][..], &vector(chunk)].concat()).collect()
    }

    fn shown(extensions: &[u8]) -> Option<Shown> {
        read(&records(&message(extensions), MAX_FRAGMENT))
    }

    fn example() -> Option<Shown> {
        Some(Shown::Name("example.com".parse().unwrap()))
    }

    #[test]
    fn the_name_is_found_beside_grease_and_other_extensions() {
        assert_eq!(shown(&server_name(b"example.com")), example());
        let grease = [0x0a, 0x0a, 0, 1, 0];
        let encrypted_hello = [&[0xfe, 0x0d][..], &vector(&[0; 100])].concat();
        let around = [&grease[..], &server_name(b"Example.COM"), &encrypted_hello].concat();
        assert_eq!(shown(&around), example());
    }

    #[test]
    fn the_name_is_found_however_the_bytes_are_cut() {
        let whole = message(&server_name(b"example.com"));
        for size in [1, 2, 3, 7, 50, whole.len()] {
            let bytes = records(&whole, size);
            for end in 0..bytes.len() {
                assert_eq!(read(&bytes[..end]), None, "{size} {end}");
            }
            assert_eq!(read(&bytes), example(), "{size}");
        }
    }

    #[test]
    fn a_hello_without_exactly_one_name_hides_it() {
        let mut other_kind = server_name(b"example.com");
        other_kind[6] = 1;
        for extensions in [
            Vec::new(),
            [server_name(b"example.com"), server_name(b"evil.example")].concat(),
            server_name(b""),
            server_name(b"198.51.100.1"),
            server_name(b"example.com."),
            server_name(b"example.com\0.evil.example"),
            server_name(b"[2001:db8::1]"),
            [&[0, 0][..], &vector(&vector(&[&[0][..], &vector(b"a.example"), &[0], &vector(b"b.example")].concat()))]
                .concat(),
            other_kind,
            [&server_name(b"example.com")[..], &[0]].concat(),
        ] {
            assert_eq!(shown(&extensions), Some(Shown::Hidden), "{extensions:x?}");
        }
    }

    #[test]
    fn records_and_messages_that_no_client_sends_are_not_read() {
        let whole = message(&server_name(b"example.com"));
        let mut alert_first = vec![21, 3, 1, 0, 2, 1, 0];
        alert_first.extend(records(&whole, MAX_FRAGMENT));
        let mut old_hello = vec![SSL_2, 0x2e, 1, 3, 1];
        old_hello.extend([0; 43]);
        let mut other_version = records(&whole, MAX_FRAGMENT);
        other_version[1] = 4;
        for bytes in [
            alert_first,
            old_hello,
            other_version,
            [&[22, 3, 1, 0, 0][..], &records(&whole, MAX_FRAGMENT)].concat(),
            records(&[2, 0, 0, 0], 4),
            vec![22, 3, 1, 0x40, 1],
            [&records(&whole[..10], 10)[..], &[23, 3, 1, 0, 1, 0]].concat(),
            records(&[1, 1, 0, 0], 4),
        ] {
            assert_eq!(read(&bytes), Some(Shown::Hidden), "{bytes:x?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), size in 1_usize..40) {
            let _ = read(&bytes);
            let _ = read(&records(&[&[1][..], &bytes].concat(), size));
            let _ = read(&records(&message(&bytes), size));
        }
    }
}
