//! Everything with which a guest starts, as the ELF file that the VMM loads as a kernel.

use crate::{
    instruction::{INSTRUCTION_SIZE, Instruction},
    layout::{
        AP_START, CODE_SELECTOR, FIRST_VECTOR, FREE, IDT, IDT_POINTER, MAPPED_END, PAGE_TABLES, PROGRAM, SCRIPT_0,
        SCRIPT_1,
    },
    program,
    script::Script,
};

/// Why an image cannot be built.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// A script is longer than the memory for it.
    #[error("a script of {bytes} bytes has {room} bytes of room: use loops")]
    ScriptTooLong {
        /// Length of the script.
        bytes: usize,
        /// Length of the memory for it.
        room: u64,
    },
    /// There are more pieces of memory than an ELF file may have segments.
    #[error("{0} pieces of memory are too many for an ELF file: join some")]
    TooManyPieces(usize),
    /// A piece is below [`FREE`], where the guest's own program is.
    #[error("{0:#x} is the guest's own memory: use {FREE:#x} and above")]
    NotFree(u64),
}

/// A guest: the scripts of its vCPUs and the initial content of its memory.
#[derive(Debug, Clone, Default)]
pub struct Image {
    /// The script of the first vCPU.
    pub script: Script,
    /// The script that the second vCPU runs after [`Script::start_second_vcpu`].
    pub second: Script,
    memory: Vec<(u64, Vec<u8>)>,
}

impl Image {
    /// Returns an image with empty scripts.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the initial content of memory at `address`.
    pub fn put(&mut self, address: u64, bytes: &[u8]) -> &mut Self {
        self.memory.push((address, bytes.to_vec()));
        self
    }

    /// Returns the image as an ELF file.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub fn to_elf(&self) -> Result<Vec<u8>, ImageError> {
        if let Some((address, _)) = self.memory.iter().find(|(address, _)| *address < FREE) {
            return Err(ImageError::NotFree(*address));
        }
        let own = [
            (PROGRAM, program::code().to_vec()),
            (AP_START, program::ap_code().to_vec()),
            (PAGE_TABLES, page_tables()),
            (IDT, interrupt_table()),
            (IDT_POINTER, interrupt_table_pointer()),
            (SCRIPT_0, encode(&self.script, SCRIPT_1 - SCRIPT_0)?),
            (SCRIPT_1, encode(&self.second, FREE - SCRIPT_1)?),
        ];
        elf(&own.iter().chain(&self.memory).map(|(address, bytes)| (*address, bytes.as_slice())).collect::<Vec<_>>())
    }
}

/// Encodes a script. Each script ends by halting, even if it does not say so.
fn encode(script: &Script, room: u64) -> Result<Vec<u8>, ImageError> {
    let instructions = script.instructions().iter().chain([&Instruction::Rest]);
    let bytes: Vec<u8> = instructions.flat_map(|instruction| instruction.encode()).collect();
    debug_assert!(bytes.len().is_multiple_of(INSTRUCTION_SIZE));
    if bytes.len() as u64 <= room { Ok(bytes) } else { Err(ImageError::ScriptTooLong { bytes: bytes.len(), room }) }
}

/// Returns an identity map up to [`MAPPED_END`] in 2 MiB pages (SDM vol. 3A, 4.5).
fn page_tables() -> Vec<u8> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    const TABLE: u64 = 0x1000;
    let directories = MAPPED_END >> 30;
    let mut words = vec![0; 512];
    words[0] = (PAGE_TABLES + TABLE) | PRESENT_WRITABLE;
    let mut pointers = vec![0; 512];
    for (pointer, index) in pointers.iter_mut().zip(0..directories) {
        *pointer = (PAGE_TABLES + (2 + index) * TABLE) | PRESENT_WRITABLE;
    }
    words.extend(pointers);
    words.extend((0..directories * 512).map(|page| page << 21 | PRESENT_WRITABLE | LARGE));
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Returns 64-bit interrupt gates (SDM vol. 3A, 6.14.1) from [`FIRST_VECTOR`] on.
fn interrupt_table() -> Vec<u8> {
    const PRESENT_INTERRUPT_GATE: u8 = 0x8e;
    let [a, b, c, d, e, f, g, h] = program::interrupt_handler().to_le_bytes();
    let [selector_low, selector_high] = CODE_SELECTOR.to_le_bytes();
    let gate = [a, b, selector_low, selector_high, 0, PRESENT_INTERRUPT_GATE, c, d, e, f, g, h, 0, 0, 0, 0];
    let mut table = vec![0; 16 * usize::from(FIRST_VECTOR)];
    table.resize_with(16 * 256, || 0);
    for entry in table[16 * usize::from(FIRST_VECTOR)..].chunks_exact_mut(16) {
        entry.copy_from_slice(&gate);
    }
    table
}

fn interrupt_table_pointer() -> Vec<u8> {
    let limit: u16 = 16 * 256 - 1;
    [&limit.to_le_bytes()[..], &IDT.to_le_bytes()].concat()
}

/// Returns a static x86-64 executable with these segments. Its entry point is [`PROGRAM`].
fn elf(segments: &[(u64, &[u8])]) -> Result<Vec<u8>, ImageError> {
    const HEADER: u16 = 64;
    const PROGRAM_HEADER: u16 = 56;
    let count = u16::try_from(segments.len())
        .ok()
        .filter(|count| *count < u16::MAX / 2)
        .ok_or(ImageError::TooManyPieces(segments.len()))?;
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]); // ET_EXEC, EM_X86_64, EV_CURRENT
    file.extend(PROGRAM.to_le_bytes());
    file.extend(u64::from(HEADER).to_le_bytes());
    file.extend([0; 12]); // no section headers, no flags
    for field in [HEADER, PROGRAM_HEADER, count, 0, 0, 0] {
        file.extend(field.to_le_bytes());
    }
    let mut offset = u64::from(HEADER) + u64::from(PROGRAM_HEADER) * u64::from(count);
    for (address, bytes) in segments {
        let size = bytes.len() as u64;
        file.extend([1, 0, 0, 0, 7, 0, 0, 0]); // PT_LOAD, all access
        for field in [offset, *address, *address, size, size, 1] {
            file.extend(field.to_le_bytes());
        }
        offset += size;
    }
    for (_, bytes) in segments {
        file.extend(*bytes);
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_contains_the_memory_that_was_put_into_it() {
        let mut image = Image::new();
        image.script.say("hello").end();
        image.put(FREE, b"somewhere");
        let elf = image.to_elf().unwrap();
        assert!(elf.starts_with(b"\x7fELF"));
        assert_eq!(elf[56], 8, "eight segments");
        assert!(elf.ends_with(b"somewhere"));
        image.put(PROGRAM, b"here");
        assert_eq!(image.to_elf(), Err(ImageError::NotFree(PROGRAM)));
    }

    #[test]
    fn a_script_that_is_too_long_is_refused() {
        let mut image = Image::new();
        for _ in 0..=(FREE - SCRIPT_1) / INSTRUCTION_SIZE as u64 {
            image.second.push(Instruction::Print);
        }
        assert!(matches!(image.to_elf(), Err(ImageError::ScriptTooLong { .. })));
    }
}
