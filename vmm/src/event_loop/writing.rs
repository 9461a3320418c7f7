//! The requests that are answered later: a process forked off the VMM writes, while the machine and the event loop
//! keep running. One at a time.

use super::{
    source::Source,
    state::{BEING_WRITTEN, EventLoop, failed, nanoseconds_since},
    work::{BeingTaken, Work},
};
use crate::{
    descriptors::ReceivedFds,
    disks::take_files,
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
    pub(super) fn snapshot(&mut self, id: u32, request: &SnapshotRequest, mut fds: ReceivedFds) -> Result<(), String> {
        if self.writing.is_some() {
            return Err(BEING_WRITTEN.into());
        }
        let mut take = |index, what| fds.take(index, what).map(File::from).map_err(|error| error.to_string());
        let state_file = take(request.state, "the state file")?;
        let memory_file = Arc::new(take(request.memory, "the memory file")?);
        let pagemap = take(request.pagemap, "pagemap")?;
        let disk_tops = take_files(&request.disk_tops, &mut fds).map_err(|error| error.to_string())?;

        let setup = &self.setup;
        // Whatever fails from here on, this does not tell any more what was written since the last snapshot.
        let mut tracking = self.tracking.take();
        let was_running = setup.machine.hold();
        let stopped = Instant::now();
        let released = setup.released.take();
        let taking = (|| {
            let state = setup.machine.save().map_err(|error| error.to_string())?;
            let known = Known {
                memory: setup.machine.memory(),
                pagemap: &pagemap,
                origin: setup.origin.as_ref(),
                baseline: &setup.baseline,
                released: &released,
            };
            let candidates = candidates(&known, &mut tracking)
                .map_err(|error| format!("cannot find the pages the guest wrote: {error}"))?;
            setup.disks.push_tops(disk_tops).map_err(|error| error.to_string())?;
            let writing = Writing {
                memory: setup.machine.memory(),
                memory_size: setup.machine.memory_size(),
                candidates,
                baseline: &setup.baseline,
                state,
                disks: &setup.disks,
                state_file,
                memory_file,
                full: request.full,
            };
            writing.start(|| nanoseconds_since(stopped)).map_err(|error| error.to_string())
        })();
        if was_running {
            setup.machine.resume();
        }
        let kept = released.clone();
        taking
            .and_then(|taking| {
                self.await_writer(Work::Snapshot(Box::new(BeingTaken { taking, tracking, released })), id)
            })
            .inspect_err(|_| self.setup.released.put_back(kept))
    }

    /// Begins to merge disk layers; the answer is sent by [`EventLoop::advance_writing`]. The machine does not stop.
    pub(super) fn merge_layers(
        &mut self,
        id: u32,
        request: &MergeLayersRequest,
        mut fds: ReceivedFds,
    ) -> Result<(), String> {
        if self.writing.is_some() {
            return Err(BEING_WRITTEN.into());
        }
        self.merged = None;
        let files = take_files(&request.files, &mut fds).map_err(|error| error.to_string())?;
        let merging = self.setup.disks.merge(files, self.setup.machine.memory()).map_err(|error| error.to_string())?;
        self.await_writer(Work::Merge(merging), id)
    }

    /// Forgets the merge that a connection asked for, since that connection is gone: other requests need not wait for it. The
    /// writer continues, into a file that has no name.
    pub(super) fn give_up_merge(&mut self, id: u32) {
        self.writing.take_if(|(work, by)| *by == id && matches!(work, Work::Merge(_)));
    }

    fn await_writer(&mut self, work: Work, id: u32) -> Result<(), String> {
        epoll::add(self.epoll.as_fd(), work.fd(), Source::Writer.data(), EventFlags::IN)
            .map_err(|error| error.to_string())?;
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
                Some(Err(message)) => {
                    self.setup.released.put_back(std::mem::take(&mut snapshot.released));
                    failed(format!("cannot write the snapshot: {message}"))
                }
            },
            Work::Merge(merging) => match merging.advance() {
                None => return,
                Some(Ok(merged)) => {
                    self.merged = Some((merged, id));
                    ControlReply::Done
                }
                Some(Err(message)) => failed(format!("cannot merge the disk's layers: {message}")),
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
    pub(super) fn use_merged(&mut self, id: u32) -> Result<(), String> {
        let merged = self.merged.take_if(|(_, by)| *by == id).ok_or("no disk layers were merged on this connection")?;
        self.setup.disks.use_merged(merged.0).map_err(|error| error.to_string())
    }
}
