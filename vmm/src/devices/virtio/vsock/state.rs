//! What of the device a snapshot keeps, and its bytes. Connections are not part of it: they end at a restore.

use thiserror::Error;

/// The saved device. The transport saves queues and features. The CID is assigned again, and the driver reads it again after a
/// transport reset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VsockState {
    /// The host port of the next connection, so that a clone does not reuse one its guest still remembers.
    pub(super) next_host_port: u32,
    /// `avail.idx` of the event queue at which the guest has taken note of an earlier transport reset, if it has not.
    pub(super) reset_noted_at: Option<u16>,
    /// Heads of transmitted chains that the driver has not got back.
    pub(super) held_transmit_heads: Vec<u16>,
}

/// Bytes that are not a saved device.
#[derive(Debug, Error)]
pub(super) enum StateError {
    #[error("{0} bytes cannot be a saved vsock device")]
    Length(usize),
    #[error("saved vsock device of layout {0}, this program reads layout {LAYOUT}")]
    Layout(u8),
}

/// Changes with any change of the bytes below.
const LAYOUT: u8 = 1;
/// layout u8, port u32, noted u8 (0 or 1), noted at u16; then heads of u16. All little-endian.
const FIXED: usize = 8;
/// A queue has no more descriptors.
const MAX_HEADS: usize = 64;

impl VsockState {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![LAYOUT];
        bytes.extend(self.next_host_port.to_le_bytes());
        bytes.push(self.reset_noted_at.is_some().into());
        bytes.extend(self.reset_noted_at.unwrap_or(0).to_le_bytes());
        bytes.extend(self.held_transmit_heads.iter().flat_map(|head| head.to_le_bytes()));
        bytes
    }

    /// # Errors
    /// When `bytes` were not made by [`VsockState::encode`]. Heads are not checked against the queue here: returning
    /// one that is not in it is refused there.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let length = StateError::Length(bytes.len());
        match bytes.first() {
            Some(&LAYOUT) => {}
            Some(&other) => return Err(StateError::Layout(other)),
            None => return Err(length),
        }
        let Some((&[_, p0, p1, p2, p3, noted, n0, n1], heads)) = bytes.split_first_chunk::<FIXED>() else {
            return Err(length);
        };
        let (heads, rest) = heads.as_chunks::<2>();
        if !rest.is_empty() || heads.len() > MAX_HEADS || noted > 1 {
            return Err(length);
        }
        Ok(Self {
            next_host_port: u32::from_le_bytes([p0, p1, p2, p3]),
            reset_noted_at: (noted == 1).then_some(u16::from_le_bytes([n0, n1])),
            held_transmit_heads: heads.iter().map(|head| u16::from_le_bytes(*head)).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn state(next_host_port: u32, reset_noted_at: Option<u16>, held_transmit_heads: Vec<u16>) -> VsockState {
        VsockState { next_host_port, reset_noted_at, held_transmit_heads }
    }

    /// Snapshots outlive builds: these bytes must keep their meaning.
    #[test]
    fn layout_1_is_pinned() {
        let bytes = [1, 0x78, 0x56, 0x34, 0x12, 1, 0xcd, 0xab, 5, 0, 0x34, 0x12];
        let expected = state(0x1234_5678, Some(0xabcd), vec![5, 0x1234]);
        assert_eq!(VsockState::decode(&bytes).unwrap(), expected);
        assert_eq!(expected.encode(), bytes);
    }

    #[test]
    fn other_layouts_and_lengths_are_refused() {
        let good = state(1, None, vec![]).encode();
        assert!(VsockState::decode(&good).is_ok());
        assert!(matches!(VsockState::decode(&[]), Err(StateError::Length(0))));
        assert!(matches!(VsockState::decode(&good[..7]), Err(StateError::Length(7))));
        assert!(matches!(VsockState::decode(&[2]), Err(StateError::Layout(2))));
        assert!(VsockState::decode(&[good.as_slice(), &[0]].concat()).is_err(), "half a head");
        assert!(VsockState::decode(&[good.as_slice(), &[0; 130]].concat()).is_err(), "more heads than descriptors");
        let mut maybe = good;
        maybe[5] = 2;
        assert!(VsockState::decode(&maybe).is_err(), "neither noted nor not");
    }

    proptest! {
        #[test]
        fn states_survive_their_bytes(port in any::<u32>(), noted in any::<Option<u16>>(), heads in proptest::collection::vec(any::<u16>(), 0..=16)) {
            let state = state(port, noted, heads);
            prop_assert_eq!(VsockState::decode(&state.encode()).unwrap(), state);
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = VsockState::decode(&bytes);
        }
    }
}
