//! Puts a kernel, its command line and the zero page into guest memory (Documentation/x86/boot.rst).

use super::{layout, mptable, registers};
use crate::memory::GuestMemory;
use linux_loader::loader::{
    KernelLoader,
    bootparam::{boot_e820_entry, boot_params},
    elf::Elf,
};
use sandboxvm_protocol::machine::{MemorySize, VcpuCount};
use std::{fs::File, io};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

/// Why a guest cannot be made ready to boot.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Not a loadable kernel.
    #[error("kernel does not load: {0}; it must be an uncompressed x86-64 ELF vmlinux that fits guest memory")]
    Kernel(#[from] linux_loader::loader::Error),
    /// The entry point lies outside guest memory.
    #[error("kernel entry point {0:#x} lies outside guest memory; this vmlinux is damaged")]
    Entry(u64),
    /// Boot structures do not fit.
    #[error("cannot write boot structures into guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
    /// Boot GDT or page tables do not fit.
    #[error(transparent)]
    Tables(#[from] registers::RegistersError),
    /// No entropy for the seed.
    #[error("cannot draw the guest's RNG seed from the host: {0}")]
    Entropy(io::Error),
}

/// Bytes of the RNG seed; Linux mixes in all and credits 256 bits.
const SEED_LEN: usize = 32;
/// SETUP_RNG_SEED (Documentation/x86/boot.rst, setup_data).
const SETUP_RNG_SEED: u32 = 9;

/// Loads `kernel` and everything it reads at boot; returns its 64-bit entry point.
///
/// # Errors
/// See [`BootError`]; guest memory is then in an undefined state and must not be run.
pub fn load(
    memory: &GuestMemory,
    size: MemorySize,
    vcpus: VcpuCount,
    kernel: &mut File,
    cmdline: &str,
) -> Result<GuestAddress, BootError> {
    let loaded = Elf::load(memory, None, kernel, Some(GuestAddress(layout::HIGH_BASE)))?;
    if !memory.address_in_range(loaded.kernel_load) {
        return Err(BootError::Entry(loaded.kernel_load.0));
    }
    memory.write_slice(cmdline.as_bytes(), layout::CMDLINE)?;
    memory.write_obj(0u8, GuestAddress(layout::CMDLINE.0 + cmdline.len() as u64))?;
    write_seed(memory)?;
    mptable::write(memory, vcpus.get())?;
    registers::write_boot_tables(memory)?;
    write_zero_page(memory, size, cmdline.len())?;
    Ok(loaded.kernel_load)
}

/// `struct setup_data { u64 next; u32 type; u32 len; u8 data[len]; }` with entropy from the host.
fn write_seed(memory: &GuestMemory) -> Result<(), BootError> {
    let mut seed = [0u8; SEED_LEN];
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| BootError::Entropy(e.into()))?;
    let mut data = Vec::with_capacity(16 + SEED_LEN);
    data.extend_from_slice(&0u64.to_le_bytes());
    data.extend_from_slice(&SETUP_RNG_SEED.to_le_bytes());
    data.extend_from_slice(&(SEED_LEN as u64).to_le_bytes()[..4]);
    data.extend_from_slice(&seed);
    Ok(memory.write_slice(&data, layout::RNG_SEED)?)
}

fn write_zero_page(memory: &GuestMemory, size: MemorySize, cmdline_len: usize) -> Result<(), BootError> {
    const BOOT_FLAG: u16 = 0xaa55;
    const HEADER_MAGIC: u32 = 0x5372_6448; // "HdrS"
    const LOADER_UNDEFINED: u8 = 0xff;
    const E820_RAM: u32 = 1;
    const E820_RESERVED: u32 = 2;
    let mut params = boot_params::default();
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.kernel_alignment = 0x100_0000;
    params.hdr.cmd_line_ptr = u32::try_from(layout::CMDLINE.0).expect("the command line lies in base memory");
    params.hdr.cmdline_size = u32::try_from(cmdline_len + 1).expect("command lines are at most 2 KiB");
    params.hdr.setup_data = layout::RNG_SEED.0;
    let base = layout::MPTABLE.0;
    let mut map = vec![(0, base, E820_RAM), (base, layout::BASE_MEMORY_END - base, E820_RESERVED)];
    for (start, len) in layout::memory_regions(size) {
        let skip = if start.0 == 0 { layout::HIGH_BASE } else { 0 };
        map.push((start.0 + skip, len - skip, E820_RAM));
    }
    for (slot, (addr, size, type_)) in params.e820_table.iter_mut().zip(&map) {
        *slot = boot_e820_entry { addr: *addr, size: *size, r#type: *type_ };
    }
    params.e820_entries = u8::try_from(map.len()).expect("at most four entries");
    Ok(memory.write_obj(params, layout::ZERO_PAGE)?)
}
