//! The instructions of a script, and their encoding in the guest's memory: 24 bytes each, which
//! [`crate::program`] reads.
//!
//! ```text
//! offset  size  field
//! 0       1     operation: its index in the program's table
//! 2       2     slot or flags
//! 4       4     count: attempts, bytes, or a distance in instructions
//! 8       8     a: mostly an address or a port
//! 16      8     b: mostly a value
//! ```

/// Length of an encoded instruction in bytes.
pub const INSTRUCTION_SIZE: usize = 24;

/// The width of an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Width {
    /// One byte.
    Byte,
    /// Two bytes.
    Half,
    /// Four bytes.
    Word,
    /// Eight bytes. Ports do not have this width.
    Double,
}

impl Width {
    /// All widths.
    pub const ALL: [Self; 4] = [Self::Byte, Self::Half, Self::Word, Self::Double];
    /// The widths of port accesses.
    pub const PORT: [Self; 3] = [Self::Byte, Self::Half, Self::Word];

    /// Returns the width in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        1 << self as u8
    }
}

/// One action of the guest. Each vCPU has one register that is called "the accumulator" here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instruction {
    /// Halts with interrupts enabled, and halts again after each interrupt.
    Rest,
    /// Halts with interrupts disabled: this vCPU never executes another instruction.
    Halt,
    /// Writes `value` to memory or to a device.
    Write {
        /// The width of the access.
        width: Width,
        /// The address.
        address: u64,
        /// The value.
        value: u64,
    },
    /// Reads into the accumulator, from memory or from a device.
    Read {
        /// The width of the access.
        width: Width,
        /// The address.
        address: u64,
    },
    /// Writes to a port (OUT).
    Out {
        /// The width of the access, except [`Width::Double`].
        width: Width,
        /// The port.
        port: u16,
        /// The value.
        value: u32,
    },
    /// Reads from a port into the accumulator (IN).
    In {
        /// The width of the access, except [`Width::Double`].
        width: Width,
        /// The port.
        port: u16,
    },
    /// Writes `count` bytes from `address` to a port (REP OUTSB).
    OutString {
        /// The port.
        port: u16,
        /// The address of the first byte.
        address: u64,
        /// The number of bytes.
        count: u32,
    },
    /// Reads `count` bytes from a port to `address` (REP INSB).
    InString {
        /// The port.
        port: u16,
        /// The address of the first byte.
        address: u64,
        /// The number of bytes.
        count: u32,
    },
    /// Copies one value from `from` to `to`.
    Copy {
        /// The width of the value.
        width: Width,
        /// The address to which the value is copied.
        to: u64,
        /// The address from which the value is copied.
        from: u64,
    },
    /// Adds to the 16 bits at `address`.
    Add {
        /// The address.
        address: u64,
        /// The number that is added.
        value: u16,
    },
    /// Gives up unless the accumulator, under `mask`, is `value`. The machine then ends with a
    /// panic of the guest.
    Expect {
        /// The expected value.
        value: u64,
        /// The bits that are compared.
        mask: u64,
    },
    /// Reads 32 bits repeatedly until they are `value` under `mask`. Gives up after `looks`
    /// attempts.
    Wait {
        /// The address.
        address: u64,
        /// The expected value.
        value: u32,
        /// The bits that are compared.
        mask: u32,
        /// The maximum number of attempts.
        looks: u32,
        /// Whether to halt until an interrupt between two attempts.
        halting: bool,
        /// Whether higher values are accepted too, as for a wrapping counter in the upper half that
        /// may have advanced.
        or_beyond: bool,
    },
    /// Continues `distance` instructions further, or back if it is negative.
    Jump {
        /// The distance from this instruction.
        distance: i32,
    },
    /// Sets the loop counter `slot`.
    Set {
        /// The index of the loop counter.
        slot: u16,
        /// The new value.
        count: u64,
    },
    /// Decrements the loop counter `slot`, and jumps unless it is zero.
    Loop {
        /// The index of the loop counter.
        slot: u16,
        /// As in [`Instruction::Jump`].
        distance: i32,
    },
    /// Jumps while the 32 bits at `address` are zero.
    WhileZero {
        /// The address.
        address: u64,
        /// As in [`Instruction::Jump`].
        distance: i32,
    },
    /// Writes the accumulator to the console, as 16 hexadecimal digits and a line feed.
    Print,
    /// Calls machine code at `address`, with the accumulator in RAX and `argument` in RDI. RAX is
    /// the accumulator afterwards.
    Call {
        /// The address of the code.
        address: u64,
        /// The argument.
        argument: u64,
    },
    /// Does nothing, `turns` times.
    Delay {
        /// The number of iterations.
        turns: u32,
    },
}

impl Instruction {
    /// Returns the encoding in the guest's memory.
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
