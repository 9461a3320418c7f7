//! The shape of a virtual machine on both wires: number of vCPUs, memory size, rates, host mode.

use serde::{Deserialize, Serialize};
use std::fmt;

/// One mebibyte in bytes.
pub const MIB: u64 = 1 << 20;

/// Why a number is not a valid part of a machine's shape.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MachineError {
    /// vCPU count out of range.
    #[error("invalid number of vCPUs {0}: must be between 1 and {max}", max = VcpuCount::MAX)]
    Vcpus(u32),
    /// Memory size out of range.
    #[error("invalid memory size of {0} bytes: must be whole MiB between 64 MiB and 64 GiB")]
    Memory(u64),
    /// Output rate out of range.
    #[error("invalid output rate of {0} bytes per second: must be between 256 KiB and 64 GiB")]
    OutputRate(u64),
    /// Disk rate out of range.
    #[error("invalid disk rate of {0} bytes per second: must be between 256 KiB and 64 GiB")]
    DiskRate(u64),
    /// Disk operations out of range.
    #[error("invalid number of disk operations per second {0}: must be between 10 and 10000000")]
    DiskOperations(u64),
    /// Slot number out of range.
    #[error("invalid slot {0}: must be between 0 and {max}", max = SlotNumber::COUNT - 1)]
    Slot(u8),
    /// Disk number out of range.
    #[error("invalid disk {0}: must be between 0 and {max}", max = DiskNumber::COUNT - 1)]
    Disk(u8),
}

/// Number of vCPUs, 1 to 8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct VcpuCount(u8);

impl VcpuCount {
    /// Maximum number of vCPUs: NR_CPUS of the guest kernel.
    pub const MAX: u8 = 8;
    /// One vCPU.
    pub const ONE: Self = Self(1);

    /// Returns the number.
    #[must_use]
    pub fn get(self) -> u8 {
        self.0
    }
}

impl TryFrom<u32> for VcpuCount {
    type Error = MachineError;

    fn try_from(count: u32) -> Result<Self, MachineError> {
        match u8::try_from(count) {
            Ok(n) if (1..=Self::MAX).contains(&n) => Ok(Self(n)),
            _ => Err(MachineError::Vcpus(count)),
        }
    }
}

impl From<VcpuCount> for u32 {
    fn from(count: VcpuCount) -> Self {
        u32::from(count.0)
    }
}

impl fmt::Display for VcpuCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number of a slot, 0 to 3: a read-only disk that a workspace is mounted from. The guest has slot 0 as
/// `/dev/vdd`, the next as `/dev/vde`, and so on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct SlotNumber(u8);

impl SlotNumber {
    /// Maximum number of slots of one machine.
    pub const COUNT: u8 = 4;
    /// The first slot.
    pub const FIRST: Self = Self(0);

    /// Returns the number.
    #[must_use]
    pub fn get(self) -> u8 {
        self.0
    }

    /// Returns all slots in ascending order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT).map(Self)
    }
}

impl TryFrom<u8> for SlotNumber {
    type Error = MachineError;

    fn try_from(number: u8) -> Result<Self, MachineError> {
        if number < Self::COUNT { Ok(Self(number)) } else { Err(MachineError::Slot(number)) }
    }
}

impl From<SlotNumber> for u8 {
    fn from(slot: SlotNumber) -> Self {
        slot.0
    }
}

impl fmt::Display for SlotNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Position of a disk of a machine, 0 to 15. The guest has disk 0 as `/dev/vda`, the next as `/dev/vdb`, and so on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct DiskNumber(u8);

impl DiskNumber {
    /// Maximum number of disks of one machine.
    pub const COUNT: u8 = 16;

    /// Returns the last letter of its device.
    #[must_use]
    pub fn letter(self) -> char {
        char::from(b'a' + self.0)
    }
}

impl TryFrom<u8> for DiskNumber {
    type Error = MachineError;

    fn try_from(number: u8) -> Result<Self, MachineError> {
        if number < Self::COUNT { Ok(Self(number)) } else { Err(MachineError::Disk(number)) }
    }
}

impl From<DiskNumber> for u8 {
    fn from(disk: DiskNumber) -> Self {
        disk.0
    }
}

/// Guest memory in bytes: whole MiB, 64 MiB to 64 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct MemorySize(u64);

impl MemorySize {
    /// Minimum size in bytes.
    pub const MIN: u64 = 64 * MIB;
    /// Maximum size in bytes.
    pub const MAX: u64 = 64 * 1024 * MIB;

