//! A guest that sends any frames to its egress process, and upstreams that say anything.
//!
//! Input: actions, each one byte, what it needs, and a length with as many bytes. 0 sends a frame, 1 an IPv4 packet in a
//! frame, 2 a TCP segment whose numbers are near those that the gateway expects, 3 bytes of an upstream, 4 new rules.

use crate::input::Input;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
use sandboxvm_egress::tls::trust::Trust;
use sandboxvm_egress::{
    dialing::Dialing,
    flows::Gateway,
    packets,
    session::Session,
    stack::{
        addresses::{GATEWAY_MAC, GUEST_MAC, GUEST_V4},
        link::Link,
        outlet::{Outlet, register},
    },
};
use sandboxvm_protocol::egress::{DialAnswer, DialFailure, DialRequest, NetworkSettings, Reach, dial::REQUEST_LEN};
use std::{
    cell::RefCell,
    io::Write,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    rc::Rc,
};
use tokio::{runtime::Builder, task::LocalSet};

/// Maximum number of actions of one input.
const ACTIONS: usize = 64;

/// Where the segments go: a server that is allowed, one whose name decides, the resolver, and one that is refused.
const PEERS: [([u8; 4], u16); 4] =
    [([198, 51, 100, 1], 443), ([198, 51, 100, 2], 80), ([198, 18, 0, 1], 53), ([10, 0, 0, 1], 80)];

/// The ends that the target holds.
struct Outside {
    frames: OwnedFd,
    dialer: OwnedFd,
    upstreams: Vec<UnixStream>,
    /// The next number that the gateway expects, and sends, for each peer.
    numbers: [(u32, u32); PEERS.len()],
}

/// Sends the frames to a gateway.
pub fn egress_frames(data: &[u8]) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        let (frames, inner_frames) = pair(SocketType::SEQPACKET);
        let (dialer, inner_dialer) = pair(SocketType::SEQPACKET);
        let link = Link::new(Outlet::new(Rc::new(register(inner_frames).expect("a socket"))));
        let dialing = Dialing::new(inner_dialer).expect("a socket");
        let mut session = Session::new(0, Trust::default());
        session.configure(settings(0)).expect("the rules are valid");
        let now = std::time::Instant::now();
        let name = "a.example".parse().expect("a name");
        session.pins.pin(&name, [198, 51, 100, 2].into(), std::time::Duration::from_secs(60), now);
        let gateway = Gateway::new(Rc::clone(&link), Rc::new(RefCell::new(session)), dialing);
        let mut outside = Outside { frames, dialer, upstreams: Vec::new(), numbers: [(1, 1); PEERS.len()] };
        let mut input = Input::new(data);
        for _ in 0..ACTIONS {
            let Some(action) = input.byte() else { break };
            outside.act(&gateway, action, &mut input);
            // Its tasks, and those that they wake.
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
            outside.dial();
            link.outlet.borrow_mut().retry();
            link.resume();
            outside.listen();
        }
        let _ = gateway.configure(NetworkSettings::default());
        tokio::task::yield_now().await;
        let counters = gateway.counters();
        assert!(counters.open as usize <= ACTIONS, "{counters:?}");
    });
}

fn settings(which: u8) -> NetworkSettings {
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    NetworkSettings {
        reach: if which & 1 == 0 { Reach::Listed } else { Reach::Public },
        allow: texts(&["198.51.100.1", "a.example"]),
        deny: if which & 2 == 0 { Vec::new() } else { texts(&["b.example"]) },
        opened: texts(&["198.51.100.0/24"]),
        ..NetworkSettings::default()
    }
}

fn pair(kind: SocketType) -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socketpair(AddressFamily::UNIX, kind, flags, None).expect("a pair of sockets")
}

