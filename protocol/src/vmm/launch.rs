//! The launch frame: everything that a VMM receives about its machine.

use super::{
    devices::{DeviceConfig, DiskConfig},
    limits::{
        FdIndex, MAX_CMDLINE_EXTRA, MAX_DEVICES, MAX_MEMORY_FILES, SINCE_DEVICES, SINCE_NETWORK, SINCE_SLOTS,
        SINCE_VOLUMES,
    },
};
use crate::{
    capped,
    frame::Message,
    ids::SandboxId,
    machine::{MemorySize, VcpuCount},
};
use serde::{Deserialize, Serialize};

/// Everything a VMM needs to know about its machine. All files are open already; the VMM opens none but `/dev/kvm`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchConfig {
    /// For logs and the process title.
    pub sandbox: SandboxId,
    /// vCPUs.
    pub vcpus: VcpuCount,
    /// Guest memory.
    pub memory: MemorySize,
    /// How the machine comes to life.
    pub source: MachineSource,
    /// Its virtio devices. Several of one kind are in the guest in this order (disks: vda, vdb, ...); the VMM decides
    /// the order of the kinds.
    #[serde(with = "capped::List::<MAX_DEVICES>")]
    pub devices: Vec<DeviceConfig>,
    /// Where the serial console goes.
    pub console: ConsoleConfig,
    /// Listening Unix socket for [`ControlRequest`]s.
    pub control: FdIndex,
    /// Status file; the VMM replaces its content with a JSON [`VmStatus`].
    pub status: FdIndex,
    /// Open file description that holds the sandbox's flock; kept open for the VMM's life.
    pub lock: FdIndex,
    /// Run immediately, or wait for [`ControlRequest::Start`].
    pub start: bool,
    /// End the machine when the launch channel closes.
    pub tie_to_launcher: bool,
}

/// How a machine comes to life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MachineSource {
    /// A kernel boots.
    Boot {
        /// An ELF vmlinux.
        kernel: FdIndex,
        /// Added to the command line the VMM builds; printable ASCII, at most [`MAX_CMDLINE_EXTRA`] bytes.
        #[serde(with = "capped::Line::<MAX_CMDLINE_EXTRA>")]
        cmdline_extra: String,
    },
    /// The machine is restored from a snapshot. vCPUs, memory size and devices are those that the snapshot was made
    /// with. A device of which older builds had none is left out where the snapshot does not have it.
    Snapshot {
        /// Its state file.
        state: FdIndex,
        /// Its memory files, in the order the state file numbers them; mapped, never read as a whole.
        #[serde(with = "capped::List::<MAX_MEMORY_FILES>")]
        memory: Vec<FdIndex>,
    },
}

impl Message for LaunchConfig {
    fn since(&self) -> u8 {
        let of_device = |device: &DeviceConfig| match device {
            DeviceConfig::Block(DiskConfig::Volume { .. }) => SINCE_VOLUMES,
            DeviceConfig::Block(DiskConfig::Slot { .. }) => SINCE_SLOTS,
            DeviceConfig::Net(_) => SINCE_NETWORK,
            _ => SINCE_DEVICES,
        };
        self.devices.iter().map(of_device).max().unwrap_or(SINCE_DEVICES)
    }
}

/// The serial console's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleConfig {
    /// Log file.
    pub log: FdIndex,
    /// Bytes kept: the file never grows beyond this; the oldest half is dropped when it would.
    pub limit: u64,
}
