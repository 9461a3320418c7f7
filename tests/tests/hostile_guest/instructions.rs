//! Machine code in place of a device driver: the instructions that the VMM executes for a guest
//! whose ring 0 is interpreted, ways to stop a processor permanently, and model-specific registers
//! of hypervisors.

use crate::artefacts;
use sandboxvm_bare_guest::{Image, Instruction, layout};
use sandboxvm_protocol::vmm::ExitReason;
use sandboxvm_tests::bare::{BareMachine, Shape};

/// The address of the code, and of the memory that it uses.
const CODE: u64 = layout::FREE;
const AREA: u64 = layout::FREE + 0x1_0000;

/// Returns an image that calls `code` with `argument` in RDI.
fn calling(code: &[u8], argument: u64) -> Image {
    let mut image = Image::new();
    image.put(CODE, code);
    image.script.push(Instruction::Call { address: CODE, argument });
    image.script.say("back").end();
    image
}

fn run(image: &Image) -> sandboxvm_tests::bare::Ending {
    let artefacts = artefacts().expect("the test checked for artefacts before");
    BareMachine::boot(&artefacts, image, Shape::default()).finish()
}

const RET: u8 = 0xc3;
/// Sets OSFXSR and OSXSAVE in CR4, without which XSAVE is an invalid instruction.
const ALLOW_XSAVE: [u8; 14] = [0x0f, 0x20, 0xe0, 0x0d, 0x00, 0x02, 0x04, 0x00, 0x0f, 0x22, 0xe0, 0x31, 0xd2, 0x90];

/// Asserts that the machine runs the code to its end, or ends with the reason: a triple fault, or
/// an instruction that KVM cannot execute.
fn may_fail(what: &str, image: &Image) {
    let ending = run(image);
    let reason = ending.typed();
    eprintln!("{what}: {reason:?}");
    let expected = matches!(
        reason,
        ExitReason::GuestShutdown
            | ExitReason::TripleFault
            | ExitReason::InternalError { .. }
            | ExitReason::UnknownMmio { .. }
            | ExitReason::UnexpectedExit { .. }
            | ExitReason::EntryFailure { .. }
    );
    assert!(expected, "{what}: {ending:#?}");
}

/// XSAVE and XRSTOR of all components, at many addresses.
#[test]
fn extended_state_at_any_address_is_executed_or_ends_the_machine() {
    if artefacts().is_none() {
        return;
    }
    const SAVE: [u8; 3] = [0x0f, 0xae, 0x27];
    const RESTORE: [u8; 3] = [0x0f, 0xae, 0x2f];
    let end = 64 << 20;
    let places = [
        AREA,
        AREA + 1,
        AREA + 32,
        end - 512,
        end - 64,
        end,
        0xd000_0000,
        layout::LOCAL_APIC,
        0xffff_ffc0,
        1 << 32,
        1 << 47,
        u64::MAX - 63,
    ];
    for place in places {
        for (what, operation) in [("XSAVE", SAVE), ("XRSTOR", RESTORE)] {
            // MOV EAX, -1: all components.
            let code = [&ALLOW_XSAVE[..], &[0xb8, 0xff, 0xff, 0xff, 0xff], &operation, &[RET]].concat();
            may_fail(&format!("{what} at {place:#x}"), &calling(&code, place));
        }
    }
}

/// XRSTOR of an area with random content: reserved bits, missing components, a header of ones.
#[test]
fn invalid_extended_state_is_executed_or_ends_the_machine() {
    if artefacts().is_none() {
        return;
    }
    let mut random = fastrand::Rng::with_seed(crate::seed());
    for round in 0..12_u8 {
        let code = [&ALLOW_XSAVE[..], &[0xb8, 0xff, 0xff, 0xff, 0xff, 0x0f, 0xae, 0x2f, RET]].concat();
        let mut image = calling(&code, AREA);
        let mut area: Vec<u8> = (0..4096).map(|_| if round < 4 { 0xff } else { random.u8(..) }).collect();
        if round % 2 == 0 {
            // The processor accepts this header, so it also reads the state behind it.
            area[512..576].fill(0);
            area[512] = round;
            area[24..32].copy_from_slice(&[0x80, 0x1f, 0, 0, 0xff, 0xff, 0, 0]); // MXCSR and its mask
        }
        image.put(AREA, &area);
        may_fail("XRSTOR", &image);
    }
}

/// Many breakpoints and waits. Each is an exit on a host that interprets ring 0.
#[test]
fn instructions_that_the_vmm_executes_work() {
    if artefacts().is_none() {
        return;
    }
    // FWAIT 300 times.
    may_fail("FWAIT", &calling(&[&[0x9b; 300][..], &[RET]].concat(), 0));
    // INT3 without a handler: a triple fault on any host.
    assert_eq!(run(&calling(&[0xcc, RET], 0)).typed(), &ExitReason::TripleFault);
}

