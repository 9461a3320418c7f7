//! The handshake with an upstream proxy on a connected socket: SOCKS5 (RFC 1928, RFC 1929) or the method CONNECT of HTTP/1.1.
//! The proxy is asked for an address and never for a name: it would resolve the name again, and reach what the egress process
//! did not decide about. What a proxy says is hostile: it is bounded, and no byte after the handshake is read, because it is
//! the guest's. Nothing here waits.

use base64::{Engine, prelude::BASE64_STANDARD};
use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
};
use sandboxvm_protocol::egress::{DialFailure, ProxyLogin, ProxyProtocol, UpstreamProxy};
use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
};

/// Maximum length in bytes of the head of an answer to CONNECT.
const MAX_HEAD: usize = 8 * 1024;
const END_OF_HEAD: &[u8] = b"\r\n\r\n";

// Numbers of RFC 1928 and RFC 1929.
const SOCKS: u8 = 5;
const WITHOUT_LOGIN: u8 = 0;
const WITH_LOGIN: u8 = 2;
const NO_METHOD: u8 = 255;
const LOGIN: u8 = 1;
const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// What becomes of a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The proxy has to be waited for.
    Waits,
    /// The socket leads to the address.
    Done,
}

/// A handshake.
#[derive(Clone, PartialEq, Eq)]
pub struct Handshake {
    to: SocketAddr,
    login: Option<ProxyLogin>,
    stage: Stage,
    /// What is to be sent.
    unsent: Vec<u8>,
    /// What was read of the answer to it.
    read: Vec<u8>,
}

/// The answer that is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The method of SOCKS that the proxy chose.
    Method,
    /// Whether it takes the login.
    Login,
    /// The begin of its reply, and the first byte of the address from which the proxy dials.
    Reply,
    /// So many bytes, the rest of that address.
    Bound(usize),
    /// The head of an answer of HTTP.
    Head,
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshake").field("to", &self.to).field("stage", &self.stage).finish_non_exhaustive()
    }
}

impl Handshake {
    /// Returns the handshake that asks `proxy` for a connection to `to`.
    #[must_use]
    pub fn new(proxy: &UpstreamProxy, to: SocketAddr) -> Self {
        let login = proxy.login.clone();
        let (stage, unsent) = match (proxy.protocol, &login) {
            (ProxyProtocol::Socks5, None) => (Stage::Method, vec![SOCKS, 1, WITHOUT_LOGIN]),
            (ProxyProtocol::Socks5, Some(_)) => (Stage::Method, vec![SOCKS, 2, WITHOUT_LOGIN, WITH_LOGIN]),
            (ProxyProtocol::Http, _) => (Stage::Head, connect(to, login.as_ref()).into_bytes()),
        };
        Self { to, login, stage, unsent, read: Vec::new() }
    }

