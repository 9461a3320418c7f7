//! KVM's own counters of a vCPU, through its binary statistics file (Documentation/virt/kvm/api.rst, 4.133). Reads
//! only.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, FromRawFd},
        unix::fs::FileExt,
    },
    sync::OnceLock,
};
use vmm_sys_util::ioctl::ioctl;

/// The ioctl, in a separate module since the macro makes it public and undocumented.
mod request {
    #![allow(missing_docs)]
    vmm_sys_util::ioctl_io_nr!(KVM_GET_STATS_FD, 0xae, 0xce);
}
use request::KVM_GET_STATS_FD;

/// Descriptors beyond this are not read: KVM has fewer than a hundred.
const MAX_DESCRIPTORS: u32 = 512;
/// Names beyond this many bytes are not read; KVM_STATS_NAME_SIZE is 48.
const MAX_NAME: u32 = 256;

/// The statistics file of one vCPU.
#[derive(Debug)]
pub struct VcpuCounters {
    /// None before Linux 5.14, whose KVM has no such file.
    file: Option<File>,
    /// Found at the first reading, so that a restore does not wait for it.
    places: OnceLock<Places>,
}

/// Where each counter we read is in the file.
#[derive(Debug, Default)]
struct Places {
    exits: Option<u64>,
    insn_emulation: Option<u64>,
    irq_injections: Option<u64>,
}

/// One reading.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Exits of all kinds.
    pub exits: u64,
    /// Instructions KVM emulated.
    pub insn_emulation: u64,
    /// Interrupts injected.
    pub irq_injections: u64,
}

impl VcpuCounters {
    /// Opens the statistics of `vcpu`. Where KVM has none, all counters read as zero.
    ///
    /// # Errors
    /// When they exist and cannot be opened, as with too many open files.
    pub fn open(vcpu: &impl AsRawFd) -> io::Result<Self> {
        // SAFETY: KVM_GET_STATS_FD takes no argument and returns a new descriptor or -1.
        let fd = unsafe { ioctl(vcpu, KVM_GET_STATS_FD()) };
        if fd < 0 {
            let error = io::Error::last_os_error();
            // What KVM answers to a request of vCPUs that it does not know (kvm_arch_vcpu_ioctl).
            return match error.raw_os_error() {
                Some(libc::EINVAL | libc::ENOTTY) => Ok(Self { file: None, places: OnceLock::new() }),
                _ => Err(error),
            };
        }
        // SAFETY: the kernel just gave us this descriptor and nothing else knows it.
        let file = unsafe { File::from_raw_fd(fd) };
        Ok(Self { file: Some(file), places: OnceLock::new() })
    }

    /// The counters as they stand; possible while the vCPU runs. One that this host does not keep reads as zero, and all
    /// do where the file makes no sense.
    #[must_use]
    pub fn read(&self) -> Counters {
        let Some(file) = &self.file else { return Counters::default() };
        let places = self.places.get_or_init(|| Places::find(file).unwrap_or_default());
        let at = |place: Option<u64>| {
            let mut bytes = [0; 8];
            match place.map(|offset| file.read_exact_at(&mut bytes, offset)) {
                Some(Ok(())) => u64::from_le_bytes(bytes),
                _ => 0,
            }
        };
        Counters {
            exits: at(places.exits),
            insn_emulation: at(places.insn_emulation),
            irq_injections: at(places.irq_injections),
        }
    }
}

impl Places {
    fn find(file: &File) -> io::Result<Self> {
        let header = Header::read(file)?;
        let mut places = Self::default();
        for index in 0..header.count {
            let (name, offset) = header.descriptor(file, index)?;
            let place = Some(u64::from(header.data) + u64::from(offset));
            match name.as_slice() {
                b"exits" => places.exits = place,
                b"insn_emulation" => places.insn_emulation = place,
                b"irq_injections" => places.irq_injections = place,
                _ => {}
            }
        }
        Ok(places)
    }
}

/// `struct kvm_stats_header`.
struct Header {
    name_size: u32,
    count: u32,
    descriptors: u32,
    data: u32,
}

impl Header {
    fn read(file: &File) -> io::Result<Self> {
        let mut bytes = [0; 24];
        file.read_exact_at(&mut bytes, 0)?;
        let word = |i: usize| u32::from_le_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
        let header = Self { name_size: word(4), count: word(8), descriptors: word(16), data: word(20) };
        if header.count > MAX_DESCRIPTORS || header.name_size > MAX_NAME {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "KVM statistics header is out of range"));
        }
        Ok(header)
    }

    /// Name and data offset of descriptor `index` (`struct kvm_stats_desc`: 16 bytes, then the name).
    fn descriptor(&self, file: &File, index: u32) -> io::Result<(Vec<u8>, u32)> {
        let size = 16 + self.name_size as usize;
        let mut bytes = vec![0; size];
        file.read_exact_at(&mut bytes, u64::from(self.descriptors) + u64::from(index) * size as u64)?;
        let offset = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        let name = bytes[16..].split(|b| *b == 0).next().unwrap_or_default().to_vec();
        Ok((name, offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kvm_without_statistics_has_counters_of_zero() {
        // As KVM before Linux 5.14, this device does not know the request.
        let unknowing = File::open("/dev/null").unwrap();
        assert_eq!(VcpuCounters::open(&unknowing).unwrap().read(), Counters::default());
        // A descriptor that is not open is another failure.
        assert!(VcpuCounters::open(&i32::MAX).is_err());
    }
}
