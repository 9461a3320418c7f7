//! The network card as the list of devices has it: its options, and the host's side that sockets are attached to.

use super::{NetDevice, NetworkCard, device::TYPE};
use crate::{
    channel::descriptors::{DescriptorError, ReceivedFds},
    devices::{
        kind::{BuildError, BuiltDevice, DeviceKind, HostSide, SystemCalls, UnbuiltDevice},
        virtio::device::DeviceType,
    },
    memory::released::ReleasedPages,
};
use sandboxvm_protocol::vmm::{DeviceConfig, NetConfig};
use std::{os::fd::OwnedFd, sync::Arc};

/// The network card.
#[derive(Debug)]
pub struct NetKind;

impl DeviceKind for NetKind {
    fn device_type(&self) -> DeviceType {
        TYPE
    }

    /// None opens or connects a socket, or names an address.
    fn system_calls(&self) -> SystemCalls {
        SystemCalls {
            event_loop: &[
                libc::SYS_recvfrom,
                libc::SYS_recvmsg,
                libc::SYS_sendmsg,
                libc::SYS_getsockopt,
                libc::SYS_eventfd2,
                libc::SYS_epoll_create1,
                libc::SYS_epoll_ctl,
                libc::SYS_epoll_wait,
                libc::SYS_epoll_pwait,
            ],
            // A driver that begins asks for a turn of the event loop, by a write.
            vcpu: &[],
        }
    }

    fn take(
        &self,
        configs: &[DeviceConfig],
        _fds: &mut ReceivedFds,
    ) -> Result<Vec<Box<dyn UnbuiltDevice>>, DescriptorError> {
        let mut devices: Vec<Box<dyn UnbuiltDevice>> = Vec::new();
        for config in configs {
            if let DeviceConfig::Net(config) = config {
                devices.push(Box::new(UnbuiltNet(*config)));
            }
        }
        Ok(devices)
    }
}

/// A network card that is not built yet.
#[derive(Debug)]
struct UnbuiltNet(NetConfig);

impl UnbuiltDevice for UnbuiltNet {
    fn build(self: Box<Self>, _released: &Arc<ReleasedPages>) -> Result<BuiltDevice, BuildError> {
        let Self(config) = *self;
        let (device, card) =
            NetDevice::new(config).map_err(|source| BuildError::Host { what: "the network card", source })?;
        Ok(BuiltDevice { device: Box::new(device), host: Box::new(NetHost { config, card }) })
    }
}

/// The host's side of a network card.
#[derive(Debug)]
struct NetHost {
    config: NetConfig,
    card: NetworkCard,
}

impl HostSide for NetHost {
    fn network_card(&self) -> Option<&NetworkCard> {
        Some(&self.card)
    }

    /// The copy has no link until a socket is attached to it: the frames of two machines never share one.
    fn copy(&self, _file: Option<OwnedFd>) -> Result<Box<dyn UnbuiltDevice>, BuildError> {
        Ok(Box::new(UnbuiltNet(self.config)))
    }
}