impl Outside {
    fn act(&mut self, gateway: &Rc<Gateway>, action: u8, input: &mut Input<'_>) {
        let byte = |input: &mut Input<'_>| input.byte().unwrap_or(0);
        match action % 5 {
            0 => {
                let len = usize::from(byte(input));
                gateway.handle(&[&[0; 12], input.bytes(len)].concat());
            }
            1 => {
                let (peer, protocol, len) = (byte(input), byte(input), usize::from(byte(input)));
                let (address, _) = PEERS[usize::from(peer) % PEERS.len()];
                gateway.handle(&frame(address, protocol, input.bytes(len)));
            }
            2 => {
                let (peer, flags, near) = (usize::from(byte(input)) % PEERS.len(), byte(input), byte(input));
                let len = usize::from(byte(input));
                let data = input.bytes(len);
                let (sequence, confirmed) = self.numbers[peer];
                let ((address, port), shift) = (PEERS[peer], u32::from(near & 0x7f));
                let sequence = if near & 0x80 == 0 { sequence } else { sequence.wrapping_add(shift).wrapping_sub(64) };
                let mut segment = vec![0x80, peer as u8 + 1];
                segment.extend(port.to_be_bytes());
                segment.extend(sequence.to_be_bytes());
                segment.extend(confirmed.to_be_bytes());
                segment.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
                segment.extend(data);
                gateway.handle(&frame(address, 6, &segment));
                if near & 0x80 == 0 {
                    let extra = u32::from(flags & 1) + u32::from(flags >> 1 & 1);
                    self.numbers[peer].0 = sequence.wrapping_add(data.len() as u32).wrapping_add(extra);
                }
            }
            3 => {
                let (which, len) = (usize::from(byte(input)), usize::from(byte(input)));
                let data = input.bytes(len);
                let count = self.upstreams.len().max(1);
                if data.is_empty() && which % count < self.upstreams.len() {
                    self.upstreams.remove(which % count);
                } else if let Some(upstream) = self.upstreams.get_mut(which % count) {
                    let _ = upstream.write(data);
                }
            }
            _ => {
                let _ = gateway.configure(settings(byte(input)));
            }
        }
    }

    /// Answers what is dialled: with a stream, or by a refusal.
    fn dial(&mut self) {
        let mut bytes = [0; REQUEST_LEN];
        while let Ok((_, REQUEST_LEN)) = recv(&self.dialer, &mut bytes[..], RecvFlags::DONTWAIT) {
            let request = DialRequest::from_bytes(&bytes).expect("a request of the gateway");
            if request.id % 5 == 4 {
                let answer = DialAnswer { id: request.id, result: Err(DialFailure::Refused) };
                let _ = packets::send_with(&self.dialer, &answer.to_bytes(), None);
                continue;
            }
            let (ours, theirs) = pair(SocketType::STREAM);
            self.upstreams.push(ours.into());
            let answer = DialAnswer { id: request.id, result: Ok(()) };
            let _ = packets::send_with(&self.dialer, &answer.to_bytes(), Some(&theirs));
        }
    }

    /// Reads what the gateway sends, for its numbers.
    fn listen(&mut self) {
        let mut buffer = vec![0; 66_000];
        while let Ok((_, count @ 1..)) = recv(self.frames.as_fd(), &mut buffer[..], RecvFlags::DONTWAIT) {
            let frame = &buffer[..count];
            assert!(count >= 12 + 14 && frame[12..18] == GUEST_MAC.0 && frame[18..24] == GATEWAY_MAC.0);
            // A segment without options in the IP header.
            if let Some(sequence) = frame.get(50..54)
                && frame[24..26] == [8, 0]
                && frame[35] == 6
                && let Some(peer) = PEERS.iter().position(|(address, _)| frame[38..42] == *address)
            {
                let sequence = u32::from_be_bytes(sequence.try_into().expect("four bytes"));
                let (header, flags) = (usize::from(frame[58] >> 4) * 4, frame[59]);
                let data = (count - 46).saturating_sub(header) as u32;
                let extra = u32::from(flags & 1) + u32::from(flags >> 1 & 1);
                self.numbers[peer].1 = sequence.wrapping_add(data).wrapping_add(extra);
            }
        }
    }
}

/// A frame with an IPv4 packet of the guest.
fn frame(to: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(20 + payload.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut frame = vec![0; 12];
    frame.extend(GATEWAY_MAC.0);
    frame.extend(GUEST_MAC.0);
    frame.extend([8, 0, 0x45, 0, len[0], len[1], 0, 0, 0, 0, 64, protocol, 0, 0]);
    frame.extend(GUEST_V4.octets());
    frame.extend(to);
    frame.extend(payload);
    frame
}
