//! Every message is the same after it was sent, alone and in a stream of frames in pieces of any
//! length.

use crate::{samples::WireMessage, strategies::*};
use proptest::{collection::vec, prelude::*};
use sandboxvm_protocol::{
    agent,
    frame::{FrameDecoder, FrameKind, MAX_STREAM_BODY, Wire},
    vmm,
};

fn survives<T: WireMessage>(wire: Wire, cap: usize, message: &T) {
    let mut frame = Vec::new();
    wire.append_message(&mut frame, message, cap).expect("below the cap");
    let mut decoder = FrameDecoder::new(wire, cap);
    decoder.push(&frame);
    let read: T = {
        let received = decoder.next_frame().expect("valid").expect("whole");
        assert_eq!(received.kind, FrameKind::Message);
        wire.decode_message(received.body).expect("decodes")
    };
    assert_eq!(read, *message);
    assert_eq!(decoder.next_frame(), Ok(None));
    assert!(decoder.is_at_boundary());
}

proptest! {
    #[test]
    fn host_messages_survive(message in host_message()) {
        survives(agent::WIRE, agent::MAX_HOST_MESSAGE, &message);
    }

    #[test]
    fn agent_messages_survive(message in agent_message()) {
        survives(agent::WIRE, agent::MAX_AGENT_MESSAGE, &message);
    }

    #[test]
    fn launch_configs_survive(config in launch_config()) {
        survives(vmm::WIRE, vmm::MAX_MESSAGE, &config);
    }

    #[test]
    fn launch_configs_of_version_1_survive(config in launch_config_v1()) {
        survives(vmm::WIRE, vmm::MAX_MESSAGE, &config);
    }

    #[test]
    fn control_requests_survive(request in control_request()) {
        survives(vmm::WIRE, vmm::MAX_MESSAGE, &request);
    }

    /// What an older VMM reads of a request says the same.
    #[test]
    fn requests_in_older_words_say_the_same(request in control_request()) {
        use sandboxvm_protocol::frame::Message;
        let newest = request.newest();
        if let Some(older) = newest.clone().for_version(1) {
            prop_assert_eq!(older.since(), 1);
            let again = older.newest();
            match (&again, &newest) {
                // Version 1 has the files of disks before that of the socket device.
                (vmm::ControlRequest::Fork(again), vmm::ControlRequest::Fork(newest)) => {
                    for (again, newest) in again.children.iter().zip(&newest.children) {
                        let mut sorted = newest.devices.clone();
                        sorted.sort_by_key(|device| matches!(device, vmm::ChildDevice::Vsock { .. }));
                        prop_assert_eq!(&again.devices, &sorted);
                    }
                }
                _ => prop_assert_eq!(again, newest),
            }
        }
    }

    /// A machine with volumes is described in version 5, one with slots in version 4, one with a card in version 3, and any other as
    /// by older builds.
    #[test]
    fn only_cards_slots_and_volumes_need_newer_versions(config in launch_config()) {
        use sandboxvm_protocol::frame::Message;
        let has_card = config.devices.iter().any(|device| matches!(device, vmm::DeviceConfig::Net(_)));
        let slot = |device: &_| matches!(device, vmm::DeviceConfig::Block(vmm::DiskConfig::Slot { .. }));
        let volume = |device: &_| matches!(device, vmm::DeviceConfig::Block(vmm::DiskConfig::Volume { .. }));
        let expected = if config.devices.iter().any(volume) { 5 } else if config.devices.iter().any(slot) { 4 } else if has_card { 3 } else { 2 };
        prop_assert_eq!(config.since(), expected);
    }

    #[test]
    fn vmm_messages_survive(message in vmm_message()) {
        survives(vmm::WIRE, vmm::MAX_MESSAGE, &message);
    }

    #[test]
    fn the_status_file_survives(status in vm_status()) {
        let text = serde_json::to_string(&status).expect("a status is JSON");
        prop_assert_eq!(serde_json::from_str::<vmm::VmStatus>(&text).expect("and readable"), status);
    }
}

