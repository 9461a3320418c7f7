//! Builds scripts: sequences of instructions, loops, and the ways to end.

use crate::{
    instruction::{Instruction, Width},
    layout::{
        AP_VECTOR, I8042, I8042_RESET, INTERRUPTS, LOCAL_APIC, NOTIFY, NOTIFY_PANIC, NOTIFY_SHUTDOWN, SLOTS, UART,
    },
};

/// Maximum number of attempts when a script waits, each of which leaves the guest. That is some seconds if ring 0 is
/// interpreted and about half of one if it is not, and more for a device.
const LOOKS: u32 = 400_000;

/// A sequence of instructions for one vCPU.
#[derive(Debug, Clone, Default)]
pub struct Script {
    instructions: Vec<Instruction>,
    /// Number of loops around the current position.
    depth: u16,
}

/// A position in a script to which an instruction can jump.
#[derive(Debug, Clone, Copy)]
struct Label(usize);

impl Script {
    /// Returns an empty script.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the instructions.
    #[must_use]
    pub fn instructions(&self) -> &[Instruction] {
        &self.instructions
    }

    /// Adds an instruction.
    pub fn push(&mut self, instruction: Instruction) -> &mut Self {
        self.instructions.push(instruction);
        self
    }

    /// Writes a value, to memory or to a device.
    pub fn write(&mut self, width: Width, address: u64, value: u64) -> &mut Self {
        self.push(Instruction::Write { width, address, value })
    }

    /// Writes 32 bits, the width of most registers.
    pub fn set(&mut self, address: u64, value: u32) -> &mut Self {
        self.write(Width::Word, address, value.into())
    }

    /// Reads a value, and gives up unless it is this one.
    pub fn expect(&mut self, width: Width, address: u64, value: u64) -> &mut Self {
        self.push(Instruction::Read { width, address }).push(Instruction::Expect { value, mask: u64::MAX })
    }

    /// Waits until 32 bits under `mask` are `value`. The number of attempts is large, as their
    /// duration depends on the host.
    pub fn wait(&mut self, address: u64, mask: u32, value: u32) -> &mut Self {
        self.push(Instruction::Wait { address, value, mask, looks: LOOKS, halting: false, or_beyond: false })
    }

    /// Waits until the 16 bits at `address` plus two, the index of a ring, are `index` or beyond.
    /// With `halting` the vCPU enables interrupts and halts between attempts, without a limit of
    /// time.
    pub fn wait_for_index(&mut self, address: u64, index: u16, halting: bool) -> &mut Self {
        let (value, mask) = (u32::from(index) << 16, 0xffff_0000);
        let looks = if halting { u32::MAX } else { LOOKS };
        self.push(Instruction::Wait { address, value, mask, looks, halting, or_beyond: true })
    }

    /// Halts until there were `count` interrupts.
    pub fn wait_for_interrupts(&mut self, count: u32) -> &mut Self {
        let (address, value, mask) = (INTERRUPTS, count, u32::MAX);
        self.push(Instruction::Wait { address, value, mask, looks: u32::MAX, halting: true, or_beyond: true })
    }

    /// Writes one byte to a port.
    pub fn out(&mut self, port: u16, value: u8) -> &mut Self {
        self.push(Instruction::Out { width: Width::Byte, port, value: value.into() })
    }

    /// Writes text to the console. Each byte causes an exit.
    pub fn say(&mut self, text: &str) -> &mut Self {
        for byte in text.bytes() {
            self.out(UART, byte);
        }
        self
    }

    fn here(&self) -> Label {
        Label(self.instructions.len())
    }

    /// Repeats the instructions of `body` `count` times, which must be at least once.
    ///
    /// # Panics
    /// Panics if loops are nested deeper than there are loop counters.
    pub fn repeat(&mut self, count: u64, body: impl FnOnce(&mut Self)) -> &mut Self {
        let slot = self.depth;
        assert!(slot < SLOTS, "loops in {SLOTS} loops");
        self.push(Instruction::Set { slot, count: count.max(1) });
        let label = self.here();
        self.depth += 1;
        body(self);
        self.depth -= 1;
        let distance = self.distance(label);
        self.push(Instruction::Loop { slot, distance })
    }

    /// Repeats the instructions of `body` until the 32 bits at `address` are not zero.
    pub fn until(&mut self, address: u64, body: impl FnOnce(&mut Self)) -> &mut Self {
        let label = self.here();
        body(self);
        let distance = self.distance(label);
        self.push(Instruction::WhileZero { address, distance })
    }

    fn distance(&self, label: Label) -> i32 {
        let back = i32::try_from(self.instructions.len() - label.0).expect("a script is far shorter than 2^31");
        -back
    }

    /// Starts the second vCPU with its script (SDM vol. 3A, 9.4.4: INIT, SIPI, SIPI).
    pub fn start_second_vcpu(&mut self) -> &mut Self {
        const COMMAND_LOW: u64 = LOCAL_APIC + 0x300;
        const COMMAND_HIGH: u64 = LOCAL_APIC + 0x310;
        const INIT: u32 = 0x4500;
        const STARTUP: u32 = 0x4600;
        self.set(COMMAND_HIGH, 1 << 24).set(COMMAND_LOW, INIT).push(Instruction::Delay { turns: 1000 });
        for _ in 0..2 {
            self.set(COMMAND_HIGH, 1 << 24).set(COMMAND_LOW, STARTUP | AP_VECTOR);
            self.push(Instruction::Delay { turns: 1000 });
        }
        self
    }

    /// Ends the machine gracefully.
    pub fn end(&mut self) -> &mut Self {
        self.out(NOTIFY, NOTIFY_SHUTDOWN).out(I8042, I8042_RESET).push(Instruction::Rest)
    }

    /// Ends the machine as if an expectation was not met.
    pub fn give_up(&mut self) -> &mut Self {
        self.out(NOTIFY, NOTIFY_PANIC).out(I8042, I8042_RESET).push(Instruction::Rest)
    }
}
