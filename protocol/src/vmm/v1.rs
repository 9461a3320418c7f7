//! The messages of version 1 that name each device by a field. Kept for VMMs that run since before
//! an upgrade ([`super::ControlRequest::for_version`]), and for a server that has run since then and
//! launches the VMM of a newer bundle.

use super::{
    devices::{ChildDevice, DeviceConfig, DiskConfig, ResetDevice, VsockConfig},
    launch::{self, ConsoleConfig, MachineSource},
    limits::{FdIndex, MAX_DISKS, MAX_FDS, MAX_FORK_CHILDREN},
    requests,
};
use crate::{
    capped,
    frame::Message,
    ids::SandboxId,
    machine::{MemorySize, VcpuCount},
};
use serde::{Deserialize, Serialize};

/// As [`super::LaunchConfig`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchConfig {
    /// As in version 2.
    pub sandbox: SandboxId,
    /// As in version 2.
    pub vcpus: VcpuCount,
    /// As in version 2.
    pub memory: MemorySize,
    /// As in version 2.
    pub source: MachineSource,
    /// vda, vdb, ... in this order.
    #[serde(with = "capped::List::<MAX_DISKS>")]
    pub disks: Vec<DiskConfig>,
    /// Socket device.
    pub vsock: VsockConfig,
    /// As in version 2.
    pub console: ConsoleConfig,
    /// As in version 2.
    pub control: FdIndex,
    /// As in version 2.
    pub status: FdIndex,
    /// As in version 2.
    pub lock: FdIndex,
    /// As in version 2.
    pub start: bool,
    /// As in version 2.
    pub tie_to_launcher: bool,
}

impl Message for LaunchConfig {}

impl From<LaunchConfig> for launch::LaunchConfig {
    /// Version 1 does not say so, but its machines have an entropy device and a balloon.
    fn from(config: LaunchConfig) -> Self {
        let LaunchConfig {
            sandbox,
            vcpus,
            memory,
            source,
            disks,
            vsock,
            console,
            control,
            status,
            lock,
            start,
            tie_to_launcher,
        } = config;
        let others = [DeviceConfig::Rng, DeviceConfig::Vsock(vsock), DeviceConfig::Balloon];
        let devices = disks.into_iter().map(DeviceConfig::Block).chain(others).collect();
        Self { sandbox, vcpus, memory, source, devices, console, control, status, lock, start, tie_to_launcher }
    }
}

/// As [`super::ForkRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForkRequest {
    /// As in version 2.
    #[serde(with = "capped::List::<MAX_DISKS>")]
    pub disk_tops: Vec<FdIndex>,
    /// The copies.
    #[serde(with = "capped::List::<MAX_FORK_CHILDREN>")]
    pub children: Vec<ForkChild>,
}

/// As [`super::ForkChild`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForkChild {
    /// As in version 2.
    pub sandbox: SandboxId,
    /// As in version 2.
    pub launcher: FdIndex,
    /// One empty file per writable disk.
    #[serde(with = "capped::List::<MAX_DISKS>")]
    pub disk_tops: Vec<FdIndex>,
    /// Listening socket of the socket device.
    pub vsock: FdIndex,
    /// As in version 2.
    pub console: FdIndex,
    /// As in version 2.
    pub log: FdIndex,
    /// As in version 2.
    pub control: FdIndex,
    /// As in version 2.
    pub status: FdIndex,
    /// As in version 2.
    pub lock: FdIndex,
    /// As in version 2.
    pub tie_to_launcher: bool,
}

impl ForkRequest {
    /// Returns `None` if version 1 cannot say it.
    pub(super) fn of(request: requests::ForkRequest) -> Option<Self> {
        let children = request.children.into_iter().map(ForkChild::of).collect::<Option<_>>()?;
        Some(Self { disk_tops: request.disk_tops, children })
    }
}

impl ForkChild {
    fn of(child: requests::ForkChild) -> Option<Self> {
        let requests::ForkChild { sandbox, launcher, devices, console, log, control, status, lock, tie_to_launcher } =
            child;
        let (mut disk_tops, mut vsock) = (Vec::new(), None);
        for device in devices {
            match device {
                ChildDevice::Block { top } => disk_tops.push(top),
                ChildDevice::Vsock { listener } if vsock.is_none() => vsock = Some(listener),
                ChildDevice::Vsock { .. } => return None,
            }
        }
        let vsock = vsock?;
        Some(Self { sandbox, launcher, disk_tops, vsock, console, log, control, status, lock, tie_to_launcher })
    }
}

impl From<ForkRequest> for requests::ForkRequest {
    fn from(request: ForkRequest) -> Self {
        Self { disk_tops: request.disk_tops, children: request.children.into_iter().map(Into::into).collect() }
    }
}

impl From<ForkChild> for requests::ForkChild {
    fn from(child: ForkChild) -> Self {
        let ForkChild { sandbox, launcher, disk_tops, vsock, console, log, control, status, lock, tie_to_launcher } =
            child;
        let disks = disk_tops.into_iter().map(|top| ChildDevice::Block { top });
        let devices = disks.chain([ChildDevice::Vsock { listener: vsock }]).collect();
        Self { sandbox, launcher, devices, console, log, control, status, lock, tie_to_launcher }
    }
}

/// As [`super::ResetRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetRequest {
    /// As in version 2.
    pub state: FdIndex,
    /// Per writable disk its layers.
    #[serde(with = "capped::List::<MAX_DISKS>")]
    pub disks: Vec<DiskLayers>,
}

/// Layers of one writable disk, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskLayers(#[serde(with = "capped::List::<MAX_FDS>")] pub Vec<FdIndex>);

impl ResetRequest {
    /// Returns `None` if version 1 cannot say it.
    #[expect(clippy::unnecessary_wraps, reason = "version 1 cannot say what is yet to come")]
    pub(super) fn of(request: requests::ResetRequest) -> Option<Self> {
        let disks = request.devices.into_iter().map(|ResetDevice::Block { layers }| DiskLayers(layers)).collect();
        Some(Self { state: request.state, disks })
    }
}

impl From<ResetRequest> for requests::ResetRequest {
    fn from(request: ResetRequest) -> Self {
        let devices = request.disks.into_iter().map(|DiskLayers(layers)| ResetDevice::Block { layers }).collect();
        Self { state: request.state, devices }
    }
}
