//! The transport reset after a restore (virtio 1.2, 5.10.6.7): an event tells the guest that all its connections are gone,
//! and until the guest has handled it nothing else is sent to the guest.
//!
//! The wait matters. Linux handles the event and received packets on different threads, so a connection opened immediately
//! could be taken for an old one and reset. The available ring shows that the guest has handled the event: its driver gives
//! an event buffer back only then.

use crate::devices::virtio::device::DeviceError;
use crate::devices::virtio::ring::{Direction, Ring};
use std::num::Wrapping;

/// struct virtio_vsock_event with VIRTIO_VSOCK_EVENT_TRANSPORT_RESET, whose value is 0.
const TRANSPORT_RESET: [u8; 4] = [0; 4];

/// How far the reset is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum TransportReset {
    /// None is under way.
    #[default]
    Idle,
    /// The event waits for a buffer. An earlier one may not have been noted yet.
    Owed { earlier: Option<Wrapping<u16>> },
    /// The guest has noted it when the event queue's `avail.idx` has come to this.
    Told { noted_at: Wrapping<u16> },
}

impl TransportReset {
    /// Takes over from a saved device.
    pub(super) fn restored(noted_at: Option<u16>) -> Self {
        noted_at.map_or(Self::Idle, |at| Self::Told { noted_at: Wrapping(at) })
    }

    /// For saving; see [`super::state::VsockState::reset_noted_at`].
    pub(super) fn noted_at(self) -> Option<u16> {
        match self {
            Self::Idle | Self::Owed { earlier: None } => None,
            Self::Owed { earlier: Some(at) } | Self::Told { noted_at: at } => Some(at.0),
        }
    }

    pub(super) fn under_way(self) -> bool {
        self != Self::Idle
    }

    /// The connections are gone, and the guest has yet to receive the event, also when it received one for an earlier reset.
    pub(super) fn begin(&mut self) {
        *self = Self::Owed { earlier: self.noted_at().map(Wrapping) };
    }

    /// Goes as far as the event queue allows; true when a buffer was used.
    pub(super) fn advance(&mut self, ring: &mut Ring<'_>) -> Result<bool, DeviceError> {
        if !self.under_way() {
            return Ok(false);
        }
        // A driver without an event queue cannot receive the event, and has said so by leaving it out.
        if !ring.ready() {
            *self = Self::Idle;
            return Ok(false);
        }
        let mut used = false;
        if let Self::Owed { earlier } = *self {
            let Some(available) = send_event(ring)? else {
                ring.enable_notifications()?;
                return Ok(false);
            };
            used = true;
            // Every buffer the guest has not given back yet stands for an event it may not have handled.
            let pending = earlier.filter(|earlier| !reached(available, *earlier));
            *self = Self::Told { noted_at: pending.unwrap_or(available) + Wrapping(1) };
        }
        if let Self::Told { noted_at } = *self {
            // Asked for before the look, so that the guest cannot give the buffer back unseen in between.
            ring.notify_beyond(noted_at - Wrapping(1))?;
            if reached(ring.available_index()?, noted_at) {
                *self = Self::Idle;
            }
        }
        Ok(used)
    }
}

/// Puts the event into the next buffer; returns `avail.idx` as it was before the guest could see the event.
fn send_event(ring: &mut Ring<'_>) -> Result<Option<Wrapping<u16>>, DeviceError> {
    let Some(mut chain) = ring.pop(Direction::ToGuest)? else { return Ok(None) };
    let available = ring.available_index()?;
    if chain.writable.write(&TRANSPORT_RESET) < TRANSPORT_RESET.len() {
        return Err(ring.bad_buffer("an event buffer cannot hold an event"));
    }
    ring.push_used(chain.head, 4)?;
    Ok(Some(available))
}

/// Whether index `at` has come to `goal`; the driver is never half of 2^16 chains ahead.
fn reached(at: Wrapping<u16>, goal: Wrapping<u16>) -> bool {
    (at - goal).0 < 1 << 15
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_compare_across_the_wrap() {
        assert!(reached(Wrapping(3), Wrapping(3)));
        assert!(reached(Wrapping(2), Wrapping(u16::MAX)));
        assert!(!reached(Wrapping(u16::MAX), Wrapping(2)));
    }

    #[test]
    fn an_unnoted_reset_survives_saving_and_a_second_one() {
        let mut reset = TransportReset::restored(Some(9));
        reset.begin();
        assert_eq!(reset, TransportReset::Owed { earlier: Some(Wrapping(9)) });
        assert_eq!(reset.noted_at(), Some(9));
        let mut fresh = TransportReset::restored(None);
        assert!(!fresh.under_way());
        fresh.begin();
        assert_eq!(fresh.noted_at(), None);
    }
}
