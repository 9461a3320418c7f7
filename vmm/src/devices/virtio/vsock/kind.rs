//! The socket device as the list of devices has it: its listening socket, its CID, and the limit on
//! what the guest sends.

use super::{VsockDevice, VsockOptions, device::TYPE};
use crate::{
    channel::descriptors::{DescriptorError, ReceivedFds},
    devices::{
        kind::{BuildError, BuiltDevice, DeviceKind, HostSide, Limit, SystemCalls, UnbuiltDevice},
        virtio::device::DeviceType,
    },
    memory::released::ReleasedPages,
};
use sandboxvm_protocol::vmm::{ChildDevice, DeviceConfig, FdIndex};
use std::{
    io,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::net::UnixListener,
    },
    sync::Arc,
};

/// The socket device.
#[derive(Debug)]
pub struct VsockKind;

impl DeviceKind for VsockKind {
    fn device_type(&self) -> DeviceType {
        TYPE
    }

    /// A guest that resets the device ends its connections from a vCPU thread.
    fn system_calls(&self) -> SystemCalls {
        SystemCalls {
            event_loop: &[
                libc::SYS_accept4,
                libc::SYS_accept,
                libc::SYS_recvfrom,
                libc::SYS_recvmsg,
                libc::SYS_sendto,
                libc::SYS_sendmsg,
                libc::SYS_shutdown,
                libc::SYS_getsockopt,
                libc::SYS_eventfd2,
                libc::SYS_timerfd_create,
                libc::SYS_timerfd_settime,
                libc::SYS_epoll_create1,
                libc::SYS_epoll_ctl,
                libc::SYS_epoll_wait,
                libc::SYS_epoll_pwait,
            ],
            vcpu: &[
                libc::SYS_epoll_ctl,
                libc::SYS_epoll_wait,
                libc::SYS_epoll_pwait,
                libc::SYS_timerfd_settime,
                libc::SYS_recvfrom,
                libc::SYS_sendto,
                libc::SYS_sendmsg,
                libc::SYS_shutdown,
            ],
        }
    }

    fn take(
        &self,
        configs: &[DeviceConfig],
        fds: &mut ReceivedFds,
    ) -> Result<Vec<Box<dyn UnbuiltDevice>>, DescriptorError> {
        let mut devices: Vec<Box<dyn UnbuiltDevice>> = Vec::new();
        for config in configs {
            if let DeviceConfig::Vsock(config) = config {
                let listener = UnixListener::from(fds.take(config.listener, "the vsock listener")?);
                devices.push(Box::new(UnbuiltVsock { options: VsockOptions::unlimited(config.cid), listener }));
            }
        }
        Ok(devices)
    }
}

/// A socket device that is not built yet.
#[derive(Debug)]
struct UnbuiltVsock {
    options: VsockOptions,
    listener: UnixListener,
}

impl UnbuiltDevice for UnbuiltVsock {
    fn descriptors(&self) -> Vec<RawFd> {
        vec![self.listener.as_raw_fd()]
    }

    fn build(self: Box<Self>, _released: &Arc<ReleasedPages>) -> Result<BuiltDevice, BuildError> {
        let Self { options, listener } = *self;
        let device = VsockDevice::new(options.clone(), listener)
            .map_err(|source| BuildError::Host { what: "the vsock device", source })?;
        Ok(BuiltDevice { device: Box::new(device), host: Box::new(VsockHost(options)) })
    }
}

/// The host's side of a socket device.
#[derive(Debug)]
struct VsockHost(VsockOptions);

impl HostSide for VsockHost {
    fn limit(&self, limit: Limit) {
        if let Limit::Output(rate) = limit {
            self.0.output_limit.set(rate);
        }
    }

    fn needs_file_in_copy(&self) -> bool {
        true
    }

    fn file_in_copy(&self, given: &ChildDevice) -> Option<FdIndex> {
        match given {
            ChildDevice::Vsock { listener } => Some(*listener),
            ChildDevice::Block { .. } => None,
        }
    }

    fn copy(&self, file: Option<OwnedFd>) -> Result<Box<dyn UnbuiltDevice>, BuildError> {
        let missing = || BuildError::Host { what: "the vsock device", source: io::ErrorKind::NotFound.into() };
        let listener = UnixListener::from(file.ok_or_else(missing)?);
        Ok(Box::new(UnbuiltVsock { options: self.0.clone(), listener }))
    }
}
