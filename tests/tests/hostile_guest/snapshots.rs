//! Machines that are saved while their guests misbehave, and restored in another process. A
//! snapshot works whatever state the guest puts its devices into. Otherwise a guest could prevent
//! that it is saved.

use crate::{
    artefacts,
    devices::{self, DISK, ENTROPY},
};
use sandboxvm_bare_guest::{Image, Instruction, Script, layout};
use sandboxvm_protocol::vmm::ExitReason;
use sandboxvm_tests::bare::{
    BareMachine, Shape,
    driver::{Descriptor, NEXT, Rings, VERSION_1, WRITE, Window, register},
};
use std::{thread, time::Duration};

/// Visits all devices and puts each into another state: half set up, live, stopped, failed, with
/// rings anywhere.
fn misbehave(script: &mut Script, random: &mut fastrand::Rng) {
    for device in devices::all() {
        let window = Window::of(device.index);
        let status = window.0 + register::STATUS;
        script.set(status, 0).set(status, 1).set(status, 3);
        script.set(window.0 + register::DRIVER_FEATURES_SEL, 1).set(window.0 + register::DRIVER_FEATURES, 1);
        script.set(status, 11);
        for (queue, most) in (0..).zip(device.queues) {
            let base = layout::FREE + random.u64(..16) * 0x1000;
            let size = if random.u8(..4) == 0 { random.u32(..100) } else { *most };
            window.set_up_queue(script, queue, &Rings::at(base, size));
        }
        if random.u8(..4) > 0 {
            script.set(status, 15);
        }
        for _ in 0..random.u32(..6) {
            // With these values no descriptor gets an address of the guest's own program.
            let value = [0, 1, 2, 3, 4, 5, 0x100, 0x7fff, 0xffff][random.usize(..9)];
            script.write(sandboxvm_bare_guest::Width::Half, layout::FREE + random.u64(..0x1_0000) / 2 * 2, value);
            window.notify(script, random.u32(..3));
        }
        if random.u8(..6) == 0 {
            script.set(status, 0x8f);
        }
        let (offset, value) = (random.u64(..0x40) * 4, random.u32(..));
        if offset != register::STATUS {
            script.set(window.0 + offset, value);
        }
        script.push(Instruction::Delay { turns: random.u32(..2000) });
    }
}

#[test]
fn a_misbehaving_machine_can_be_saved_at_any_moment() {
    let Some(artefacts) = artefacts() else { return };
    let mut random = fastrand::Rng::with_seed(crate::seed());
    for _ in 0..8 {
        let mut image = Image::new();
        image.script.say("go\n");
        let mut round = Script::new();
        for _ in 0..20 {
            misbehave(&mut round, &mut random);
        }
        let never = layout::FREE + 0x20_0000;
        image.script.until(never, |script| {
            for instruction in round.instructions() {
                script.push(*instruction);
            }
        });
        let shape = Shape::default();
        let mut machine = BareMachine::boot(&artefacts, &image, shape);
        machine.wait_for_console("go\n");
        thread::sleep(Duration::from_millis(random.u64(1..30)));
        let saved = machine.save();
        let mut copy = BareMachine::restore(&artefacts, &saved, shape);
        for machine in [&mut machine, &mut copy] {
            assert!(machine.stats().is_some(), "the machine ended\n{}", machine.said());
        }
        thread::sleep(Duration::from_millis(20));
        assert_eq!(copy.stop().typed(), &ExitReason::Stopped);
        assert_eq!(machine.stop().typed(), &ExitReason::Stopped);
    }
}

/// Each device stopped because of a broken ring. The devices of a copy are stopped too, and the
/// copy can reset them.
#[test]
fn a_stopped_device_is_stopped_in_a_copy() {
    let Some(artefacts) = artefacts() else { return };
    let mut image = Image::new();
    for (base, index) in [(layout::FREE, DISK), (layout::FREE + 0x1_0000, ENTROPY)] {
        let window = Window::of(index);
        let rings = Rings::at(base, 8);
        rings.put(&mut image, 0, Descriptor { address: base, length: 16, flags: NEXT | WRITE, next: 0 });
        rings.put_heads(&mut image, &[0]);
        window.negotiate(&mut image.script, VERSION_1);
        window.set_up_queue(&mut image.script, 0, &rings);
        window.go_live(&mut image.script);
        rings.publish(&mut image.script, 1);
        window.notify(&mut image.script, 0);
        window.wait_for_stop(&mut image.script);
    }
    // The delay is long enough to save the machine.
    image.script.say("stopped\n").push(Instruction::Delay { turns: 300_000 });
    for index in [DISK, ENTROPY] {
        let window = Window::of(index);
        window.wait_for_stop(&mut image.script);
        let device = devices::all()[usize::try_from(index).expect("a few devices")];
        let place = layout::FREE + 0x80_0000 + index * 0x1_0000;
        crate::rings::works_again(&mut image, &device, &device.served[0], place);
    }
    image.script.end();
    let shape = Shape::default();
    let mut machine = BareMachine::boot(&artefacts, &image, shape);
    machine.wait_for_console("stopped\n");
    let saved = machine.save();
    BareMachine::restore(&artefacts, &saved, shape).finish().assert_script_completed();
    machine.finish().assert_script_completed();
}

/// A state file may come from anywhere: its vCPUs show their guest nothing that is hidden from one that boots.
#[test]
fn a_forged_processor_is_not_restored() {
    let Some(artefacts) = artefacts() else { return };
    let mut image = Image::new();
    image.script.say("saved\n").push(Instruction::Delay { turns: 300_000 });
    image.script.end();
    let shape = Shape::default();
    let mut machine = BareMachine::boot(&artefacts, &image, shape);
    machine.wait_for_console("saved\n");
    let saved = machine.save();
    // SVM where the processor has none, or else VMX: in mode pvm a guest sees what the processor shows.
    let has_svm = std::arch::x86_64::__cpuid(0x8000_0001).ecx & 1 << 2 != 0;
    let (function, feature) = if has_svm { (1, 1 << 5) } else { (0x8000_0001, 1 << 2) };
    saved.add_to_cpuid(function, 2, feature);
    let ended = BareMachine::restore(&artefacts, &saved, shape).finish();
    assert!(format!("{:?}", ended.reason).contains("CPUID leaf"), "{ended:#?}");
    machine.finish().assert_script_completed();
}
