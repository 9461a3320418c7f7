//! The entropy device as the list of devices has it: without files, options or limits.

use super::{RngDevice, TYPE};
use crate::{
    channel::descriptors::{DescriptorError, ReceivedFds},
    devices::{
        kind::{BuildError, BuiltDevice, DeviceKind, HostSide, SystemCalls, UnbuiltDevice},
        virtio::{device::DeviceType, resume},
    },
    memory::released::ReleasedPages,
};
use sandboxvm_protocol::vmm::DeviceConfig;
use std::{os::fd::OwnedFd, sync::Arc};

/// The entropy device.
#[derive(Debug)]
pub struct RngKind;

impl DeviceKind for RngKind {
    fn device_type(&self) -> DeviceType {
        TYPE
    }

    fn system_calls(&self) -> SystemCalls {
        resume::SYSTEM_CALLS
    }

    fn take(
        &self,
        configs: &[DeviceConfig],
        _fds: &mut ReceivedFds,
    ) -> Result<Vec<Box<dyn UnbuiltDevice>>, DescriptorError> {
        let configs = configs.iter().filter(|config| matches!(config, DeviceConfig::Rng));
        Ok(configs.map(|_| Box::new(Rng) as Box<dyn UnbuiltDevice>).collect())
    }
}

/// The device before it is built, and the host's side of it.
#[derive(Debug)]
struct Rng;

impl UnbuiltDevice for Rng {
    fn build(self: Box<Self>, _released: &Arc<ReleasedPages>) -> Result<BuiltDevice, BuildError> {
        let device = RngDevice::new().map_err(|source| BuildError::Host { what: "the entropy device", source })?;
        Ok(BuiltDevice { device: Box::new(device), host: self })
    }
}

impl HostSide for Rng {
    fn copy(&self, _file: Option<OwnedFd>) -> Result<Box<dyn UnbuiltDevice>, BuildError> {
        Ok(Box::new(Self))
    }
}
