//! A peer that sends any bytes: the receiver returns an error, always the same one from then on,
//! and never panics. The fuzz target for frames checks that, and these tests call it with random
//! and nearly valid streams.

#[path = "../../../tests/fuzz-targets/src/frame_decode.rs"]
mod frame_decode;

use crate::strategies::*;
use proptest::{collection::vec, prelude::*};
use sandboxvm_protocol::{
    agent::{self, *},
    frame::{FrameDecoder, FrameError, HEADER_LEN, Wire},
    vmm::{self, *},
};

/// Numbers of receivers, as the fuzz target has them.
const OF_HOST_MESSAGES: u8 = 0;
const OF_AGENT_MESSAGES: u8 = 1;
const OF_VMM_MESSAGES: u8 = 2;

/// Calls the fuzz target. `seed` selects the lengths of the pieces in which the stream arrives.
fn receive(receiver: u8, seed: u8, stream: &[u8]) {
    frame_decode::frame_decode(&[&[receiver, seed], stream].concat());
}

/// All receivers: of host messages, agent messages, messages of the VMM, and very short messages.
fn receivers() -> impl Strategy<Value = u8> {
    prop_oneof![Just(OF_HOST_MESSAGES), Just(OF_AGENT_MESSAGES), Just(OF_VMM_MESSAGES), Just(u8::MAX)]
}

/// A frame with a plausible header and a random body.
fn plausible(wire: Wire) -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![Just(0x01u8), Just(0x10), Just(0x11), Just(0x12), any::<u8>()];
    let version = prop_oneof![4 => Just(wire.version), 1 => any::<u8>()];
    (kind, version, vec(any::<u8>(), 0..100), prop_oneof![4 => Just(None), 1 => any::<u32>().prop_map(Some)]).prop_map(
        move |(kind, version, body, stated)| {
            let len = stated.unwrap_or(u32::try_from(body.len()).expect("short"));
            let mut frame = vec![wire.magic[0], wire.magic[1], version, kind];
            frame.extend(len.to_le_bytes());
            frame.extend(body);
            frame
        },
    )
}

proptest! {
    #[test]
    fn random_bytes_never_panic(receiver in receivers(), seed: u8, stream in vec(any::<u8>(), 0..1600)) {
        receive(receiver, seed, &stream);
    }

    #[test]
    fn plausible_frames_never_panic(
        (receiver, frames) in receivers()
            .prop_flat_map(|number| (Just(number), vec(plausible(frame_decode::receiver(number).0), 0..8))),
        seed: u8,
    ) {
        receive(receiver, seed, &frames.concat());
    }

    /// One byte of a valid message of the host is changed.
    #[test]
    fn flipped_bytes_never_panic(
        message in host_message(), at in any::<prop::sample::Index>(), mask in 1u8.., seed: u8
    ) {
        let mut frame = Vec::new();
        agent::WIRE.append_message(&mut frame, &message, MAX_HOST_MESSAGE).expect("below the cap");
        let at = at.index(frame.len());
        frame[at] ^= mask;
        receive(OF_HOST_MESSAGES, seed, &frame);
    }

    /// One byte of a valid message of the agent is changed.
    #[test]
    fn flipped_bytes_of_the_guests_never_panic(
        message in agent_message(), at in any::<prop::sample::Index>(), mask in 1u8.., seed: u8
    ) {
        let mut frame = Vec::new();
        agent::WIRE.append_message(&mut frame, &message, MAX_AGENT_MESSAGE).expect("below the cap");
        let at = at.index(frame.len());
        frame[at] ^= mask;
        receive(OF_AGENT_MESSAGES, seed, &frame);
    }

    /// A machine's description with one byte changed.
    #[test]
    fn flipped_bytes_of_a_launch_never_panic(
        config in launch_config(), at in any::<prop::sample::Index>(), mask in 1u8.., seed in any::<u8>()
    ) {
        let mut frame = Vec::new();
        vmm::WIRE.append_message(&mut frame, &config, MAX_MESSAGE).expect("below the cap");
        let at = at.index(frame.len());
        frame[at] ^= mask;
        receive(OF_VMM_MESSAGES, seed, &frame);
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
    let [config, ..] = &crate::samples::launch_configs()[..] else { panic!("a sample") };
    let bytes = |devices| {
        let config = LaunchConfig { devices, ..config.message.clone() };
        postcard::to_stdvec(&config).expect("encodes")
    };
    let (none, one) = (bytes(vec![]), bytes(vec![DeviceConfig::Balloon]));
    let count = none.iter().zip(&one).position(|(none, one)| none != one).expect("the count of devices differs");
    assert_eq!(one[count..count + 2], [1, 3]);
    for kind in 5..0x80 {
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
fn the_other_wire_and_other_protocols_are_refused_by_their_magic() {
    for text in [b"SC\x01\x01\0\0\0\0", b"GET / HT", b"CONNECT ", b"\x7fELF\x02\x01\x01\0", &[0; 8]] {
        let refused = FrameError::Magic { found: [text[0], text[1]], expected: *b"SA" };
        assert_eq!(agent::WIRE.parse_header(text, MAX_HOST_MESSAGE), Err(refused));
    }
}

#[test]
fn an_error_is_final_even_if_valid_frames_follow() {
    let mut decoder = FrameDecoder::new(agent::WIRE, MAX_AGENT_MESSAGE);
    let mut valid = Vec::new();
    agent::WIRE.append_message(&mut valid, &AgentMessage::Pong, MAX_AGENT_MESSAGE).expect("below the cap");
    decoder.push(&[0; HEADER_LEN]);
    let error = decoder.next_frame().expect_err("the magic is wrong");
    decoder.push(&valid);
    assert_eq!(decoder.next_frame(), Err(error));
}
