//! The guest's memory map. Everything is identity-mapped up to [`MAPPED_END`], devices included.
//!
//! ```text
//! 0x0000_0500  GDT, made by the VMM      0x0012_0000  stacks, loop counters, interrupt counter
//! 0x0000_8000  where vCPU 1 starts       0x0040_0000  script of vCPU 0
//! 0x0010_0000  the program               0x00c0_0000  script of vCPU 1
//! 0x0011_0000  page tables, IDT          0x0100_0000  free for the test, to the end of memory
//! ```

/// Address at which the second vCPU starts in real mode: the page that a SIPI with vector
/// [`AP_VECTOR`] names.
pub const AP_START: u64 = 0x8000;
/// Vector of that SIPI.
pub const AP_VECTOR: u32 = 8;
/// Address of the program, which is also its entry point.
pub const PROGRAM: u64 = 0x10_0000;
/// Page tables: PML4, page directory pointers, and a page directory for each GiB.
pub const PAGE_TABLES: u64 = 0x11_0000;
/// End of the mapped addresses.
pub const MAPPED_END: u64 = 4 << 30;
/// Interrupt descriptor table. Each vector from [`FIRST_VECTOR`] on counts the interrupt and
/// returns. Exceptions have no handler, so they are triple faults.
pub const IDT: u64 = 0x11_8000;
/// The operand of LIDT.
pub const IDT_POINTER: u64 = 0x11_9000;
/// First vector that is not an exception's.
pub const FIRST_VECTOR: u8 = 0x20;
/// Number of interrupts so far, in 64 bits.
pub const INTERRUPTS: u64 = 0x12_0000;
/// Loop counters of vCPU 0: [`SLOTS`] counters of 64 bits.
pub const SLOTS_0: u64 = 0x12_1000;
/// Loop counters of vCPU 1.
pub const SLOTS_1: u64 = 0x12_2000;
/// Number of loop counters of each vCPU.
pub const SLOTS: u16 = 16;
/// End of the stack of vCPU 0.
pub const STACK_0: u64 = 0x12_8000;
/// End of the stack of vCPU 1.
pub const STACK_1: u64 = 0x12_c000;
/// Script of vCPU 0.
pub const SCRIPT_0: u64 = 0x40_0000;
/// Script of vCPU 1.
pub const SCRIPT_1: u64 = 0xc0_0000;
/// First address that a test may use.
pub const FREE: u64 = 0x100_0000;

/// The first vCPU's code segment in the GDT that the VMM made.
pub(crate) const CODE_SELECTOR: u16 = 8;
/// Address of that GDT.
pub(crate) const GDT: u32 = 0x500;

/// Local APIC registers.
pub const LOCAL_APIC: u64 = 0xfee0_0000;
/// IOAPIC registers.
pub const IOAPIC: u64 = 0xfec0_0000;

/// The UART's data port. Bytes that are written there appear in the console log.
pub const UART: u16 = 0x3f8;
/// The port on which the guest reports what it is about to do.
pub const NOTIFY: u16 = 0x510;
/// [`NOTIFY`]: the guest is about to end gracefully.
pub const NOTIFY_SHUTDOWN: u8 = 0x03;
/// [`NOTIFY`]: the guest powers off, which ends the machine.
pub const NOTIFY_POWER_OFF: u8 = 0x04;
/// [`NOTIFY`]: the guest halts, which ends the machine.
pub const NOTIFY_HALT: u8 = 0x05;
/// [`NOTIFY`]: the guest has panicked. Scripts use it when an expectation is not met.
pub const NOTIFY_PANIC: u8 = 0xee;
/// i8042 command port.
pub const I8042: u16 = 0x64;
/// Command of [`I8042`] that resets the machine.
pub const I8042_RESET: u8 = 0xfe;