    /// Returns true if it has something to send: then it waits until the socket is writable, else until it is readable.
    #[must_use]
    pub fn sends(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Sends and reads what the socket has room for and holds.
    ///
    /// # Errors
    /// Why the proxy made no connection.
    pub fn advance(&mut self, socket: impl AsFd) -> Result<Progress, DialFailure> {
        let socket = socket.as_fd();
        loop {
            while !self.unsent.is_empty() {
                match send(socket, &self.unsent, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                    Ok(sent) => drop(self.unsent.drain(..sent)),
                    Err(Errno::AGAIN) => return Ok(Progress::Waits),
                    Err(Errno::INTR) => {}
                    Err(_) => return Err(DialFailure::Proxy),
                }
            }
            let is_complete = match self.stage {
                Stage::Head => self.read_head(socket),
                _ => self.read_exactly(socket),
            };
            match is_complete {
                Ok(true) => {}
                Ok(false) | Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(Progress::Waits),
                Err(_) => return Err(DialFailure::Proxy),
            }
            if self.answered()? == Progress::Done {
                return Ok(Progress::Done);
            }
        }
    }

    /// Reads up to the end of an answer whose length is known, and returns true once it is complete.
    fn read_exactly(&mut self, socket: BorrowedFd<'_>) -> Result<bool, Errno> {
        let missing = self.length().saturating_sub(self.read.len());
        if missing > 0 {
            let mut buffer = [0; 300];
            let part = &mut buffer[..missing.min(300)];
            let (count, _) = recv(socket, &mut *part, RecvFlags::DONTWAIT)?;
            self.take(&part[..count])?;
        }
        Ok(self.read.len() >= self.length())
    }

    /// Returns the length of the answer that is expected.
    fn length(&self) -> usize {
        match self.stage {
            Stage::Method | Stage::Login => 2,
            Stage::Reply => 5,
            Stage::Bound(length) => length,
            Stage::Head => MAX_HEAD,
        }
    }

    /// Reads a part of a head without a byte behind it, and returns true once it is complete.
    fn read_head(&mut self, socket: BorrowedFd<'_>) -> Result<bool, Errno> {
        let mut buffer = [0; MAX_HEAD];
        let room = MAX_HEAD.saturating_sub(self.read.len());
        let (seen, _) = recv(socket, &mut buffer[..room], RecvFlags::DONTWAIT | RecvFlags::PEEK)?;
        let known = self.read.len();
        self.take(&buffer[..seen])?;
        // The end may have begun in what was read before.
        let from = known.saturating_sub(END_OF_HEAD.len() - 1);
        let end = memchr::memmem::find(&self.read[from..], END_OF_HEAD).map(|at| from + at + END_OF_HEAD.len());
        self.read.truncate(end.unwrap_or(self.read.len()));
        let length = self.read.len() - known;
        let (count, _) = recv(socket, &mut buffer[..length], RecvFlags::DONTWAIT)?;
        if count != length {
            return Err(Errno::PROTO);
        }
        match end {
            Some(_) => Ok(true),
            None if self.read.len() >= MAX_HEAD => Err(Errno::PROTO),
            None => Ok(false),
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        if bytes.is_empty() {
            // The proxy closed the connection.
            return Err(Errno::PIPE);
        }
        self.read.extend_from_slice(bytes);
        Ok(())
    }

    /// Acts on a complete answer.
    fn answered(&mut self) -> Result<Progress, DialFailure> {
        let answer = std::mem::take(&mut self.read);
        (self.stage, self.unsent) = match (self.stage, &answer[..]) {
            (Stage::Method, [SOCKS, WITHOUT_LOGIN]) => (Stage::Reply, request(self.to)),
            (Stage::Method, [SOCKS, WITH_LOGIN]) => {
                (Stage::Login, login(self.login.as_ref().ok_or(DialFailure::ProxyLogin)?)?)
            }
            (Stage::Login, [_, 0]) => (Stage::Reply, request(self.to)),
            (Stage::Method, [SOCKS, NO_METHOD]) | (Stage::Login, _) => return Err(DialFailure::ProxyLogin),
            (Stage::Reply, [SOCKS, 0, _, kind, first]) => {
                let rest = match *kind {
                    IPV4 => 3,
                    IPV6 => 15,
                    NAME => usize::from(*first),
                    _ => return Err(DialFailure::Proxy),
                };
                (Stage::Bound(rest + size_of::<u16>()), Vec::new())
            }
            (Stage::Reply, [SOCKS, code, ..]) => return Err(failure_of_socks(*code)),
            (Stage::Bound(_), _) => return Ok(Progress::Done),
            (Stage::Head, head) => return status(head).map(|()| Progress::Done),
            _ => return Err(DialFailure::Proxy),
        };
        Ok(Progress::Waits)
    }
}

/// Returns the request of SOCKS5 to connect to `to`.
fn request(to: SocketAddr) -> Vec<u8> {
    let mut request = vec![SOCKS, CONNECT, 0];
    match to.ip() {
        IpAddr::V4(v4) => {
            request.push(IPV4);
            request.extend(v4.octets());
        }
        IpAddr::V6(v6) => {
            request.push(IPV6);
            request.extend(v6.octets());
        }
    }
    request.extend(to.port().to_be_bytes());
    request
}

/// Returns the message of SOCKS5 with user name and password.
fn login(login: &ProxyLogin) -> Result<Vec<u8>, DialFailure> {
    let mut message = vec![LOGIN];
    for text in [&login.user, &login.password] {
        let length = u8::try_from(text.len()).map_err(|_| DialFailure::Proxy)?;
        message.push(length);
        message.extend(text.as_bytes());
    }
    Ok(message)
}

/// Returns the request of HTTP to connect to `to`.
fn connect(to: SocketAddr, login: Option<&ProxyLogin>) -> String {
    let login = login.map(|ProxyLogin { user, password }| {
        format!("Proxy-Authorization: Basic {}\r\n", BASE64_STANDARD.encode(format!("{user}:{password}")))
    });
    format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{}\r\n", login.unwrap_or_default())
}

fn failure_of_socks(code: u8) -> DialFailure {
    match code {
        3 | 4 => DialFailure::Unreachable,
        5 => DialFailure::Refused,
        6 => DialFailure::TimedOut,
        // A general failure, a rule of the proxy, or what it does not support.
        _ => DialFailure::Proxy,
    }
}

/// Returns what the head of an answer to CONNECT says. After 2xx the connection is the guest's, whatever its headers say.
fn status(head: &[u8]) -> Result<(), DialFailure> {
    match head {
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0' | b'1', b' ', hundreds, tens, ones, b' ' | b'\r', ..] => {
            match [*hundreds, *tens, *ones] {
                [b'2', tens, ones] if tens.is_ascii_digit() && ones.is_ascii_digit() => Ok(()),
                [b'5', b'0', b'2' | b'3'] => Err(DialFailure::Unreachable),
                [b'5', b'0', b'4'] => Err(DialFailure::TimedOut),
                // Some answer 401 to a wrong password (tinyproxy).
                [b'4', b'0', b'1' | b'7'] => Err(DialFailure::ProxyLogin),
                _ => Err(DialFailure::Proxy),
            }
        }
        _ => Err(DialFailure::Proxy),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
    };

    const TO: &str = "198.51.100.7:443";

    fn proxy(protocol: ProxyProtocol, login: Option<(&str, &str)>) -> UpstreamProxy {
        let login = login.map(|(user, password)| ProxyLogin { user: user.into(), password: password.into() });
        UpstreamProxy { protocol, address: "192.0.2.1:1080".parse().unwrap(), login, is_operators: false }
    }

    /// A handshake with a proxy that says `parts`, each after all before it were read. Returns what the handshake came to, what
    /// it sent, and what it left unread.
    fn shake(proxy: &UpstreamProxy, to: &str, parts: &[&[u8]]) -> (Result<Progress, DialFailure>, Vec<u8>, Vec<u8>) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut handshake = Handshake::new(proxy, to.parse().unwrap());
        let mut progress = handshake.advance(&ours);
        for part in parts {
            if progress != Ok(Progress::Waits) {
                break;
            }
            assert!(!handshake.sends());
            theirs.write_all(part).unwrap();
            progress = handshake.advance(&ours);
        }
        assert!(!format!("{handshake:?}").contains("hush"));
        let (mut sent, mut left) = (Vec::new(), Vec::new());
        theirs.set_nonblocking(true).unwrap();
        ours.set_nonblocking(true).unwrap();
        let _ = theirs.read_to_end(&mut sent);
        let _ = (&ours).read_to_end(&mut left);
        (progress, sent, left)
    }

