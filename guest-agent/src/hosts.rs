//! The content of `/etc/hosts` (hosts(5)) with a line that names this machine. This module only
//! changes text; [`crate::names`] owns the file. The line is that of 127.0.1.1, as in Debian. All
//! other lines belong to the image and to programs of the sandbox, and stay byte for byte.

use sandboxvm_protocol::network::{GATEWAY_IPV4, GATEWAY_NAME};

/// Maximum size in bytes of a file that is rewritten. It is larger than in any image, and fast to
/// read.
pub(crate) const MAX: usize = 16 * 1024;

/// Content for an image without the file.
pub(crate) const DEFAULT: &[u8] = b"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n";

const OWN_ADDRESS: &[u8] = b"127.0.1.1";

/// Returns `content` with `hostname` for 127.0.1.1. Replaces the first such line, or adds one at
/// the end.
pub(crate) fn naming(content: &[u8], hostname: &str) -> Vec<u8> {
    let mut named = Vec::with_capacity(content.len() + OWN_ADDRESS.len() + hostname.len() + 3);
    let mut is_named = false;
    for line in content.split_inclusive(|byte| *byte == b'\n') {
        if is_named || !is_own(line) {
            named.extend_from_slice(line);
        } else {
            push_own(&mut named, hostname);
            is_named = true;
        }
    }
    if !is_named {
        if named.last().is_some_and(|byte| *byte != b'\n') {
            named.push(b'\n');
        }
        push_own(&mut named, hostname);
    }
    named
}

/// Adds a line that names the gateway of the network card, at which services of the host are, unless
/// the image names it.
pub(crate) fn add_gateway(content: &mut Vec<u8>) {
    if content.split(u8::is_ascii_whitespace).any(|field| field == GATEWAY_NAME.as_bytes()) {
        return;
    }
    if content.last().is_some_and(|byte| *byte != b'\n') {
        content.push(b'\n');
    }
    content.extend_from_slice(format!("{GATEWAY_IPV4} {GATEWAY_NAME}\n").as_bytes());
}

fn is_own(line: &[u8]) -> bool {
    line.split(u8::is_ascii_whitespace).find(|field| !field.is_empty()) == Some(OWN_ADDRESS)
}

fn push_own(named: &mut Vec<u8>, hostname: &str) {
    named.extend_from_slice(OWN_ADDRESS);
    named.push(b' ');
    named.extend_from_slice(hostname.as_bytes());
    named.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_line_is_replaced_and_others_stay() {
        let image = b"127.0.0.1 localhost\n127.0.1.1 sandbox\n::1 localhost\n";
        assert_eq!(naming(image, "demo"), b"127.0.0.1 localhost\n127.0.1.1 demo\n::1 localhost\n");
        let edited = b"# 127.0.1.1 x\n\t127.0.1.1\told alias\n127.0.1.10 y\n127.0.1.1 second\n\xff z";
        assert_eq!(naming(edited, "b"), b"# 127.0.1.1 x\n127.0.1.1 b\n127.0.1.10 y\n127.0.1.1 second\n\xff z");
    }

    #[test]
    fn the_gateway_is_named_once() {
        let mut hosts = b"127.0.0.1 localhost".to_vec();
        add_gateway(&mut hosts);
        add_gateway(&mut hosts);
        assert_eq!(hosts, b"127.0.0.1 localhost\n198.18.0.1 host.internal\n");
    }

    #[test]
    fn a_missing_own_line_is_added_as_a_separate_line() {
        assert_eq!(naming(b"", "a"), b"127.0.1.1 a\n");
        assert_eq!(naming(b"10.0.0.1 db", "a"), b"10.0.0.1 db\n127.0.1.1 a\n");
        assert_eq!(naming(&naming(DEFAULT, "a"), "b"), naming(DEFAULT, "b"));
    }
}
