//! The network card between a driver that does anything and a peer that sends any packets, reads or
//! not, leaves, and is replaced at any time.

use super::driver::Driver;
use crate::input::Input;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use sandboxvm_protocol::{
    network::{MacAddress, Mtu},
    vmm::NetConfig,
};
use sandboxvm_vmm::devices::virtio::net::{NetDevice, NetworkCard};
use std::os::fd::OwnedFd;

/// Bytes of the device's header and of an Ethernet header.
const HEADERS: usize = 26;

fn attach(card: &NetworkCard) -> OwnedFd {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("a socket pair");
    card.attach(theirs).expect("a socket for packets");
    ours
}

/// Input: the actions of the driver, mixed with those of the peer.
pub fn net_device(data: &[u8]) {
    let config = NetConfig { mac: MacAddress::GUEST, mtu: Mtu::GUEST };
    let (device, card) = NetDevice::new(config).expect("an epoll set");
    let mut peer = Some(attach(&card));
    let mut packet = vec![0; 70_000];
    Driver::new(Box::new(device)).run(Input::new(data), |action, input| {
        let Some(socket) = &peer else {
            peer = Some(attach(&card));
            return;
        };
        match action & 7 {
            // A valid frame whose length is of the input, or any bytes.
            0..=2 => {
                let length = HEADERS + usize::from(input.half().unwrap_or(0));
                packet[..HEADERS].fill(0);
                let _ = send(socket, &packet[..length], SendFlags::NOSIGNAL);
            }
            3 => {
                let _ = send(socket, input.bytes(usize::from(action >> 3) * 8), SendFlags::NOSIGNAL);
            }
            4 | 5 => {
                // What the guest sent begins with a header that asks for nothing but a checksum.
                if let Ok((length @ 1.., _)) = recv(socket, &mut packet[..], RecvFlags::empty()) {
                    assert!((HEADERS..=usize::from(Mtu::MAX) + HEADERS).contains(&length), "{length} bytes");
                    assert!(packet[0] <= 1 && packet[1..6] == [0; 5] && packet[10..12] == [0; 2]);
                }
            }
            6 => peer = Some(attach(&card)),
            _ => peer = None,
        }
    });
}
