//! Tests of the bare guest itself: it runs, it notices when an expectation is not met, and vCPU 1
//! and interrupts work. Without them, a test of another module could pass because its attack never
//! ran.

use crate::{artefacts, devices};
use sandboxvm_bare_guest::{Image, Instruction, Width, layout};
use sandboxvm_protocol::vmm::ExitReason;
use sandboxvm_tests::bare::{
    BareMachine, Shape,
    driver::{FIRST_LINE, FIRST_WINDOW, Part, Rings, VERSION_1, WINDOW_SIZE, Window, register, route_interrupt},
};

#[test]
fn a_script_runs_to_its_end() {
    let Some(artefacts) = artefacts() else { return };
    let mut image = Image::new();
    image.put(layout::FREE, &0x1122_3344_5566_7788_u64.to_le_bytes());
    image.script.say("hello ").push(Instruction::Read { width: Width::Double, address: layout::FREE });
    image.script.push(Instruction::Print);
    image.script.repeat(3, |script| {
        script.repeat(2, |script| {
            script.say(".");
        });
    });
    image.script.end();
    let ending = BareMachine::boot(&artefacts, &image, Shape::default()).finish();
    ending.assert_script_completed();
    assert_eq!(ending.console, "hello 1122334455667788\n......");
}

#[test]
fn an_unmet_expectation_is_reported() {
    let Some(artefacts) = artefacts() else { return };
    let mut image = Image::new();
    image.script.expect(Width::Word, FIRST_WINDOW + register::MAGIC, 0x7472_6977).end();
    let ending = BareMachine::boot(&artefacts, &image, Shape::default()).finish();
    assert_eq!(ending.typed(), &ExitReason::GuestPanic);
    // The console has the address of the instruction and the value that it found.
    let place = layout::SCRIPT_0 + sandboxvm_bare_guest::INSTRUCTION_SIZE as u64;
    assert_eq!(ending.console, format!("!{place:016x}\n{:016x}\n", 0x7472_6976));
}

#[test]
fn the_second_vcpu_and_interrupts_work() {
    let Some(artefacts) = artefacts() else { return };
    let mut image = Image::new();
    let (flag, rings) = (layout::FREE, Rings::at(layout::FREE + 0x1000, 8));
    image.second.set(flag, 1);
    image.script.start_second_vcpu().wait(flag, u32::MAX, 1);
    let entropy = Window::of(devices::ENTROPY);
    rings.put_chain(&mut image, 0, &[Part::Writable(layout::FREE + 0x8000, 64)]);
    rings.put_heads(&mut image, &[0]);
    let script = &mut image.script;
    entropy.negotiate(script, VERSION_1);
    entropy.set_up_queue(script, 0, &rings);
    entropy.go_live(script);
    route_interrupt(script, FIRST_LINE + u32::try_from(devices::ENTROPY).unwrap());
    rings.publish(script, 1);
    entropy.notify(script, 0);
    script.wait_for_interrupts(1);
    rings.expect_used(script, 1);
    script.end();
    BareMachine::boot(&artefacts, &image, Shape { vcpus: 2, ..Shape::default() }).finish().assert_script_completed();
}

#[test]
fn every_device_of_the_machine_is_attacked() {
    let Some(artefacts) = artefacts() else { return };
    let mut image = Image::new();
    for device in devices::all() {
        let window = Window::of(device.index);
        image.script.expect(Width::Word, window.0 + register::MAGIC, 0x7472_6976);
        image.script.expect(Width::Word, window.0 + register::DEVICE_ID, device.kind.into());
    }
    let after = FIRST_WINDOW + devices::all().len() as u64 * WINDOW_SIZE;
    image.script.push(Instruction::Read { width: Width::Word, address: after }).end();
    let ending = BareMachine::boot(&artefacts, &image, Shape::default()).finish();
    // Only a device that this suite does not know would respond there.
    assert_eq!(ending.typed(), &ExitReason::UnknownMmio { address: after, write: false, size: 4 });
}

#[test]
fn an_idle_machine_stays_within_its_limits() {
    let Some(artefacts) = artefacts() else { return };
    let mut image = Image::new();
    image.script.say("idle");
    let mut machine = BareMachine::boot(&artefacts, &image, Shape::default());
    machine.wait_for_console("idle");
    machine.assert_at_rest();
    machine.assert_within_bounds();
    assert_eq!(machine.stop().typed(), &ExitReason::Stopped);
}

#[test]
fn a_guest_that_can_never_run_again_is_ended() {
    let Some(artefacts) = artefacts() else { return };
    for vcpus in [1, 2] {
        let mut image = Image::new();
        image.script.say("halts").push(Instruction::Halt);
        // If the machine has two vCPUs, the second was never started.
        let ending = BareMachine::boot(&artefacts, &image, Shape { vcpus, ..Shape::default() }).finish();
        assert_eq!(ending.typed(), &ExitReason::VcpusHalted);
        assert_eq!(ending.console, "halts");
    }
    let mut image = Image::new();
    image.second.push(Instruction::Halt);
    image.script.start_second_vcpu().push(Instruction::Halt);
    let ending = BareMachine::boot(&artefacts, &image, Shape { vcpus: 2, ..Shape::default() }).finish();
    assert_eq!(ending.typed(), &ExitReason::VcpusHalted);
}

/// The other vCPU works for longer than the VMM needs to notice that all vCPUs are halted.
#[test]
fn a_guest_with_one_permanently_halted_vcpu_keeps_running() {
    let Some(artefacts) = artefacts() else { return };
    let mut image = Image::new();
    image.second.push(Instruction::Halt);
    image.script.start_second_vcpu();
    image.script.repeat(200, |script| {
        script.push(Instruction::Delay { turns: 20_000 }).say(".");
    });
    image.script.end();
    let begun = std::time::Instant::now();
    let ending = BareMachine::boot(&artefacts, &image, Shape { vcpus: 2, ..Shape::default() }).finish();
    ending.assert_script_completed();
    // Shows how much time the VMM had to notice.
    eprintln!("ran for {:?} beside a halted vCPU", begun.elapsed());
}