    /// Returns the size in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// Returns the size in MiB.
    #[must_use]
    pub fn mib(self) -> u64 {
        self.0 / MIB
    }
}

impl TryFrom<u64> for MemorySize {
    type Error = MachineError;

    fn try_from(bytes: u64) -> Result<Self, MachineError> {
        if (Self::MIN..=Self::MAX).contains(&bytes) && bytes.is_multiple_of(MIB) {
            Ok(Self(bytes))
        } else {
            Err(MachineError::Memory(bytes))
        }
    }
}

impl From<MemorySize> for u64 {
    fn from(size: MemorySize) -> Self {
        size.0
    }
}

/// Maximum rate at which a guest may send, in bytes per second: 256 KiB to 64 GiB. All its connections share it. With less,
/// an answer would wait behind other output until the client times out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct OutputRate(u64);

impl OutputRate {
    /// Minimum in bytes per second.
    pub const MIN: u64 = MIB / 4;
    /// Maximum in bytes per second.
    pub const MAX: u64 = 64 * 1024 * MIB;

    /// Returns the rate in bytes per second.
    #[must_use]
    pub fn bytes_per_second(self) -> u64 {
        self.0
    }
}

impl TryFrom<u64> for OutputRate {
    type Error = MachineError;

    fn try_from(bytes: u64) -> Result<Self, MachineError> {
        if (Self::MIN..=Self::MAX).contains(&bytes) { Ok(Self(bytes)) } else { Err(MachineError::OutputRate(bytes)) }
    }
}

impl From<OutputRate> for u64 {
    fn from(rate: OutputRate) -> Self {
        rate.0
    }
}

/// Maximum rate at which a guest's disks are served together, in bytes per second: 256 KiB to 64 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct DiskRate(u64);

impl DiskRate {
    /// Minimum in bytes per second. With less, one request of a guest would take longer than its
    /// kernel waits.
    pub const MIN: u64 = MIB / 4;
    /// Maximum in bytes per second.
    pub const MAX: u64 = 64 * 1024 * MIB;

    /// Returns the rate in bytes per second.
    #[must_use]
    pub fn bytes_per_second(self) -> u64 {
        self.0
    }
}

impl TryFrom<u64> for DiskRate {
    type Error = MachineError;

    fn try_from(bytes: u64) -> Result<Self, MachineError> {
        if (Self::MIN..=Self::MAX).contains(&bytes) { Ok(Self(bytes)) } else { Err(MachineError::DiskRate(bytes)) }
    }
}

impl From<DiskRate> for u64 {
    fn from(rate: DiskRate) -> Self {
        rate.0
    }
}

/// Maximum number of operations per second that a guest's disks serve together: reads, writes, flushes and ranges to
/// discard or clear. 10 to 10 million.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct DiskOperations(u64);

impl DiskOperations {
    /// Minimum per second.
    pub const MIN: u64 = 10;
    /// Maximum per second.
    pub const MAX: u64 = 10_000_000;

    /// Returns the number of operations per second.
    #[must_use]
    pub fn per_second(self) -> u64 {
        self.0
    }
}

impl TryFrom<u64> for DiskOperations {
    type Error = MachineError;

    fn try_from(count: u64) -> Result<Self, MachineError> {
        if (Self::MIN..=Self::MAX).contains(&count) {
            Ok(Self(count))
        } else {
            Err(MachineError::DiskOperations(count))
        }
    }
}

impl From<DiskOperations> for u64 {
    fn from(operations: DiskOperations) -> Self {
        operations.0
    }
}

/// Maximum rates of a guest's disks together. Both apply at the same time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskLimits {
    /// Maximum rate in bytes, if limited.
    pub rate: Option<DiskRate>,
    /// Maximum number of operations, if limited.
    pub operations: Option<DiskOperations>,
}

impl DiskLimits {
    /// Returns true if neither is limited.
    #[must_use]
    pub fn is_unlimited(self) -> bool {
        self == Self::default()
    }
}

/// What executes ring 0 of the guest on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostMode {
    /// Intel VMX: all guest code runs natively.
    Vmx,
    /// AMD SVM: all guest code runs natively.
    Svm,
    /// `kvm_pvm` without its paravirtual ABI: guest ring 3 native, ring 0 interpreted.
    Pvm,
}

impl fmt::Display for HostMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vmx => "vmx",
            Self::Svm => "svm",
            Self::Pvm => "pvm",
        })
    }
}
