//! A peer that sends any bytes, in pieces of any length, on either wire.
//! `protocol/tests/wire/hostile.rs` includes this file and calls the target with frames that are
//! nearly valid.
//!
//! Input: one byte that selects the receiver, one byte that seeds the lengths of the pieces, then
//! the stream. The target panics unless: no frame exceeds its maximum size, the first error is
//! final, the pieces make no difference, and each message that decodes can be encoded and decoded
//! to the same value again.

use sandboxvm_protocol::{
    agent::{self, AgentMessage, HostMessage},
    frame::{FrameDecoder, FrameError, FrameKind, HEADER_LEN, MAX_STREAM_BODY, Message, Wire},
    vmm::{self, ControlRequest, LaunchConfig, VmmMessage, v1},
};
use serde::de::DeserializeOwned;
use std::fmt::Debug;

/// Decodes one body as `T`. If that succeeds, encodes the value and decodes it again.
fn message<T: Message + DeserializeOwned + PartialEq + Debug>(wire: Wire, body: &[u8]) {
    if let Ok(value) = wire.decode_message::<T>(body) {
        let mut frame = Vec::new();
        wire.append_message(&mut frame, &value, usize::MAX).expect("a decoded message encodes");
        assert_eq!(wire.decode_message::<T>(&frame[HEADER_LEN..]).expect("an encoded message decodes"), value);
    }
}

fn agent_bodies(wire: Wire, body: &[u8]) {
    message::<HostMessage>(wire, body);
    message::<AgentMessage>(wire, body);
}

fn vmm_bodies(wire: Wire, body: &[u8]) {
    message::<LaunchConfig>(wire, body);
    message::<v1::LaunchConfig>(wire, body);
    message::<ControlRequest>(wire, body);
    message::<VmmMessage>(wire, body);
}

/// What a receiver decodes of a stream.
#[derive(Debug, PartialEq)]
struct Received {
    frames: Vec<(FrameKind, Vec<u8>)>,
    error: Option<FrameError>,
    at_boundary: bool,
}

fn receive<'a>(wire: Wire, cap: usize, chunks: impl Iterator<Item = &'a [u8]>) -> Received {
    let mut decoder = FrameDecoder::new(wire, cap);
    let mut frames = Vec::new();
    let mut error = None;
    for chunk in chunks {
        decoder.push(chunk);
        loop {
            match decoder.next_frame() {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    assert!(error.is_none(), "a frame after an error");
                    assert!(frame.body.len() <= if frame.kind == FrameKind::Message { cap } else { MAX_STREAM_BODY });
                    frames.push((frame.kind, frame.body.to_vec()));
                }
                Err(found) => {
                    assert_eq!(*error.get_or_insert(found.clone()), found, "the first error is final");
                    break;
                }
            }
        }
    }
    let at_boundary = error.is_none() && decoder.is_at_boundary();
    Received { frames, error, at_boundary }
}

/// The wire and the maximum size of messages of a receiver. The last one accepts only very short
/// messages.
pub(crate) fn receiver(number: u8) -> (Wire, usize) {
    match number {
        u8::MAX => (agent::WIRE, 16),
        number if number % 3 == 0 => (agent::WIRE, agent::MAX_HOST_MESSAGE),
        number if number % 3 == 1 => (agent::WIRE, agent::MAX_AGENT_MESSAGE),
        _ => (vmm::WIRE, vmm::MAX_MESSAGE),
    }
}

/// Decodes the stream of the input as its receiver does. The module describes the input.
pub fn frame_decode(data: &[u8]) {
    let [number, seed, stream @ ..] = data else { return };
    let (wire, cap) = receiver(*number);
    let bodies = if wire == vmm::WIRE { vmm_bodies } else { agent_bodies };

    let whole = receive(wire, cap, std::iter::once(stream));
    let mut rest = stream;
    let mut state = u32::from(*seed);
    let cut = receive(
        wire,
        cap,
        std::iter::from_fn(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (chunk, after) = rest.split_at(rest.len().min(1 + (state >> 27) as usize));
            rest = after;
            (!chunk.is_empty()).then_some(chunk)
        }),
    );
    assert_eq!(whole, cut, "the pieces made a difference");

    for (kind, body) in &whole.frames {
        if *kind == FrameKind::Message {
            bodies(wire, body);
        }
    }
    // Also decodes the whole stream as the body of a message, so that most mutations reach the
    // message decoders.
    bodies(wire, stream);
}