#[test]
fn requests_about_the_network_have_no_older_words() {
    for request in [vmm::ControlRequest::AttachNetwork { frames: vmm::FdIndex(0) }, vmm::ControlRequest::NetworkStats] {
        assert_eq!(request.clone().for_version(3), Some(request.clone()));
        assert_eq!(request.clone().for_version(2), None);
        assert_eq!(request.for_version(1), None);
    }
}

/// A frame of a sender.
#[derive(Debug, Clone, PartialEq)]
enum Sent {
    Message(agent::HostMessage),
    Stream(FrameKind, Vec<u8>),
}

fn sent() -> impl Strategy<Value = Sent> {
    let kind = prop_oneof![Just(FrameKind::Stdin), Just(FrameKind::Stdout), Just(FrameKind::Stderr)];
    prop_oneof![
        host_message().prop_map(Sent::Message),
        (kind.clone(), vec(any::<u8>(), 0..300)).prop_map(|(kind, body)| Sent::Stream(kind, body)),
        (kind, Just(vec![0x5a; MAX_STREAM_BODY])).prop_map(|(kind, body)| Sent::Stream(kind, body)),
    ]
}

fn encode(frames: &[Sent]) -> Vec<u8> {
    let wire = agent::WIRE;
    let mut bytes = Vec::new();
    for frame in frames {
        match frame {
            Sent::Message(message) => {
                wire.append_message(&mut bytes, message, agent::MAX_HOST_MESSAGE).expect("below the cap");
            }
            Sent::Stream(kind, body) => {
                bytes.extend(wire.header(*kind, body.len()).expect("fits"));
                bytes.extend(body);
            }
        }
    }
    bytes
}

fn drain(decoder: &mut FrameDecoder, into: &mut Vec<Sent>) {
    while let Some(frame) = decoder.next_frame().expect("the stream is valid") {
        into.push(match frame.kind {
            FrameKind::Message => Sent::Message(agent::WIRE.decode_message(frame.body).expect("decodes")),
            kind => Sent::Stream(kind, frame.body.to_vec()),
        });
    }
}

proptest! {
    #[test]
    fn frames_survive_any_split(frames in vec(sent(), 0..12), cuts in vec(any::<prop::sample::Index>(), 0..40)) {
        let bytes = encode(&frames);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let mut decoder = FrameDecoder::new(agent::WIRE, agent::MAX_HOST_MESSAGE);
        let mut received = Vec::new();
        for cut in cuts.windows(2) {
            decoder.push(&bytes[cut[0]..cut[1]]);
            drain(&mut decoder, &mut received);
        }
        prop_assert!(decoder.is_at_boundary());
        prop_assert_eq!(received, frames);
    }

    /// The end of the stream inside a frame is distinguished from one between frames.
    #[test]
    fn a_truncated_stream_is_not_at_a_boundary(frame in sent(), cut in any::<prop::sample::Index>()) {
        let bytes = encode(&[frame]);
        let cut = cut.index(bytes.len() - 1) + 1;
        let mut decoder = FrameDecoder::new(agent::WIRE, agent::MAX_HOST_MESSAGE);
        decoder.push(&bytes[..cut]);
        prop_assert_eq!(decoder.next_frame(), Ok(None));
        prop_assert!(!decoder.is_at_boundary());
    }
}

#[test]
fn a_stream_fed_byte_by_byte_gives_the_same_frames() {
    let frames = vec![
        Sent::Message(agent::HostMessage::Hello { oldest: 1, newest: 1 }),
        Sent::Stream(FrameKind::Stdin, vec![]),
        Sent::Stream(FrameKind::Stdin, b"some input".to_vec()),
        Sent::Message(agent::HostMessage::StdinEof),
    ];
    let mut decoder = FrameDecoder::new(agent::WIRE, agent::MAX_HOST_MESSAGE);
    let mut received = Vec::new();
    for byte in encode(&frames) {
        decoder.push(&[byte]);
        drain(&mut decoder, &mut received);
    }
    assert_eq!(received, frames);
}
