//! What a TCP connection of smoltcp sees of the link: the packet that it is given, and the outlet.

use super::{addresses::MTU, outlet::Outlet};
use smoltcp::{
    phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken},
    time::Instant,
    wire::EthernetProtocol,
};

/// Longest packet of a reply that is dropped because the outlet is not free: a segment without data.
const REPLY: usize = 256;

/// The link, for one call into smoltcp.
pub(super) struct Port<'p> {
    /// The packet that came, if one did.
    pub(super) packet: Option<&'p [u8]>,
    pub(super) outlet: &'p mut Outlet,
    pub(super) kind: EthernetProtocol,
}

pub(super) struct Received<'p>(&'p [u8]);

pub(super) struct Sending<'p> {
    outlet: &'p mut Outlet,
    kind: EthernetProtocol,
}

impl Device for Port<'_> {
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Sending<'a>
    where
        Self: 'a;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Sending<'_>)> {
        let packet = self.packet.take()?;
        Some((Received(packet), Sending { outlet: self.outlet, kind: self.kind }))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        self.outlet.is_free().then_some(Sending { outlet: self.outlet, kind: self.kind })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        // Between a guest and its host no bit is lost, and the card tells the guest so.
        let mut checksum = ChecksumCapabilities::default();
        checksum.ipv4 = Checksum::Tx;
        checksum.tcp = Checksum::None;
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        capabilities.checksum = checksum;
        capabilities
    }
}

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        if !self.outlet.is_free() {
            // A reply to a segment, which the guest makes smoltcp repeat.
            let (mut short, mut long) = ([0; REPLY], Vec::new());
            return match short.get_mut(..len) {
                Some(bytes) => f(bytes),
                None => {
                    long.resize(len, 0);
                    f(&mut long)
                }
            };
        }
        let mut result = None;
        self.outlet.send(self.kind, len, |bytes| result = Some(f(bytes)));
        // The outlet is free and smoltcp keeps to the MTU, so `send` has called the closure.
        result.expect("the outlet wrote the packet")
    }
}
