//! The network card with a peer: invalid frames, floods, and receive queues that break every
//! rule while frames wait for them. The peer gets whole frames and nothing else, and other devices
//! keep working.

use crate::{
    artefacts,
    devices::{self, CARD, ENTROPY},
    rings::works_again,
};
use sandboxvm_bare_guest::{Image, Script, layout};
use sandboxvm_tests::bare::{
    BareMachine, Cable, Shape,
    driver::{Descriptor, INDIRECT, NEXT, Part, Rings, VERSION_1, WRITE, Window},
};

/// VIRTIO_NET_F_MRG_RXBUF.
const MERGE: u64 = 1 << 15;
const RECEIVE: u32 = 0;
const TRANSMIT: u32 = 1;
/// Bytes of the device's header.
const HEADER: u32 = 12;

/// A packet with a frame of `length` bytes, each of which is `byte` except in its Ethernet header.
fn packet(byte: u8, length: usize) -> Vec<u8> {
    let mut packet = vec![0; HEADER as usize];
    packet.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0].into_iter().chain(std::iter::repeat(byte)).take(length));
    packet
}

fn bring_up(script: &mut Script, queues: &[(u32, &Rings)]) {
    let card = Window::of(CARD);
    card.negotiate(script, VERSION_1 | MERGE);
    for (queue, rings) in queues {
        card.set_up_queue(script, *queue, rings);
    }
    card.go_live(script);
    card.expect_live(script);
}

/// Waits until the test has attached the card.
fn wait_for_link(script: &mut Script) {
    // The status is at offset 6 of the configuration, and the number of queue pairs follows it.
    script.say("attach");
    script.wait(Window::of(CARD).0 + 0x100 + 4, 1 << 16, 1 << 16);
}

#[test]
fn frames_go_both_ways() {
    let Some(artefacts) = artefacts() else { return };
    let mut image = Image::new();
    let (receive, transmit) = (Rings::at(layout::FREE, 128), Rings::at(layout::FREE + 0x4000, 128));
    let buffers = layout::FREE + 0x1_0000;
    for index in 0..3 {
        receive.put_chain(&mut image, index, &[Part::Writable(buffers + 0x1000 * u64::from(index), 600)]);
    }
    receive.put_heads(&mut image, &[0, 1, 2]);
    // What was received in two buffers is sent from both of them, without the part beyond the frame.
    transmit.put_chain(&mut image, 0, &[Part::Readable(buffers, 600), Part::Readable(buffers + 0x1000, 412)]);
    transmit.put_heads(&mut image, &[0]);
    let script = &mut image.script;
    wait_for_link(script);
    bring_up(script, &[(RECEIVE, &receive), (TRANSMIT, &transmit)]);
    receive.publish(script, 3);
    Window::of(CARD).notify(script, RECEIVE);
    receive.wait_used(script, 2);
    transmit.publish(script, 1);
    Window::of(CARD).notify(script, TRANSMIT);
    transmit.wait_used(script, 1);
    script.say("sent");
    // The link is gone.
    script.wait(Window::of(CARD).0 + 0x100 + 4, 1 << 16, 0);
    script.end();
    let mut machine = BareMachine::boot(&artefacts, &image, Shape::default());
    machine.wait_for_console("attach");
    let cable = machine.attach_network();
    cable.send(&packet(0x55, 1000));
    assert_eq!(cable.receive(), Some(packet(0x55, 1000)));
    machine.wait_for_console("sent");
    let stats = machine.network_stats();
    assert_eq!((stats.sent.frames, stats.sent.bytes, stats.sent.dropped), (1, 1000, 0));
    assert_eq!((stats.received.frames, stats.received.bytes, stats.received.dropped), (1, 1000, 0));
    drop(cable);
    machine.finish().assert_script_completed();
}

