//! Decoding takes no more memory than the limits allow, for any bytes. This is a separate test
//! program with one test and one thread, because the counting allocator sees the whole process.

use sandboxvm_protocol::{
    agent::{self, process::*, *},
    frame::{FrameDecoder, MAX_STREAM_BODY, Wire},
    vmm::{self, *},
};
use serde::de::DeserializeOwned;
use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes unchanged to `System`, whose contract is the same; the counters touch no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(live, Relaxed);
        // SAFETY: the caller's promises about `layout` are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: `block` came from `System.alloc` with this layout, as the caller promises.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Returns the peak of the bytes that `work` allocates, in addition to those allocated before.
fn peak_of(work: impl FnOnce()) -> usize {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    work();
    PEAK.load(Relaxed) - before
}

fn decode<T: DeserializeOwned>(wire: Wire, body: &[u8]) {
    drop(std::hint::black_box(wire.decode_message::<T>(body)));
}

/// Returns bodies that state very many elements: a list length after every prefix of some lengths,
/// then filler.
fn inflated(cap: usize, filler: u8) -> Vec<Vec<u8>> {
    let mut bodies = Vec::new();
    for variant in 0..16u8 {
        for inner in 0..4u8 {
            for count in [cap as u64 / 2, cap as u64, u64::from(u32::MAX), u64::MAX] {
                let mut body = vec![variant, inner];
                body.truncate(1 + usize::from(inner > 0));
                let mut rest = count;
                while rest >= 0x80 {
                    body.push((rest & 0x7f) as u8 | 0x80);
                    rest >>= 7;
                }
                body.push(rest as u8);
                body.resize(cap, filler);
                bodies.push(body);
            }
        }
    }
    bodies
}

#[test]
fn no_message_takes_more_memory_than_its_limit_allows() {
    // (type, maximum size, bound): a text or list takes at most twice its size while it grows. argv
    // and env take 24 bytes for each of at most MAX_ARGUMENT_COUNT elements, and twice that while
    // they grow.
    let arguments = 2 * MAX_ARGUMENT_COUNT * size_of::<CText>() * 3 / 2;
    // A full page of processes with the maximum number of arguments. Their text is part of the
    // message.
    let arguments_shown = MAX_PAGE * MAX_SHOWN_ARGUMENTS * size_of::<ShownText>();
    let page = MAX_PAGE * size_of::<ProcessInfo>() + arguments_shown + MAX_AGENT_MESSAGE;
    for filler in [0, 1, b'x'] {
        for body in inflated(MAX_HOST_MESSAGE, filler) {
            let peak = peak_of(|| decode::<HostMessage>(agent::WIRE, &body));
            assert!(peak <= 2 * MAX_HOST_MESSAGE + 2 * arguments, "HostMessage: {peak} bytes");
        }
        for body in inflated(MAX_AGENT_MESSAGE, filler) {
            let peak = peak_of(|| decode::<AgentMessage>(agent::WIRE, &body));
            assert!(peak <= 2 * MAX_FAILURE_TEXT.max(page), "AgentMessage: {peak} bytes");
        }
        for body in inflated(MAX_MESSAGE, filler) {
            let peak = peak_of(|| decode::<VmmMessage>(vmm::WIRE, &body));
            assert!(peak <= 4 * MAX_TEXT, "VmmMessage: {peak} bytes");
            let peak = peak_of(|| decode::<LaunchConfig>(vmm::WIRE, &body));
            assert!(peak <= 64 * 1024, "LaunchConfig: {peak} bytes");
            let peak = peak_of(|| decode::<vmm::v1::LaunchConfig>(vmm::WIRE, &body));
            assert!(peak <= 64 * 1024, "LaunchConfig of version 1: {peak} bytes");
        }
    }

    // A peer that states the largest frame and then sends one page after the other, without end.
    let cap = MAX_AGENT_MESSAGE;
    let peak = peak_of(|| {
        let mut decoder = FrameDecoder::new(agent::WIRE, cap);
        let page = {
            let mut page = vec![0u8; 4096];
            page[..8].copy_from_slice(&agent::WIRE.header(sandboxvm_protocol::frame::FrameKind::Stdout, 4088).unwrap());
            page
        };
        let body = MAX_STREAM_BODY;
        decoder.push(&agent::WIRE.header(sandboxvm_protocol::frame::FrameKind::Stdout, body).unwrap());
        for _ in 0..body / 4096 {
            decoder.push(&[0; 4096]);
            while decoder.next_frame().expect("valid").is_some() {}
        }
        for _ in 0..10_000 {
            decoder.push(&page);
            while decoder.next_frame().expect("valid").is_some() {}
        }
    });
    assert!(peak <= 2 * (MAX_STREAM_BODY + 8 + 4096) + 8192, "FrameDecoder: {peak} bytes");
}
