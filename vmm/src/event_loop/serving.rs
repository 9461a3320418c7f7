//! Serving devices between two turns of the loop, attaching the network card, and letting a paused machine run again.
//!
//! Devices are not served while the machine is paused: a device that ran on would change memory and disk of a machine
//! that is to stand still, and a guest can lay out a queue that never ends.

use super::{
    refusal::RequestError,
    source::{AsFdOfEventFd, Source},
    state::{EventLoop, EventLoopError},
};
use crate::{
    channel::descriptors::ReceivedFds,
    devices::{board::lock, virtio::net::NetworkCard},
};
use rustix::{
    event::epoll::{self, EventFlags},
    io::Errno,
};
use sandboxvm_protocol::vmm::FdIndex;

impl EventLoop {
    /// Serves the device that `source` belongs to. While the machine is paused it is left as it is, and not watched until
    /// [`EventLoop::resume`].
    pub(super) fn serve_device(&mut self, source: Source) -> Result<(), EventLoopError> {
        if self.setup.machine.shared().gate.is_paused() {
            self.watch(source, EventFlags::empty())?;
            self.unwatched.push(source);
            return Ok(());
        }
        match source {
            Source::Queue { device, queue } => self.notify_queue(device, queue),
            Source::Device(device) => {
                if let Some(transport) = self.setup.machine.board().virtio().get(usize::from(device)) {
                    lock(transport).host_ready();
                }
            }
            Source::News | Source::Listener | Source::Connection(_) | Source::Writer => {}
        }
        Ok(())
    }

    /// Returns the host's side of the network card.
    pub(super) fn network_card(&self) -> Result<&NetworkCard, RequestError> {
        self.setup.devices.network_card().ok_or(RequestError::NoCard)
    }

    /// Connects the network card to a socket that came with a request. That changes nothing in the guest's memory, so it
    /// is done while the machine is paused, too, and a machine that was not started yet begins with a link.
    pub(super) fn attach_network(&self, frames: FdIndex, mut fds: ReceivedFds) -> Result<(), RequestError> {
        let card = self.network_card()?;
        Ok(card.attach(fds.take(frames, "the frames of the network card")?)?)
    }

    fn notify_queue(&self, device: u16, queue: u16) {
        let (device, queue) = (usize::from(device), usize::from(queue));
        let event = self.setup.machine.queue_events().get(device).and_then(|queues| queues.get(queue));
        if let (Some(event), Some(transport)) = (event, self.setup.machine.board().virtio().get(device)) {
            // Nothing pending means that an earlier turn served it.
            let _ = event.read();
            lock(transport).queue_notified(queue);
        }
    }

    /// Lets the machine run, and serves what its devices left while it was paused: nothing of that was taken off their
    /// descriptors, so the next turn finds it.
    pub(super) fn resume(&mut self) -> Result<(), EventLoopError> {
        self.setup.machine.resume();
        while let Some(source) = self.unwatched.pop() {
            self.watch(source, EventFlags::IN)?;
        }
        Ok(())
    }

    fn watch(&self, source: Source, flags: EventFlags) -> Result<(), Errno> {
        let machine = &self.setup.machine;
        match source {
            Source::Queue { device, queue } => {
                let queues = machine.queue_events().get(usize::from(device));
                let event = queues.and_then(|queues| queues.get(usize::from(queue))).ok_or(Errno::NOENT)?;
                epoll::modify(&self.epoll, event.as_fd_of_eventfd(), source.data(), flags)
            }
            Source::Device(device) => {
                let transport = lock(machine.board().virtio().get(usize::from(device)).ok_or(Errno::NOENT)?);
                epoll::modify(&self.epoll, transport.host_fd().ok_or(Errno::NOENT)?, source.data(), flags)
            }
            Source::News | Source::Listener | Source::Connection(_) | Source::Writer => Err(Errno::INVAL),
        }
    }
}
