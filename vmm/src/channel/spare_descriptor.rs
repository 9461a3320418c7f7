//! A descriptor kept back for when there is none left: with it a client that cannot be served is turned away. Otherwise it
//! would stay in the listener's backlog, the listener would stay readable, and the event loop would go round and round.

use rustix::event::{EventfdFlags, eventfd};
use std::os::{
    fd::OwnedFd,
    unix::net::{UnixListener, UnixStream},
};

/// See the module.
#[derive(Debug)]
pub struct SpareDescriptor(Option<OwnedFd>);

impl SpareDescriptor {
    /// Takes one, where there is one.
    #[must_use]
    pub fn take() -> Self {
        Self(eventfd(0, EventfdFlags::CLOEXEC).ok())
    }

    /// The next client of `listener`, which must not block; `None` when there is none that could be served.
    pub fn accept(&mut self, listener: &UnixListener) -> Option<UnixStream> {
        match listener.accept() {
            Ok((stream, _)) => return Some(stream),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {}
            // The client gave up, or was there no more.
            Err(_) => return None,
        }
        self.0 = None;
        // Closed immediately: the client reads an end of file, and may connect again.
        drop(listener.accept());
        *self = Self::take();
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    use std::{
        io::Read,
        os::{fd::AsRawFd, linux::net::SocketAddrExt, unix::net::SocketAddr},
    };

    #[test]
    fn without_descriptors_clients_are_turned_away() {
        let address = SocketAddr::from_abstract_name(format!("spare-{}", std::process::id())).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut clients: Vec<_> = (0..3).map(|_| UnixStream::connect_addr(&address).unwrap()).collect();
        let mut spare = SpareDescriptor::take();
        // Under a limit of what is open no other can be; the spare one is the highest, and can be had again.
        let highest = spare.0.as_ref().unwrap().as_raw_fd().unsigned_abs();
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(u64::from(highest) + 1), ..limit }).unwrap();
        let served = [spare.accept(&listener).is_some(), spare.accept(&listener).is_some()];
        setrlimit(Resource::Nofile, limit).unwrap();
        assert_eq!(served, [false; 2]);
        for client in &mut clients[..2] {
            assert_eq!(client.read(&mut [0]).unwrap(), 0, "turned away");
        }
        assert!(spare.accept(&listener).is_some(), "there are descriptors again");
        assert!(spare.accept(&listener).is_none(), "and no more clients");
    }
}
