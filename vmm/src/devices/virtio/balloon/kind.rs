//! The balloon as the list of devices has it. Its only option is where it notes the pages that the
//! guest gives back, which a machine has with or without it.

use super::{BalloonDevice, TYPE};
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

/// The balloon.
#[derive(Debug)]
pub struct BalloonKind;

impl DeviceKind for BalloonKind {
    fn device_type(&self) -> DeviceType {
        TYPE
    }

    /// State files of version 1 are of machines without it.
    fn is_newer_than_snapshots(&self) -> bool {
        true
    }

    fn system_calls(&self) -> SystemCalls {
        resume::SYSTEM_CALLS
    }

    fn take(
        &self,
        configs: &[DeviceConfig],
        _fds: &mut ReceivedFds,
    ) -> Result<Vec<Box<dyn UnbuiltDevice>>, DescriptorError> {
        let configs = configs.iter().filter(|config| matches!(config, DeviceConfig::Balloon));
        Ok(configs.map(|_| Box::new(Balloon) as Box<dyn UnbuiltDevice>).collect())
    }
}

/// The device before it is built, and the host's side of it.
#[derive(Debug)]
struct Balloon;

impl UnbuiltDevice for Balloon {
    fn build(self: Box<Self>, released: &Arc<ReleasedPages>) -> Result<BuiltDevice, BuildError> {
        let device = BalloonDevice::new(Arc::clone(released))
            .map_err(|source| BuildError::Host { what: "the balloon device", source })?;
        Ok(BuiltDevice { device: Box::new(device), host: self })
    }
}

impl HostSide for Balloon {
    fn copy(&self, _file: Option<OwnedFd>) -> Result<Box<dyn UnbuiltDevice>, BuildError> {
        Ok(Box::new(Self))
    }
}