/// Chains of the transmit queue that do not hold a frame.
fn invalid_frames(at: u64) -> Vec<Vec<Part>> {
    let page = |length| Part::Readable(at, length);
    let mut chains: Vec<Vec<Part>> = [1, 11, 12, 13, 25].iter().map(|length| vec![page(*length)]).collect();
    chains.push(vec![page(HEADER + 65_535)]);
    chains.push(vec![page(1 << 20)]);
    chains.push(vec![page(32 << 20); 32]);
    // In 64 pieces, which are 25 bytes.
    chains.push([vec![page(1); 24], vec![page(1)]].concat());
    chains
}

#[test]
fn invalid_frames_do_not_reach_the_peer() {
    let Some(artefacts) = artefacts() else { return };
    let mut image = Image::new();
    let page = layout::FREE + 0x10_0000;
    image.put(page, &packet(0x66, 100));
    let segmented = layout::FREE + 0x20_0000;
    let mut wrong = packet(0x66, 100);
    wrong[1] = 1;
    image.put(segmented, &wrong);
    let tagged = layout::FREE + 0x21_0000;
    wrong = packet(0x66, 100);
    wrong[24] = 0x81;
    image.put(tagged, &wrong);
    let mut chains = invalid_frames(page);
    chains.push(vec![Part::Readable(segmented, 112)]);
    chains.push(vec![Part::Readable(tagged, 112)]);
    let dropped = chains.len() as u64;
    chains.push(vec![Part::Readable(page, 112)]);
    wait_for_link(&mut image.script);
    for (base, chain) in (layout::FREE..).step_by(Rings::BYTES as usize).zip(&chains) {
        let rings = Rings::at(base, 64);
        rings.put_chain(&mut image, 0, chain);
        rings.put_heads(&mut image, &[0]);
        bring_up(&mut image.script, &[(TRANSMIT, &rings)]);
        rings.publish(&mut image.script, 1);
        Window::of(CARD).notify(&mut image.script, TRANSMIT);
        rings.wait_used(&mut image.script, 1);
    }
    image.script.say("sent").wait(Window::of(CARD).0 + 0x100 + 4, 1 << 16, 0).end();
    let mut machine = BareMachine::boot(&artefacts, &image, Shape::default());
    machine.wait_for_console("attach");
    let cable = machine.attach_network();
    assert_eq!(cable.receive(), Some(packet(0x66, 100)));
    machine.wait_for_console("sent");
    let sent = machine.network_stats().sent;
    assert_eq!((sent.frames, sent.dropped), (1, dropped));
    drop(cable);
    machine.finish().assert_script_completed();
}

/// Descriptors of a receive queue after which the device must stop when a frame comes.
fn broken(page: u64) -> Vec<Vec<Descriptor>> {
    let descriptor = |address, length, flags, next| Descriptor { address, length, flags, next };
    let first = descriptor(page, 64, WRITE | NEXT, 1);
    vec![
        vec![descriptor(page, 64, WRITE | NEXT, 0)],
        vec![descriptor(page, 64, 0, 0)],
        vec![descriptor(page, 11, WRITE, 0)],
        vec![descriptor(page, 0, WRITE, 0)],
        vec![descriptor(page, 64, WRITE | INDIRECT, 0)],
        vec![descriptor(64 << 20, 64, WRITE, 0)],
        vec![descriptor((64 << 20) - 1, 64, WRITE, 0)],
        vec![descriptor(Window::of(CARD).0, 64, WRITE, 0)],
        vec![descriptor(u64::MAX - 16, 64, WRITE, 0)],
        vec![descriptor(0, u32::MAX, WRITE, 0)],
        vec![descriptor(page, 64, WRITE | NEXT, 128)],
        vec![first, descriptor(64 << 20, 64, WRITE, 0)],
        vec![first, descriptor(page, 0, WRITE, 0)],
        vec![first, descriptor(page, 64, 0, 0)],
        vec![descriptor(page, 64, NEXT, 1), descriptor(page, 64, WRITE, 0)],
    ]
}

