//! The header every packet starts with (virtio 1.2, 5.10.6), and the values its fields may have.
//!
//! Only converts between bytes and types: any 44 bytes decode, and what they mean is for the caller to judge, because
//! a packet with an unknown operation still has to be answered at the address it came from.

use std::fmt;

/// Size of a packet header in bytes.
pub(super) const HEADER_SIZE: usize = 44;

/// Largest payload of one packet in bytes; Linux calls it VIRTIO_VSOCK_MAX_PKT_BUF_SIZE.
pub(super) const MAX_PAYLOAD: u32 = 64 * 1024;

/// The host's CID (virtio 1.2, 5.10.4).
pub(super) const HOST_CID: u64 = 2;

/// Value of the `type` field for stream sockets, the only ones this device has.
pub(super) const TYPE_STREAM: u16 = 1;

/// A vsock port on the guest's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct GuestPort(pub(super) u32);

/// A vsock port on the host's side, given out by [`super::ports::HostPorts`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct HostPort(pub(super) u32);

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Address {
    /// Context ID; 64 bits on the wire, of which the upper 32 must be zero.
    pub(super) cid: u64,
    pub(super) port: u32,
}

/// The `op` field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Operation {
    Request = 1,
    Response = 2,
    Reset = 3,
    Shutdown = 4,
    ReadWrite = 5,
    CreditUpdate = 6,
    CreditRequest = 7,
}

impl Operation {
    pub(super) fn from_wire(value: u16) -> Option<Self> {
        Some(match value {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::ReadWrite,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }

    fn to_wire(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Reset => 3,
            Self::Shutdown => 4,
            Self::ReadWrite => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
        }
    }
}

/// What a SHUTDOWN packet says its sender will do no more; hints only ever add up (virtio 1.2, 5.10.6.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Shutdown {
    pub(super) receives_no_more: bool,
    pub(super) sends_no_more: bool,
}

impl Shutdown {
    pub(super) const BOTH: Self = Self { receives_no_more: true, sends_no_more: true };

    pub(super) fn from_flags(flags: u32) -> Self {
        Self { receives_no_more: flags & 1 != 0, sends_no_more: flags & 2 != 0 }
    }

    pub(super) fn to_flags(self) -> u32 {
        u32::from(self.receives_no_more) | u32::from(self.sends_no_more) << 1
    }
}

/// What every packet says about its sender's receive buffer (virtio 1.2, 5.10.6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct CreditFields {
    /// Size of the buffer in bytes.
    pub(super) buffer_size: u32,
    /// Bytes taken out of the buffer since the connection began, modulo 2^32.
    pub(super) forwarded: u32,
}

/// A decoded packet header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) source: Address,
    pub(super) destination: Address,
    /// Bytes of payload that follow.
    pub(super) length: u32,
    pub(super) socket_type: u16,
    /// The `op` field as sent; see [`Operation::from_wire`].
    pub(super) operation: u16,
    pub(super) flags: u32,
    pub(super) credit: CreditFields,
}

impl Header {
    /// A stream packet without payload, flags or credit.
    pub(super) fn new(source: Address, destination: Address, operation: Operation) -> Self {
        Self {
            source,
            destination,
            length: 0,
            socket_type: TYPE_STREAM,
            operation: operation.to_wire(),
            flags: 0,
            credit: CreditFields::default(),
        }
    }

    /// The RST that refuses this packet: same socket type, ends swapped.
    pub(super) fn refusal(&self) -> Self {
        Self { socket_type: self.socket_type, ..Self::new(self.destination, self.source, Operation::Reset) }
    }

    pub(super) fn decode(bytes: &[u8; HEADER_SIZE]) -> Self {
        let half = |at: usize| u16::from_le_bytes(field(bytes, at));
        let word = |at: usize| u32::from_le_bytes(field(bytes, at));
        let double = |at: usize| u64::from_le_bytes(field(bytes, at));
        Self {
            source: Address { cid: double(0), port: word(16) },
            destination: Address { cid: double(8), port: word(20) },
            length: word(24),
            socket_type: half(28),
            operation: half(30),
            flags: word(32),
            credit: CreditFields { buffer_size: word(36), forwarded: word(40) },
        }
    }

    pub(super) fn encode(&self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        bytes[0..8].copy_from_slice(&self.source.cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.destination.cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.source.port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.destination.port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.length.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.socket_type.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.operation.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.credit.buffer_size.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.credit.forwarded.to_le_bytes());
        bytes
    }
}

fn field<const N: usize>(bytes: &[u8; HEADER_SIZE], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The layout of virtio 1.2, 5.10.6, byte by byte.
    #[test]
    fn header_has_the_layout_of_the_specification() {
        let header = Header {
            source: Address { cid: 0x0807_0605_0403_0201, port: 0x1413_1211 },
            destination: Address { cid: 0x100f_0e0d_0c0b_0a09, port: 0x1817_1615 },
            length: 0x1c1b_1a19,
            socket_type: 0x1e1d,
            operation: 0x201f,
            flags: 0x2423_2221,
            credit: CreditFields { buffer_size: 0x2827_2625, forwarded: 0x2c2b_2a29 },
        };
        let expected: Vec<u8> = (1..=44).collect();
        assert_eq!(header.encode().as_slice(), expected);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_and_encode_to_themselves(bytes in proptest::array::uniform32(0u8..), tail in proptest::array::uniform12(0u8..)) {
            let mut all = [0; HEADER_SIZE];
            all[..32].copy_from_slice(&bytes);
            all[32..].copy_from_slice(&tail);
            prop_assert_eq!(Header::decode(&all).encode(), all);
        }
    }

    #[test]
    fn every_operation_survives_the_wire_and_others_do_not() {
        for value in 0..=u16::MAX {
            let known = Operation::from_wire(value);
            assert_eq!(known.is_some(), (1..=7).contains(&value), "{value}");
            if let Some(operation) = known {
                assert_eq!(operation.to_wire(), value);
            }
        }
    }

    #[test]
    fn shutdown_flags_are_the_specifications() {
        assert_eq!(Shutdown::from_flags(1), Shutdown { receives_no_more: true, sends_no_more: false });
        assert_eq!(Shutdown::from_flags(2), Shutdown { receives_no_more: false, sends_no_more: true });
        assert_eq!(Shutdown::from_flags(!0), Shutdown::BOTH);
        assert_eq!(Shutdown::BOTH.to_flags(), 3);
    }
}
