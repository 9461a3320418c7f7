//! What a script is made of, and how it lies in the guest's memory: 24 bytes each, read by [`crate::program`].
//!
//! ```text
//! offset  size  field
//! 0       1     operation: its place in the program's table
//! 2       2     slot or flags
//! 4       4     count: looks, bytes, or a distance in instructions
//! 8       8     a: mostly an address or a port
//! 16      8     b: mostly a value
//! ```

/// Bytes of one instruction.
pub const INSTRUCTION_SIZE: usize = 24;

/// Width of an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Width {
    /// One byte.
    Byte,
    /// Two bytes.
    Half,
    /// Four bytes.
    Word,
    /// Eight bytes; there is no such port access.
    Double,
}

impl Width {
    /// All four.
    pub const ALL: [Self; 4] = [Self::Byte, Self::Half, Self::Word, Self::Double];
    /// Those of port accesses.
    pub const PORT: [Self; 3] = [Self::Byte, Self::Half, Self::Word];

    /// Bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        1 << self as u8
    }
}

/// One thing the guest does. "The accumulator" is one register of each vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instruction {
    /// Halts with interrupts enabled, again after each interrupt.
    Rest,
    /// Halts with interrupts disabled: this vCPU never executes another instruction.
    Halt,
    /// Writes `value` at `address`, memory or device.
    Write {
        /// How wide.
        width: Width,
        /// Where.
        address: u64,
        /// What.
        value: u64,
    },
    /// Reads into the accumulator.
    Read {
        /// How wide.
        width: Width,
        /// Where.
        address: u64,
    },
    /// OUT.
    Out {
        /// How wide; not [`Width::Double`].
        width: Width,
        /// Port.
        port: u16,
        /// What.
        value: u32,
    },
    /// IN, into the accumulator.
    In {
        /// How wide; not [`Width::Double`].
        width: Width,
        /// Port.
        port: u16,
    },
    /// REP OUTSB: `count` bytes from `address`.
    OutString {
        /// Port.
        port: u16,
        /// From where.
        address: u64,
        /// How many.
        count: u32,
    },
    /// REP INSB: `count` bytes to `address`.
    InString {
        /// Port.
        port: u16,
        /// To where.
        address: u64,
        /// How many.
        count: u32,
    },
    /// Copies one value from `from` to `to`.
    Copy {
        /// How wide.
        width: Width,
        /// To where.
        to: u64,
        /// From where.
        from: u64,
    },
    /// Adds to the 16 bits at `address`.
    Add {
        /// Where.
        address: u64,
        /// How much.
        value: u16,
    },
    /// Gives up unless the accumulator, under `mask`, is `value`.
    Expect {
        /// What it must be.
        value: u64,
        /// The bits that count.
        mask: u64,
    },
    /// Looks at 32 bits until they are `value` under `mask`, and gives up after `looks`.
    Wait {
        /// Where.
        address: u64,
        /// What they must become.
        value: u32,
        /// The bits that count.
        mask: u32,
        /// How often to look.
        looks: u32,
        /// Halt between two looks, until an interrupt comes.
        halting: bool,
        /// Beyond `value` is as good: for a counter in the upper half, which may go on meanwhile and come round.
        or_beyond: bool,
    },
    /// Goes on `distance` instructions further, or back.
    Jump {
        /// From this instruction on.
        distance: i32,
    },
    /// Sets loop counter `slot`.
    Set {
        /// Which.
        slot: u16,
        /// To what.
        count: u64,
    },
    /// Counts loop counter `slot` down, and jumps unless it is zero.
    Loop {
        /// Which.
        slot: u16,
        /// As in [`Instruction::Jump`].
        distance: i32,
    },
    /// Jumps while the 32 bits at `address` are zero.
    WhileZero {
        /// Where.
        address: u64,
        /// As in [`Instruction::Jump`].
        distance: i32,
    },
    /// Writes the accumulator to the console: 16 hexadecimal digits and a line feed.
    Print,
    /// Calls machine code at `address` with the accumulator in RAX and `argument` in RDI; RAX is the accumulator after.
    Call {
        /// Where.
        address: u64,
        /// For it.
        argument: u64,
    },
    /// Does nothing, `turns` times.
    Delay {
        /// How often.
        turns: u32,
    },
}

impl Instruction {
    /// As it lies in the guest's memory.
    #[must_use]
    pub fn encode(self) -> [u8; INSTRUCTION_SIZE] {
        let wide = |first: u8, width: Width| first + width as u8;
        let (operation, slot, count, a, b) = match self {
            Self::Rest => (0, 0, 0, 0, 0),
            Self::Halt => (31, 0, 0, 0, 0),
            Self::Write { width, address, value } => (wide(1, width), 0, 0, address, value),
            Self::Read { width, address } => (wide(5, width), 0, 0, address, 0),
            Self::Copy { width, to, from } => (wide(9, width), 0, 0, to, from),
            Self::Out { width, port, value } => (wide(13, width), 0, 0, port.into(), value.into()),
            Self::In { width, port } => (wide(16, width), 0, 0, port.into(), 0),
            Self::OutString { port, address, count } => (19, 0, count, port.into(), address),
            Self::InString { port, address, count } => (20, 0, count, port.into(), address),
            Self::Add { address, value } => (21, 0, 0, address, value.into()),
            Self::Expect { value, mask } => (22, 0, 0, value, mask),
            Self::Wait { address, value, mask, looks, halting, or_beyond } => {
                let flags = u16::from(halting) | u16::from(or_beyond) << 1;
                (23, flags, looks, address, u64::from(mask) << 32 | u64::from(value))
            }
            Self::Jump { distance } => (24, 0, distance.cast_unsigned(), 0, 0),
            Self::Set { slot, count } => (25, slot, 0, 0, count),
            Self::Loop { slot, distance } => (26, slot, distance.cast_unsigned(), 0, 0),
            Self::Print => (27, 0, 0, 0, 0),
            Self::Call { address, argument } => (28, 0, 0, address, argument),
            Self::Delay { turns } => (29, 0, turns, 0, 0),
            Self::WhileZero { address, distance } => (30, 0, distance.cast_unsigned(), address, 0),
        };
        assert!(
            !matches!(self, Self::Out { width: Width::Double, .. } | Self::In { width: Width::Double, .. }),
            "there are no port accesses of eight bytes"
        );
        let mut bytes = [0; INSTRUCTION_SIZE];
        bytes[0] = operation;
        bytes[2..4].copy_from_slice(&slot.to_le_bytes());
        bytes[4..8].copy_from_slice(&count.to_le_bytes());
        bytes[8..16].copy_from_slice(&a.to_le_bytes());
        bytes[16..].copy_from_slice(&b.to_le_bytes());
        bytes
    }
}
