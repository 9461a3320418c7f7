//! The vsock device between a driver and clients that do anything: packets with any content,
//! invalid lines, and clients that connect, write, read and disconnect at any time.

use super::driver::Driver;
use crate::input::Input;
use sandboxvm_protocol::ids::GuestCid;
use sandboxvm_vmm::devices::virtio::vsock::{VsockDevice, VsockOptions};
use std::{
    io::{Read, Write},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    sync::atomic::{AtomicU64, Ordering},
};

/// Maximum number of clients at the same time.
const CLIENTS: usize = 20;

/// Input: the actions of the driver, mixed with those of the clients.
pub fn vsock_device(data: &[u8]) {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let name = format!("sandboxvm-fuzz-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let address = SocketAddr::from_abstract_name(name).expect("a short name");
    let listener = UnixListener::bind_addr(&address).expect("the name is unique");
    let device = VsockDevice::new(VsockOptions::unlimited(GuestCid::DEFAULT), listener).expect("an epoll set");
    let mut clients: Vec<UnixStream> = Vec::new();
    Driver::new(Box::new(device)).run(Input::new(data), |action, input| {
        let chosen = usize::from(action >> 3) % clients.len().max(1);
        let is_room = clients.len() < CLIENTS;
        match (action & 7, clients.get_mut(chosen)) {
            (0..=2, _) if is_room => {
                let Ok(mut client) = UnixStream::connect_addr(&address) else { return };
                client.set_nonblocking(true).expect("a socket can be non-blocking");
                // A complete line with a low port, or bytes of the input.
                let _ = match action & 7 {
                    0 => client.write(format!("CONNECT {}\n", action >> 3).as_bytes()),
                    _ => client.write(input.bytes(usize::from(action >> 3))),
                };
                clients.push(client);
            }
            (3 | 4, Some(client)) => drop(client.write(input.bytes(64))),
            (5, Some(client)) => drop(client.read(&mut [0; 4096])),
            (6, Some(client)) => drop(client.shutdown(std::net::Shutdown::Write)),
            (7, Some(_)) => drop(clients.remove(chosen)),
            _ => {}
        }
    });
}
