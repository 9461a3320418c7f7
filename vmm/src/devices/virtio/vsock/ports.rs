//! Which host port the next connection gets.

use super::packet::HostPort;

/// Hands out host ports in ascending order, so that a port is used again only after all others: a guest that still holds its
/// end of an old connection, also one from before a snapshot, never sees that port on a new connection.
#[derive(Debug)]
pub(super) struct HostPorts {
    next: u32,
}

/// Ports below are left to services with fixed numbers.
const FIRST: u32 = 1024;
/// Where a new machine begins.
const START: u32 = 1 << 30;
/// VMADDR_PORT_ANY is not a port.
const LAST: u32 = u32::MAX - 1;

impl HostPorts {
    pub(super) fn new() -> Self {
        Self { next: START }
    }

    /// Continues where a saved device stopped.
    pub(super) fn starting_at(next: u32) -> Self {
        Self { next: if (FIRST..=LAST).contains(&next) { next } else { FIRST } }
    }

    /// The port after the ones given out.
    pub(super) fn next(&self) -> u32 {
        self.next
    }

    /// Gives out the next port that is not `taken`. The caller holds far fewer ports than there are, so this ends.
    pub(super) fn allocate(&mut self, taken: impl Fn(HostPort) -> bool) -> HostPort {
        loop {
            let port = HostPort(self.next);
            self.next = if self.next >= LAST { FIRST } else { self.next + 1 };
            if !taken(port) {
                return port;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_count_up_wrap_and_skip_taken_ones() {
        let mut ports = HostPorts::starting_at(LAST);
        assert_eq!(ports.allocate(|_| false), HostPort(LAST));
        assert_eq!(ports.allocate(|port| port.0 < FIRST + 3), HostPort(FIRST + 3));
        assert_eq!(ports.next(), FIRST + 4);
    }

    #[test]
    fn a_saved_counter_out_of_range_is_put_right() {
        assert_eq!(HostPorts::starting_at(u32::MAX).next(), FIRST);
        assert_eq!(HostPorts::starting_at(0).next(), FIRST);
        assert_eq!(HostPorts::starting_at(70_000).next(), 70_000);
    }
}