/// Prefixes, operands and lengths with which a decoder may make mistakes.
#[test]
fn unusual_instructions_are_executed_or_end_the_machine() {
    if artefacts().is_none() {
        return;
    }
    let mut codes: Vec<Vec<u8>> = vec![
        vec![0x0f, 0x0b],                                           // UD2
        vec![0xf0, 0x0f, 0xae, 0x27],                               // LOCK XSAVE
        vec![0x66, 0x0f, 0xae, 0x27],                               // with the prefix of CLWB
        [vec![0x66; 14], vec![0x90]].concat(),                      // the maximum length
        [vec![0x66; 15], vec![0x90]].concat(),                      // above the maximum length
        vec![0x48, 0x0f, 0xae, 0x24, 0x25, 0, 0, 0, 0x80],          // at a negative displacement
        vec![0x43, 0x0f, 0xae, 0xa4, 0xff, 0xff, 0xff, 0xff, 0x7f], // R15 + R15 * 8 + much
        vec![0x0f, 0xae, 0x25, 0xff, 0xff, 0xff, 0x7f],             // relative to RIP
        vec![0x0f, 0xc7, 0x0f],                                     // CMPXCHG8B
        vec![0x48, 0x0f, 0xc7, 0x0f],                               // CMPXCHG16B
        vec![0x0f, 0x01, 0xc1],                                     // VMCALL
        vec![0x0f, 0x01, 0xd9],                                     // VMMCALL
        vec![0x0f, 0x01, 0xd0],                                     // XGETBV
        vec![0xf3, 0x0f, 0xb8, 0xc0],                               // POPCNT
        vec![0x0f, 0x01, 0xcb],                                     // STAC
        vec![0x0f, 0xaa],                                           // RSM
        vec![0x0f, 0xa2],                                           // CPUID
        vec![0x0f, 0x31],                                           // RDTSC
        vec![0x0f, 0x09],                                           // WBINVD
    ];
    let mut random = fastrand::Rng::with_seed(crate::seed());
    codes.extend((0..12).map(|_| (0..8).map(|_| random.u8(..)).collect()));
    for mut code in codes {
        let name = format!("{code:02x?}");
        code.push(RET);
        let mut image = calling(&code, AREA);
        // Whatever the instruction does, the code then returns.
        image.put(CODE + code.len() as u64, &[RET; 64]);
        may_fail_or_hang(&name, &image);
    }
}

/// As [`may_fail`], but the machine may also run until it is stopped from outside.
fn may_fail_or_hang(what: &str, image: &Image) {
    let artefacts = artefacts().expect("the caller has looked");
    let mut machine = BareMachine::boot(&artefacts, image, Shape::default());
    for _ in 0..20 {
        if machine.stats().is_none() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let ending = machine.stop();
    let reason = ending.typed();
    eprintln!("{what}: {reason:?}");
    assert!(!matches!(reason, ExitReason::GuestReset), "{what}: {ending:#?}");
}

/// Registers of the processor and of other hypervisors, with values that have an effect there: a
/// reset, a crash, pages to be written.
#[test]
fn model_specific_registers() {
    if artefacts().is_none() {
        return;
    }
    // MOV ECX, EDI; MOV EAX, EDI's value; XOR EDX, EDX; WRMSR; RET
    let registers: [(u32, u32); 14] = [
        (0x4000_0000, 1),
        (0x4000_0001, 0x100_0001),
        (0x4000_0003, 1),
        (0x4000_0105, 0x8000_0000),
        (0x4000_0080, 1),
        (0x4b56_4d00, 0xffff_f000),
        (0x4b56_4d01, 0xffff_ffff),
        (0x4b56_4d02, 0xffff_ffff),
        (0x4b56_4d03, 0xffff_ffff),
        (0x4b56_4d04, 0xffff_ffff),
        (0x1b, 0),
        (0x1b, 0xfed0_0800),
        (0xc000_0080, 0),
        (0x9e, 0xffff_ffff),
    ];
    for (register, value) in registers {
        let code =
            [&[0xb9][..], &register.to_le_bytes(), &[0xb8], &value.to_le_bytes(), &[0x31, 0xd2, 0x0f, 0x30, RET]]
                .concat();
        may_fail_or_hang(&format!("WRMSR {register:#x}"), &calling(&code, 0));
    }
}

/// Interrupts of every kind, to the vCPU itself and to vCPUs that do not exist: INIT, SIPI, NMI,
/// SMI.
#[test]
fn interprocessor_interrupts() {
    if artefacts().is_none() {
        return;
    }
    for shorthand in [0, 1, 2, 3] {
        for delivery in 0..8 {
            let mut image = Image::new();
            image.script.set(layout::LOCAL_APIC + 0xf0, 0x1ff);
            for destination in [0, 1, 7, 0xff] {
                image.script.set(layout::LOCAL_APIC + 0x310, destination << 24);
                let command = shorthand << 18 | 1 << 14 | delivery << 8 | u32::from(layout::FIRST_VECTOR);
                image.script.set(layout::LOCAL_APIC + 0x300, command);
            }
            image.script.say("back").end();
            may_fail_or_hang(&format!("delivery {delivery}, shorthand {shorthand}"), &image);
        }
    }
}

/// A processor that has stopped permanently blocks neither its VMM nor the end of the machine.
#[test]
fn processors_that_stand_still() {
    let Some(artefacts) = artefacts() else { return };
    for (what, code) in [("HLT", &[0xfa, 0xf4][..]), ("a loop", &[0xeb, 0xfe]), ("HLT, NMI aside", &[0xf4])] {
        let mut image = Image::new();
        image.put(CODE, code);
        image.script.say("there").push(Instruction::Call { address: CODE, argument: 0 });
        let mut machine = BareMachine::boot(&artefacts, &image, Shape::default());
        machine.wait_for_console("there");
        assert!(machine.stats().is_some(), "{what}");
        assert_eq!(machine.stop().typed(), &ExitReason::Stopped, "{what}");
    }
}
