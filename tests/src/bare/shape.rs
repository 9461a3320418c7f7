//! The configuration of a machine that a test needs.

use super::vitals::Bounds;

/// The configuration of a machine.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Maximum size of the console log in bytes.
    pub console_limit: u64,
    /// Size of the writable disk in bytes.
    pub disk_bytes: u64,
    /// Whether each sector of that disk begins with its number plus two. Otherwise the first MiB
    /// consists of twos.
    pub disk_is_numbered: bool,
    /// Limit of open descriptors of the VMM. Defaults to that of the test process.
    pub descriptor_limit: Option<u32>,
    /// Maximum use of resources by the VMM, checked when it ends.
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
