//! Live fork between two turns of the event loop: the machine stands, this process forks once for each child, the machine
//! goes on. Called by the event loop only, which returns at once in a child.

use super::{BEING_WRITTEN, EventLoop, failed, nanoseconds_since};
use crate::{
    descriptors::ReceivedFds,
    disks::take_files,
    fork::{self, ChildFiles, ForkedChild, Inheritance, Side},
    log,
};
use sandboxvm_protocol::vmm::{ControlReply, ForkReport, ForkRequest};
use std::{fs::File, sync::Arc, time::Instant};

/// Which process this is after a fork, and what it has to say or do.
pub(super) enum Forked {
    Parent(ControlReply),
    Child(Box<ForkedChild>),
}

impl EventLoop {
    /// Forks the machine. In a child's process the child is returned and nothing else may be done here.
    pub(super) fn fork(&mut self, request: &ForkRequest, mut fds: ReceivedFds) -> Forked {
        if self.writing.is_some() {
            return Forked::Parent(failed(BEING_WRITTEN));
        }
        let children: Result<Vec<_>, _> =
            request.children.iter().map(|child| ChildFiles::take(child, &mut fds)).collect();
        let (children, disk_tops) = match (children, take_files(&request.disk_tops, &mut fds)) {
            (Ok(children), Ok(disk_tops)) => (children, disk_tops),
            (Err(error), _) | (_, Err(error)) => return Forked::Parent(failed(error)),
        };
        let was_running = self.parts.machine.hold();
        let stopped = Instant::now();
        let result = self.fork_standing(children, disk_tops);
        if let Ok(Forked::Child(_)) = result {
            return result.unwrap_or_else(|message: String| Forked::Parent(failed(message)));
        }
        if was_running {
            self.parts.machine.resume();
        }
        match result {
            Ok(Forked::Parent(ControlReply::Fork(report))) => {
                Forked::Parent(ControlReply::Fork(ForkReport { pause_ns: nanoseconds_since(stopped), ..report }))
            }
            Ok(other) => other,
            Err(message) => Forked::Parent(failed(message)),
        }
    }

    fn fork_standing(&mut self, children: Vec<ChildFiles>, disk_tops: Vec<File>) -> Result<Forked, String> {
        let parts = &self.parts;
        parts.disks.push_tops(disk_tops).map_err(|error| error.to_string())?;
        let state = parts.machine.save().map_err(|error| error.to_string())?;
        let (birth, labour) = fork::birth().map_err(|error| error.to_string())?;
        let mut pids = Vec::with_capacity(children.len());
        for files in children {
            match fork::split().map_err(|error| error.to_string())? {
                Side::Parent(pid) => pids.push(pid),
                Side::Child => {
                    let inherited = Inheritance {
                        kvm: Arc::clone(parts.machine.kvm()),
                        memory: Arc::clone(parts.machine.memory()),
                        memory_size: parts.machine.memory_size(),
                        baseline: parts.baseline.clone(),
                        released: Arc::clone(&parts.released),
                        vsock: parts.vsock.clone(),
                        disk_pace: parts.disks.pace().clone(),
                        console_limit: parts.console_limit,
                        missing: parts.missing.clone(),
                    };
                    return match ForkedChild::take_over(state, files, &parts.disks, inherited, birth) {
                        Ok(child) => Ok(Forked::Child(Box::new(child))),
                        Err(error) => {
                            log::line(format_args!("a fork cannot begin: {error}"));
                            // SAFETY: ends this process at once; going on would be as the parent.
                            unsafe { libc::_exit(1) }
                        }
                    };
                }
            }
        }
        drop(labour);
        Ok(Forked::Parent(ControlReply::Fork(ForkReport { pause_ns: 0, pids })))
    }
}
