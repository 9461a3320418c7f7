//! A program of 140 bytes for guests: it ends every process but itself and the agent. An image may
//! have no shell, and `kill` of a shell is a program of the image, which may do anything. May never
//! run on the host.

/// Path in the guest, in memory and beside the agent's own file.
pub(super) const PATH: &str = "/run/sandboxvm/end-processes";

/// Address at which the program is mapped.
const BASE: u64 = 0x40_0000;
/// Sizes of the header of the file and of its one program header.
const HEADERS: u64 = 64 + 56;
/// `kill(-1, SIGKILL); exit(0)`.
const CODE: [u8; 20] = [
    0xbf, 0xff, 0xff, 0xff, 0xff, // mov edi, -1
    0x6a, 0x09, 0x5e, // push 9; pop rsi
    0x6a, 0x3e, 0x58, // push 62; pop rax
    0x0f, 0x05, // syscall
    0x31, 0xff, // xor edi, edi
    0x6a, 0x3c, 0x58, // push 60; pop rax
    0x0f, 0x05, // syscall
];

/// Returns the program, a static ELF file for x86-64 Linux.
pub(super) fn program() -> Vec<u8> {
    let size = HEADERS + CODE.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    let half = |file: &mut Vec<u8>, value: u16| file.extend(value.to_le_bytes());
    let word = |file: &mut Vec<u8>, value: u32| file.extend(value.to_le_bytes());
    let long = |file: &mut Vec<u8>, value: u64| file.extend(value.to_le_bytes());
    half(&mut file, 2); // an executable file
    half(&mut file, 62); // of x86-64
    word(&mut file, 1);
    long(&mut file, BASE + HEADERS); // entry point
    long(&mut file, 64); // offset of the program header
    long(&mut file, 0); // no sections
    word(&mut file, 0);
    for value in [64, 56, 1, 64, 0, 0] {
        half(&mut file, value);
    }
    word(&mut file, 1); // a segment to load
    word(&mut file, 5); // readable and executable
    for value in [0, BASE, BASE, size, size, 0x1000] {
        long(&mut file, value);
    }
    file.extend(CODE);
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_has_the_stated_size_and_starts_at_its_code() {
        let file = program();
        assert_eq!(file.len(), 140);
        assert_eq!(&file[120..], &CODE);
        assert_eq!(u64::from_le_bytes(file[24..32].try_into().unwrap()), BASE + 120);
        // The size in the program header is that of the file.
        assert_eq!(u64::from_le_bytes(file[96..104].try_into().unwrap()), 140);
    }
}
