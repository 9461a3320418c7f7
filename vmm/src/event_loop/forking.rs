//! Live fork between two turns of the event loop: the machine is paused, this process forks once for each child, and
//! the machine continues. In a child, the event loop returns.

use super::state::{BEING_WRITTEN, EventLoop, failed, nanoseconds_since};
use crate::{
    descriptors::ReceivedFds,
    disks::take_files,
    fork::{self, ChildFiles, ForkedChild, Inheritance},
    log,
    process::split::{Side, split},
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
        let was_running = self.setup.machine.hold();
        let stopped = Instant::now();
        let result = self.fork_standing(children, disk_tops);
        if let Ok(Forked::Child(_)) = result {
            return result.unwrap_or_else(|message: String| Forked::Parent(failed(message)));
        }
        if was_running {
            self.setup.machine.resume();
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
        let setup = &self.setup;
        setup.disks.push_tops(disk_tops).map_err(|error| error.to_string())?;
        let state = setup.machine.save().map_err(|error| error.to_string())?;
        let (barrier, guard) = fork::start_barrier().map_err(|error| error.to_string())?;
        let mut pids = Vec::with_capacity(children.len());
        for files in children {
            match split().map_err(|error| error.to_string())? {
                Side::Parent(pid) => pids.push(pid),
                Side::Child => {
                    let inherited = Inheritance {
                        kvm: Arc::clone(setup.machine.kvm()),
                        memory: Arc::clone(setup.machine.memory()),
                        memory_size: setup.machine.memory_size(),
                        baseline: setup.baseline.clone(),
                        released: Arc::clone(&setup.released),
                        vsock: setup.vsock.clone(),
                        disk_pace: setup.disks.pace().clone(),
                        console_limit: setup.console_limit,
                        missing: self.reporter.missing.clone(),
                    };
                    return match ForkedChild::take_over(state, files, &setup.disks, inherited, barrier) {
                        Ok(child) => Ok(Forked::Child(Box::new(child))),
                        Err(error) => {
                            log::line(format_args!("a fork cannot begin: {error}"));
                            // SAFETY: ends this process without running any of the parent's code.
                            unsafe { libc::_exit(1) }
                        }
                    };
                }
            }
        }
        drop(guard);
        Ok(Forked::Parent(ControlReply::Fork(ForkReport { pause_ns: 0, pids })))
    }
}
