//! A peer that sends anything at all: the answer is an error, once and for ever, and never a panic.

use crate::{samples, strategies::*};
use proptest::{collection::vec, prelude::*};
use sandboxvm_protocol::{
    agent::{self, *},
    frame::{FrameDecoder, FrameError, FrameKind, HEADER_LEN, MAX_STREAM_BODY, Wire},
    vmm::{self, *},
};

/// Feeds `chunks` as a receiver does, decoding every message as every type it could be.
fn receive(wire: Wire, cap: usize, chunks: &[Vec<u8>]) {
    let mut decoder = FrameDecoder::new(wire, cap);
    let mut failed = None;
    for chunk in chunks {
        decoder.push(chunk);
        loop {
            match decoder.next_frame() {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    assert!(failed.is_none(), "a frame after {failed:?}");
                    let body_cap = if frame.kind == FrameKind::Message { cap } else { MAX_STREAM_BODY };
                    assert!(frame.body.len() <= body_cap);
                    decode_as_everything(wire, frame.body);
                }
                Err(error) => {
                    // The first error stands: there is no boundary to find again.
                    assert_eq!(*failed.get_or_insert(error.clone()), error);
                    break;
                }
            }
        }
    }
}

/// Whatever decodes must encode again: nothing invalid came into being.
fn decode_as_everything(wire: Wire, body: &[u8]) {
    fn one<T: samples::WireMessage>(wire: Wire, body: &[u8]) {
        if let Ok(message) = wire.decode_message::<T>(body) {
            let mut again = Vec::new();
            wire.append_message(&mut again, &message, usize::MAX).expect("a decoded message encodes");
            assert_eq!(wire.decode_message::<T>(&again[HEADER_LEN..]).expect("and decodes again"), message);
        }
    }
    one::<HostMessage>(wire, body);
    one::<AgentMessage>(wire, body);
    one::<LaunchConfig>(wire, body);
    one::<vmm::v1::LaunchConfig>(wire, body);
    one::<ControlRequest>(wire, body);
    one::<VmmMessage>(wire, body);
}

/// Both wires with the caps their receivers use.
fn receivers() -> impl Strategy<Value = (Wire, usize)> {
    prop_oneof![
        Just((agent::WIRE, MAX_HOST_MESSAGE)),
        Just((agent::WIRE, MAX_AGENT_MESSAGE)),
        Just((vmm::WIRE, MAX_MESSAGE)),
        Just((agent::WIRE, 16)),
    ]
}

/// A frame whose header is plausible and whose body is anything.
fn plausible(wire: Wire) -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![Just(0x01u8), Just(0x10), Just(0x11), Just(0x12), any::<u8>()];
    let version = prop_oneof![4 => Just(wire.version), 1 => any::<u8>()];
    (kind, version, vec(any::<u8>(), 0..100), prop_oneof![4 => Just(None), 1 => any::<u32>().prop_map(Some)]).prop_map(
        move |(kind, version, body, lie)| {
            let len = lie.unwrap_or(u32::try_from(body.len()).expect("short"));
            let mut frame = vec![wire.magic[0], wire.magic[1], version, kind];
            frame.extend(len.to_le_bytes());
            frame.extend(body);
            frame
        },
    )
}

