//! The requests that are answered later: a process forked off the VMM writes, while the machine and the event loop
//! keep running. One at a time.

use super::{
    refusal::RequestError,
    source::Source,
    state::{EventLoop, EventLoopError, nanoseconds_since},
    work::{BeingTaken, Work},
};
use crate::{
    channel::descriptors::ReceivedFds,
    snapshot::{
        candidates::{Known, candidates},
        taking::Writing,
    },
};
use rustix::event::epoll::{self, EventFlags};
use sandboxvm_protocol::vmm::{ControlReply, MergeLayersRequest, SnapshotRequest};
use std::{fs::File, os::fd::AsFd, sync::Arc, time::Instant};

impl EventLoop {
    /// Begins a snapshot; the answer is sent by [`EventLoop::advance_writing`].
    pub(super) fn snapshot(
        &mut self,
        id: u32,
        request: &SnapshotRequest,
        mut fds: ReceivedFds,
    ) -> Result<(), RequestError> {
        if self.writing.is_some() {
            return Err(RequestError::Busy);
        }
        let mut take = |index, what| fds.take(index, what).map(File::from);
        let state_file = take(request.state, "the state file")?;
        let memory_file = Arc::new(take(request.memory, "the memory file")?);
        let pagemap = take(request.pagemap, "pagemap")?;
        let disk_tops = fds.take_files(&request.disk_tops, "a disk layer")?;

        let setup = &self.setup;
        let context = setup.context();
        // Whatever fails from here on, this does not tell any more what was written since the last snapshot.
        let mut tracking = self.tracking.take();
        let was_running = setup.machine.hold();
        let stopped = Instant::now();
        let released = context.released.take();
        let taking = (|| {
            let state = setup.machine.save()?;
            let known = Known {
                memory: &context.memory,
                pagemap: &pagemap,
                origin: setup.origin.as_ref(),
                baseline: &setup.baseline,
                released: &released,
            };
            let candidates = candidates(&known, &mut tracking).map_err(RequestError::Candidates)?;
            setup.devices.disks().push_tops(disk_tops)?;
            let writing = Writing {
                memory: &context.memory,
                memory_size: context.memory_size,
                candidates,
                baseline: &setup.baseline,
                state,
                disks: setup.devices.disks(),
                state_file,
                memory_file,
                full: request.full,
            };
            Ok(writing.start(|| nanoseconds_since(stopped))?)
        })();
        if was_running {
            setup.machine.resume();
        }
        let kept = released.clone();
        taking
            .and_then(|taking| {
                self.await_writer(Work::Snapshot(Box::new(BeingTaken { taking, tracking, released })), id)
            })
            .inspect_err(|_| self.setup.context().released.put_back(kept))
    }

    /// Begins to merge disk layers; the answer is sent by [`EventLoop::advance_writing`]. The machine does not stop.
    pub(super) fn merge_layers(
        &mut self,
        id: u32,
        request: &MergeLayersRequest,
        mut fds: ReceivedFds,
    ) -> Result<(), RequestError> {
        if self.writing.is_some() {
            return Err(RequestError::Busy);
        }
        self.merged = None;
        let files = fds.take_files(&request.files, "a disk layer")?;
        let merging = self.setup.devices.disks().merge(files, &self.setup.context().memory)?;
        self.await_writer(Work::Merge(merging), id)
    }

    /// Forgets the merge that a connection asked for, since that connection is gone: other requests need not wait for it. The
    /// writer continues, into a file that has no name.
    pub(super) fn give_up_merge(&mut self, id: u32) {
        self.writing.take_if(|(work, by)| *by == id && matches!(work, Work::Merge(_)));
    }

    fn await_writer(&mut self, work: Work, id: u32) -> Result<(), RequestError> {
        epoll::add(self.epoll.as_fd(), work.fd(), Source::Writer.data(), EventFlags::IN)
            .map_err(EventLoopError::from)?;
        self.writing = Some((work, id));
        Ok(())
    }

    /// Takes what the writer has said, and answers when it is done.
    pub(super) fn advance_writing(&mut self) {
        let Some((work, id)) = &mut self.writing else { return };
        let id = *id;
        let reply = match work {
            Work::Snapshot(snapshot) => match snapshot.taking.advance(&self.setup.baseline) {
                None => return,
                Some(Ok(taken)) => {
                    self.setup.baseline = taken.baseline;
                    self.tracking = snapshot.tracking.take();
                    ControlReply::Snapshot(taken.report)
                }
                Some(Err(failure)) => {
                    self.setup.context().released.put_back(std::mem::take(&mut snapshot.released));
                    RequestError::Snapshot(failure).into()
                }
            },
            Work::Merge(merging) => match merging.advance() {
                None => return,
                Some(Ok(merged)) => {
                    self.merged = Some((merged, id));
                    ControlReply::Done
                }
                Some(Err(failure)) => RequestError::Merge(failure).into(),
            },
        };
        self.writing = None;
        if self.connection(id).is_some() {
            self.reply(id, reply);
        } else {
            self.hang_up(id);
        }
    }

    /// Puts the disks onto the merged layers. No request of the guest is in progress between two turns of the loop.
    pub(super) fn use_merged(&mut self, id: u32) -> Result<(), RequestError> {
        let merged = self.merged.take_if(|(_, by)| *by == id).ok_or(RequestError::NothingMerged)?;
        Ok(self.setup.devices.disks().use_merged(merged.0)?)
    }
}
