//! What kind of machine a test wants.

use super::vitals::Bounds;

/// What kind of machine.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// vCPUs.
    pub vcpus: u8,
    /// Memory.
    pub memory_mib: u64,
    /// Bytes of console log kept.
    pub console_limit: u64,
    /// Size of its writable disk.
    pub disk_bytes: u64,
    /// What is on that: its number plus two at the beginning of each sector, in place of twos in the first MiB.
    pub disk_is_numbered: bool,
    /// Descriptors that its VMM is started with room for; as many as this process has, unless stated.
    pub descriptor_limit: Option<u32>,
    /// What its VMM may use, looked at when it ends.
    pub bounds: Bounds,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            vcpus: 1,
            memory_mib: 64,
            console_limit: 1 << 16,
            disk_bytes: 8 << 20,
            disk_is_numbered: false,
            descriptor_limit: None,
            bounds: Bounds::QUIET,
        }
    }
}
