//! Forged state files: their checksums are right, and their content is not what any VMM saved. Knows the container of
//! `vmm/src/snapshot/format.rs`, and how KVM's structures lie in it.

use super::Saved;
use std::os::unix::fs::FileExt;

/// The container's bytes before the body.
const HEADER: usize = 24;
/// Size of a `kvm_cpuid_entry2`, and where EAX is in it.
const CPUID_ENTRY: usize = 40;
const EAX: usize = 12;

impl Saved {
    /// Makes the CPUID leaf `function` of its vCPUs have these bits in a register: 0 for EAX, 3 for EDX.
    ///
    /// # Panics
    /// When the state has no such leaf.
    pub fn add_to_cpuid(&self, function: u32, register: usize, bits: u32) {
        let length = self.state.metadata().expect("it is open").len();
        let mut file = vec![0; usize::try_from(length).expect("a state file is short")];
        self.state.read_exact_at(&mut file, 0).expect("it can be read");
        let (header, body) = file.split_at_mut(HEADER);
        let is_entry = |entry: &[u8]| {
            let begins = entry[..4] == function.to_le_bytes() && entry[4..EAX].iter().all(|byte| *byte == 0);
            begins && entry[EAX..28] != [0; 16] && entry[28..].iter().all(|byte| *byte == 0)
        };
        let at: Vec<usize> =
            (0..=body.len() - CPUID_ENTRY).filter(|at| is_entry(&body[*at..at + CPUID_ENTRY])).collect();
        assert!(!at.is_empty(), "leaf {function:#x} is not in the state");
        for at in at {
            let value = &mut body[at + EAX + 4 * register..][..4];
            let old = u32::from_le_bytes([value[0], value[1], value[2], value[3]]);
            value.copy_from_slice(&(old | bits).to_le_bytes());
        }
        header[16..20].copy_from_slice(&crc32(body).to_le_bytes());
        let sum = crc32(&header[..20]);
        header[20..].copy_from_slice(&sum.to_le_bytes());
        self.state.write_all_at(&file, 0).expect("it can be written");
    }
}

/// CRC-32 (IEEE).
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg()))
    })
}