    #[test]
    fn socks_proxy_is_asked_for_the_address_and_no_byte_behind_its_reply_is_read() {
        let plain = proxy(ProxyProtocol::Socks5, None);
        let reply = b"\x05\0\0\x01\x0a\0\0\x01\x10\x20220 hello";
        let (progress, sent, left) = shake(&plain, TO, &[b"\x05\0", reply]);
        assert_eq!((progress, &left[..]), (Ok(Progress::Done), &b"220 hello"[..]));
        assert_eq!(sent, b"\x05\x01\0\x05\x01\0\x01\xc6\x33\x64\x07\x01\xbb");
        // Each byte by itself, and a name and an IPv6 address as where the proxy dials from.
        let with_login = proxy(ProxyProtocol::Socks5, Some(("me", "hush")));
        for bound in [&b"\x03\x04host\0\x50"[..], b"\x03\0\0\x50", &[&[IPV6][..], &[7; 18]].concat()] {
            let answers = [b"\x05\x02\x01\0\x05\0\0", bound, b"after"].concat();
            let bytes: Vec<&[u8]> = answers.chunks(1).collect();
            let (progress, sent, left) = shake(&with_login, "[2001:db8::7]:443", &bytes);
            assert_eq!((progress, left.len()), (Ok(Progress::Done), 0), "{bound:?}");
            assert!(sent.starts_with(b"\x05\x02\0\x02\x01\x02me\x04hush\x05\x01\0\x04\x20\x01"), "{sent:?}");
        }
    }