proptest! {
    #[test]
    fn random_bytes_never_panic((wire, cap) in receivers(), chunks in vec(vec(any::<u8>(), 0..200), 0..8)) {
        receive(wire, cap, &chunks);
    }

    #[test]
    fn random_bodies_never_panic(body in vec(any::<u8>(), 0..300)) {
        decode_as_everything(agent::WIRE, &body);
    }

    #[test]
    fn plausible_frames_never_panic(
        (wire, cap, chunks) in receivers()
            .prop_flat_map(|(wire, cap)| (Just(wire), Just(cap), vec(plausible(wire), 0..8)))
    ) {
        receive(wire, cap, &chunks);
    }

    /// One byte of a valid message changed: still no panic, and still nothing invalid.
    #[test]
    fn flipped_bytes_never_panic(message in host_message(), at in any::<prop::sample::Index>(), mask in 1u8..) {
        let mut frame = Vec::new();
        agent::WIRE.append_message(&mut frame, &message, MAX_HOST_MESSAGE).expect("below the cap");
        let at = at.index(frame.len());
        frame[at] ^= mask;
        receive(agent::WIRE, MAX_HOST_MESSAGE, &[frame]);
    }

    /// The same of what a guest says.
    #[test]
    fn flipped_bytes_of_the_guests_never_panic(
        message in agent_message(), at in any::<prop::sample::Index>(), mask in 1u8..
    ) {
        let mut frame = Vec::new();
        agent::WIRE.append_message(&mut frame, &message, MAX_AGENT_MESSAGE).expect("below the cap");
        let at = at.index(frame.len());
        frame[at] ^= mask;
        receive(agent::WIRE, MAX_AGENT_MESSAGE, &[frame]);
    }

    /// A machine's description with one byte changed.
    #[test]
    fn flipped_bytes_of_a_launch_never_panic(
        config in launch_config(), at in any::<prop::sample::Index>(), mask in 1u8..
    ) {
        let mut frame = Vec::new();
        vmm::WIRE.append_message(&mut frame, &config, MAX_MESSAGE).expect("below the cap");
        let at = at.index(frame.len());
        frame[at] ^= mask;
        receive(vmm::WIRE, MAX_MESSAGE, &[frame]);
    }

    #[test]
    fn stray_bytes_after_a_message_are_refused(message in vmm_message(), stray in vec(any::<u8>(), 1..20)) {
        let mut body = postcard::to_stdvec(&message).expect("encodes");
        body.extend(&stray);
        let refused = Err(FrameError::Trailing(stray.len()));
        prop_assert_eq!(vmm::WIRE.decode_message::<VmmMessage>(&body), refused);
    }

    #[test]
    fn a_truncated_body_is_refused(message in host_message(), cut in any::<prop::sample::Index>()) {
        let body = postcard::to_stdvec(&message).expect("encodes");
        let short = &body[..cut.index(body.len())];
        prop_assert!(matches!(agent::WIRE.decode_message::<HostMessage>(short), Err(FrameError::Body(_))));
    }
}

/// Devices of a kind that this build does not know come from a newer manager.
#[test]
fn unknown_kinds_of_devices_are_refused() {
    let [config, _] = &samples::launch_configs()[..] else { panic!("two samples") };
    let bytes = |devices| {
        let config = LaunchConfig { devices, ..config.message.clone() };
        postcard::to_stdvec(&config).expect("encodes")
    };
    let (none, one) = (bytes(vec![]), bytes(vec![DeviceConfig::Balloon]));
    let count = none.iter().zip(&one).position(|(none, one)| none != one).expect("the count of devices differs");
    assert_eq!(one[count..count + 2], [1, 3]);
    for kind in 4..0x80 {
        let mut forged = one.clone();
        forged[count + 1] = kind;
        assert!(matches!(vmm::WIRE.decode_message::<LaunchConfig>(&forged), Err(FrameError::Body(_))), "{kind}");
    }
}

#[test]
fn every_unknown_kind_is_refused() {
    let wire = agent::WIRE;
    for kind in 0..=u8::MAX {
        let bytes = [wire.magic[0], wire.magic[1], wire.version, kind, 0, 0, 0, 0];
        let known = [0x01, 0x10, 0x11, 0x12].contains(&kind);
        match wire.parse_header(&bytes, 0) {
            Ok(header) => assert!(known && header.kind as u8 == kind),
            Err(error) => assert!(!known && error == FrameError::Kind(kind)),
        }
    }
}

#[test]
fn the_other_wire_and_other_protocols_are_told_by_their_magic() {
    for text in [b"SC\x01\x01\0\0\0\0", b"GET / HT", b"CONNECT ", b"\x7fELF\x02\x01\x01\0", &[0; 8]] {
        let refused = FrameError::Magic { found: [text[0], text[1]], expected: *b"SA" };
        assert_eq!(agent::WIRE.parse_header(text, MAX_HOST_MESSAGE), Err(refused));
    }
}

#[test]
fn an_error_stands_even_if_valid_frames_follow() {
    let mut decoder = FrameDecoder::new(agent::WIRE, MAX_AGENT_MESSAGE);
    let mut valid = Vec::new();
    agent::WIRE.append_message(&mut valid, &AgentMessage::Pong, MAX_AGENT_MESSAGE).expect("below the cap");
    decoder.push(&[0; HEADER_LEN]);
    let error = decoder.next_frame().expect_err("no magic");
    decoder.push(&valid);
    assert_eq!(decoder.next_frame(), Err(error));
}
