//! Checks that a file is a guest kernel the VMM can load, before a VM is started: an x86-64 ELF executable whose
//! segments lie inside the file. The VMM checks again while it loads; here the point is a clear message.

use std::{fs::File, io, os::unix::fs::FileExt};

const HEADER_LEN: usize = 64;
const PROGRAM_HEADER_LEN: usize = 56;
/// vmlinux has five; the cap only bounds what a wrong file can make us read.
const MAX_PROGRAM_HEADERS: u16 = 64;

const ELFCLASS64: u8 = 2;
const ELFDATA2LSB: u8 = 1;
const ET_EXEC: u16 = 2;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;

/// Why a file cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Zero bytes.
    #[error("the file is empty")]
    Empty,
    /// Not an ELF file.
    #[error("not an ELF file{look}: expected an uncompressed x86-64 vmlinux")]
    NotElf {
        /// What it looks like instead.
        look: &'static str,
    },
    /// ELF for something else.
    #[error("not an x86-64 ELF executable ({what}): expected an uncompressed x86-64 vmlinux")]
    WrongKind {
        /// What differs.
        what: String,
    },
    /// Headers or segments reach beyond the end of the file.
    #[error("the file is truncated: it has {size} of {need} bytes")]
    Truncated {
        /// Size of the file in bytes.
        size: u64,
        /// Bytes its headers ask for.
        need: u64,
    },
    /// Nothing to load.
    #[error("not a kernel: it has no loadable segment")]
    NothingToLoad,
    /// Reading failed.
    #[error("cannot read the file: {0}")]
    Io(#[from] io::Error),
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// Reads the ELF headers of `file` (ELF-64 object file format, version 1.5) and no more.
///
/// # Errors
/// Every [`KernelError`].
pub fn check(file: &File) -> Result<(), KernelError> {
    let size = file.metadata()?.len();
    if size == 0 {
        return Err(KernelError::Empty);
    }
    let mut header = [0; HEADER_LEN];
    let have = read_up_to(file, &mut header, 0)?;
    if !header.starts_with(b"\x7fELF") {
        return Err(KernelError::NotElf { look: look_of(file, &header)? });
    }
    if have < HEADER_LEN {
        return Err(KernelError::Truncated { size, need: HEADER_LEN as u64 });
    }
    let wrong = |what: String| Err(KernelError::WrongKind { what });
    if header[4] != ELFCLASS64 || header[5] != ELFDATA2LSB {
        return wrong("not 64-bit little endian".into());
    }
    if u16_at(&header, 18) != EM_X86_64 {
        return wrong(format!("machine {}", u16_at(&header, 18)));
    }
    if u16_at(&header, 16) != ET_EXEC {
        return wrong(format!("ELF type {}, not an executable at fixed addresses", u16_at(&header, 16)));
    }
    let (offset, entry_len, count) = (u64_at(&header, 32), u16_at(&header, 54), u16_at(&header, 56));
    if usize::from(entry_len) != PROGRAM_HEADER_LEN || count > MAX_PROGRAM_HEADERS {
        return wrong(format!("{count} program headers of {entry_len} bytes"));
    }
    let mut loadable = false;
    for i in 0..u64::from(count) {
        let at = offset.saturating_add(i * PROGRAM_HEADER_LEN as u64);
        let need = at.saturating_add(PROGRAM_HEADER_LEN as u64);
        if need > size {
            return Err(KernelError::Truncated { size, need });
        }
        let mut segment = [0; PROGRAM_HEADER_LEN];
        file.read_exact_at(&mut segment, at)?;
        if u32_at(&segment, 0) == PT_LOAD {
            let need = u64_at(&segment, 8).saturating_add(u64_at(&segment, 32));
            if need > size {
                return Err(KernelError::Truncated { size, need });
            }
            loadable = true;
        }
    }
    if loadable { Ok(()) } else { Err(KernelError::NothingToLoad) }
}

/// Returns the release of the Linux kernel in `file` (`6.1.170`), from the text that the kernel prints when it boots; `None`
/// if there is no such text in the first 256 MiB.
///
/// # Errors
/// Reading failed.
pub fn version(file: &File) -> io::Result<Option<String>> {
    const MARK: &[u8] = b"Linux version ";
    const MAX_RELEASE: usize = 64;
    const CHUNK: usize = 256 * 1024;
    /// Larger than any kernel that the VMM loads in practice.
    const MAX_SEARCHED: u64 = 256 << 20;
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    loop {
        let have = read_up_to(file, &mut buffer, at)?;
        let found = buffer[..have].windows(MARK.len()).position(|window| window == MARK);
        if let Some(found) = found {
            let mut release = [0; MAX_RELEASE];
            let begin = at + (found + MARK.len()) as u64;
            let len = read_up_to(file, &mut release, begin)?;
            let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b".-+~_".contains(byte);
            let release: String =
                release[..len].iter().take_while(|byte| is_plain(byte)).map(|b| char::from(*b)).collect();
            return Ok(release.starts_with(|c: char| c.is_ascii_digit()).then_some(release));
        }
        if have < buffer.len() || at > MAX_SEARCHED {
            return Ok(None);
        }
        // The text may be cut by the end of the chunk.
        at += (have - MARK.len()) as u64;
    }
}

/// Reads from offset `at` until `buffer` is full or the file ends.
fn read_up_to(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut have = 0;
    while have < buffer.len() {
        match file.read_at(&mut buffer[have..], at + have as u64) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(have)
}

/// What people hand in by mistake.
fn look_of(file: &File, header: &[u8]) -> io::Result<&'static str> {
    // Documentation/arch/x86/boot.rst: "HdrS" at 0x202.
    let mut magic = [0; 4];
    if file.read_at(&mut magic, 0x202)? == 4 && &magic == b"HdrS" {
        return Ok(" but a bzImage");
    }
    Ok(match header {
        [0x1f, 0x8b, ..] => " but gzip data",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => " but zstd data",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => " but xz data",
        [b'#', b'!', ..] => " but a script",
        _ => "",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A minimal executable: header, one PT_LOAD of `segment_len` bytes right behind it.
    fn elf(segment_len: u64) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_LEN + PROGRAM_HEADER_LEN];
        bytes[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', ELFCLASS64, ELFDATA2LSB]);
        bytes[16..18].copy_from_slice(&ET_EXEC.to_le_bytes());
        bytes[18..20].copy_from_slice(&EM_X86_64.to_le_bytes());
        bytes[32..40].copy_from_slice(&64u64.to_le_bytes());
        bytes[54..56].copy_from_slice(&56u16.to_le_bytes());
        bytes[56..58].copy_from_slice(&1u16.to_le_bytes());
        bytes[64..68].copy_from_slice(&PT_LOAD.to_le_bytes());
        bytes[72..80].copy_from_slice(&120u64.to_le_bytes());
        bytes[96..104].copy_from_slice(&segment_len.to_le_bytes());
        bytes.extend(std::iter::repeat_n(0x90, 100));
        bytes
    }

    fn checked(bytes: &[u8]) -> Result<(), KernelError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        check(&file)
    }

    #[test]
    fn a_kernel_passes() {
        checked(&elf(100)).unwrap();
    }

    #[test]
    fn files_that_are_no_kernel_say_what_they_are() {
        assert!(matches!(checked(b""), Err(KernelError::Empty)));
        assert!(checked(b"hello").unwrap_err().to_string().contains("not an ELF"));
        assert!(checked(b"\x1f\x8bxx").unwrap_err().to_string().contains("gzip"));
        let mut bz_image = vec![0; 0x300];
        bz_image[0x202..0x206].copy_from_slice(b"HdrS");
        assert!(checked(&bz_image).unwrap_err().to_string().contains("bzImage"));
    }

    #[test]
    fn elf_files_of_another_kind_are_refused() {
        let mut shared_object = elf(100);
        shared_object[16] = 3;
        assert!(matches!(checked(&shared_object), Err(KernelError::WrongKind { .. })));
        let mut arm = elf(100);
        arm[18] = 183;
        assert!(matches!(checked(&arm), Err(KernelError::WrongKind { .. })));
        let mut nothing = elf(100);
        nothing[64] = 0;
        assert!(matches!(checked(&nothing), Err(KernelError::NothingToLoad)));
    }

    #[test]
    fn truncation_is_seen_anywhere() {
        let whole = elf(100);
        for len in 4..whole.len() {
            assert!(matches!(checked(&whole[..len]), Err(KernelError::Truncated { .. })), "{len}");
        }
        assert!(matches!(checked(&elf(u64::MAX)), Err(KernelError::Truncated { .. })));
    }

    #[test]
    fn the_release_is_found_wherever_it_is() {
        let release = |before: usize, text: &str| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&vec![0; before]).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            version(&file).unwrap()
        };
        for before in [0, 100, 256 * 1024 - 20, 256 * 1024 - 7, 256 * 1024, 700_000] {
            let found = release(before, "Linux version 6.1.170 (user@host) #1\n");
            assert_eq!(found.as_deref(), Some("6.1.170"), "{before}");
        }
        assert_eq!(release(0, "Linux version 6.1.9\x1b[2J").as_deref(), Some("6.1.9"));
        assert_eq!(release(0, "Linux version %s"), None);
        assert_eq!(release(300_000, "no kernel"), None);
    }
}