#[test]
fn a_broken_receive_queue_stops_the_card_when_a_frame_comes() {
    let Some(artefacts) = artefacts() else { return };
    let mut image = Image::new();
    let page = layout::FREE + 0x20_0000;
    let attacks = broken(page);
    wait_for_link(&mut image.script);
    for (base, descriptors) in (layout::FREE..).step_by(2 * Rings::BYTES as usize).zip(&attacks) {
        let rings = Rings::at(base, 64);
        for (index, descriptor) in (0..).zip(descriptors) {
            rings.put(&mut image, index, *descriptor);
        }
        rings.put_heads(&mut image, &[0]);
        bring_up(&mut image.script, &[(RECEIVE, &rings)]);
        rings.publish(&mut image.script, 1);
        Window::of(CARD).notify(&mut image.script, RECEIVE);
        Window::of(CARD).wait_for_stop(&mut image.script);
        rings.expect_used(&mut image.script, 0);
        // The frame that waits is received by a good driver, after a reset.
        let good = Rings::at(base + Rings::BYTES, 64);
        good.put_chain(&mut image, 0, &[Part::Writable(page, 2048)]);
        good.put_heads(&mut image, &[0]);
        bring_up(&mut image.script, &[(RECEIVE, &good)]);
        good.publish(&mut image.script, 1);
        Window::of(CARD).notify(&mut image.script, RECEIVE);
        good.wait_used(&mut image.script, 1);
        image.script.say(".");
    }
    works_again(&mut image, &devices::all()[ENTROPY as usize], &devices::all()[ENTROPY as usize].served[0], page);
    image.script.end();
    let mut machine = BareMachine::boot(&artefacts, &image, Shape::default());
    machine.wait_for_console("attach");
    let cable = machine.attach_network();
    for count in 1..=attacks.len() {
        cable.send(&packet(0x77, 200));
        machine.wait_for_console(&".".repeat(count));
    }
    machine.finish().assert_script_completed();
}

/// A guest that gives no buffers, and a peer that reads nothing: both wait, and the VMM rests.
#[test]
fn neither_side_that_waits_keeps_the_vmm_busy() {
    let Some(artefacts) = artefacts() else { return };
    let mut image = Image::new();
    let (receive, transmit) = (Rings::at(layout::FREE, 128), Rings::at(layout::FREE + 0x4000, 128));
    let page = layout::FREE + 0x10_0000;
    image.put(page, &packet(0, 60_000));
    transmit.put_chain(&mut image, 0, &[Part::Readable(page, HEADER + 60_000)]);
    transmit.put_heads(&mut image, &[0; 128]);
    wait_for_link(&mut image.script);
    bring_up(&mut image.script, &[(RECEIVE, &receive), (TRANSMIT, &transmit)]);
    transmit.publish(&mut image.script, 128);
    Window::of(CARD).notify(&mut image.script, TRANSMIT);
    image.script.say("waits");
    let mut machine = BareMachine::boot(&artefacts, &image, Shape::default());
    machine.wait_for_console("attach");
    let cable = machine.attach_network();
    machine.wait_for_console("waits");
    while cable.try_send(&packet(0, 60_000)) {}
    machine.assert_at_rest();
    let before = machine.network_stats();
    assert!((1..128).contains(&before.sent.frames) && before.received.frames == 0, "{before:?}");
    for _ in 0..128 {
        assert_eq!(cable.receive().map(|packet| packet.len()), Some(60_012));
    }
    machine.assert_at_rest();
    assert_eq!(machine.network_stats().sent.frames, 128);
    machine.assert_control_answers();
    machine.assert_within_bounds();
    // A peer that leaves ends the link, and nothing else.
    drop(cable);
    machine.assert_at_rest();
    let (second, theirs) = Cable::new();
    drop((second, theirs));
    let _ = machine.stop().typed();
}