    #[test]
    fn http_proxy_is_asked_for_the_address_and_no_byte_behind_its_head_is_read() {
        let plain = proxy(ProxyProtocol::Http, None);
        let head = b"HTTP/1.1 200 Connection established\r\nContent-Length: 5\r\n\r\n";
        let (progress, sent, left) = shake(&plain, TO, &[&[&head[..], b"220 hello"].concat()]);
        assert_eq!((progress, &left[..]), (Ok(Progress::Done), &b"220 hello"[..]));
        assert_eq!(sent, b"CONNECT 198.51.100.7:443 HTTP/1.1\r\nHost: 198.51.100.7:443\r\n\r\n");
        let with_login = proxy(ProxyProtocol::Http, Some(("me", "hush")));
        let bytes: Vec<&[u8]> = head.chunks(1).collect();
        let (progress, sent, _) = shake(&with_login, "[2001:db8::7]:443", &bytes);
        assert_eq!(progress, Ok(Progress::Done));
        let sent = String::from_utf8(sent).unwrap();
        assert!(sent.starts_with("CONNECT [2001:db8::7]:443 HTTP/1.1\r\n"), "{sent}");
        assert!(sent.contains("\r\nProxy-Authorization: Basic bWU6aHVzaA==\r\n"), "{sent}");
    }

    #[test]
    fn refusals_of_proxies_are_reported_as_what_they_are() {
        let socks =
            |parts: &[&[u8]]| shake(&proxy(ProxyProtocol::Socks5, Some(("me", "hush"))), TO, parts).0.unwrap_err();
        let code = |code| socks(&[b"\x05\0", &[5, code, 0, 1, 0, 0, 0, 0, 0, 0]]);
        let codes: Vec<DialFailure> = (1..=9).map(code).collect();
        use DialFailure::{Proxy, ProxyLogin, Refused, TimedOut, Unreachable};
        assert_eq!(codes, [Proxy, Proxy, Unreachable, Unreachable, Refused, TimedOut, Proxy, Proxy, Proxy]);
        assert_eq!(socks(&[b"\x05\x02", b"\x01\x01"]), ProxyLogin, "the login is refused");
        assert_eq!(socks(&[b"\x05\xff"]), ProxyLogin);
        let http = |head: &str| shake(&proxy(ProxyProtocol::Http, None), TO, &[head.as_bytes()]).0;
        for (status, failure) in
            [(407, ProxyLogin), (403, Proxy), (100, Proxy), (502, Unreachable), (503, Unreachable), (504, TimedOut)]
        {
            assert_eq!(http(&format!("HTTP/1.1 {status} x\r\n\r\n")), Err(failure), "{status}");
        }
        assert_eq!(http("HTTP/1.0 200\r\n\r\n"), Ok(Progress::Done));
    }

    #[test]
    fn hostile_proxies_end_the_handshake_and_are_read_within_bounds() {
        let socks = |parts: &[&[u8]]| shake(&proxy(ProxyProtocol::Socks5, None), TO, parts).0;
        for parts in [
            &[&b"\x04\0"[..]][..],
            &[b"\x05\x01"],
            &[b"\x05\0", b"\x04\0\0\x01\0\0\0\0\0\0"],
            &[b"\x05\0", b"\x05\0\0\x02\0\0\0\0\0\0"],
        ] {
            assert_eq!(socks(parts), Err(DialFailure::Proxy), "{parts:?}");
        }
        // A login that nothing was offered for.
        assert_eq!(socks(&[b"\x05\x02"]), Err(DialFailure::ProxyLogin));
        let http = |part: &[u8]| shake(&proxy(ProxyProtocol::Http, None), TO, &[part]);
        for head in
            ["SSH-2.0-x\r\n\r\n", "HTTP/2 200 \r\n\r\n", "HTTP/1.1 2xx \r\n\r\n", "HTTP/1.1 2000\r\n\r\n", "\r\n\r\n"]
        {
            assert_eq!(http(head.as_bytes()).0, Err(DialFailure::Proxy), "{head}");
        }
        assert_eq!(http(&[b'x'; MAX_HEAD - 1]).0, Ok(Progress::Waits));
        let (progress, _, left) = http(&[b'x'; 3 * MAX_HEAD]);
        assert_eq!((progress, left.len()), (Err(DialFailure::Proxy), 2 * MAX_HEAD));
        for protocol in [ProxyProtocol::Socks5, ProxyProtocol::Http] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            drop(theirs);
            let mut handshake = Handshake::new(&proxy(protocol, None), TO.parse().unwrap());
            assert_eq!(handshake.advance(&ours), Err(DialFailure::Proxy));
        }
        // Any bytes are an answer, an error, or too few.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..5000 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let mut bytes = [&b"\x05\0\x05\0"[..(state % 5) as usize], &state.to_le_bytes()].concat();
            bytes[4..].iter_mut().for_each(|byte| *byte %= 6);
            let _ = socks(&[&bytes]);
        }
    }
}
