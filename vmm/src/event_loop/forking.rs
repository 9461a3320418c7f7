//! Live fork between two turns of the event loop: the machine is paused, this process forks once for each child, and
//! the machine continues. In a child, the event loop returns.

use super::{
    refusal::RequestError,
    state::{EventLoop, nanoseconds_since},
};
use crate::{
    channel::descriptors::ReceivedFds,
    fork::{self, ForkedChild, Handed, Inheritance},
    log,
    process::split::{Side, split},
};
use sandboxvm_protocol::vmm::{ControlReply, ForkReport, ForkRequest};
use std::{fs::File, time::Instant};

/// Which process this is after a fork, and what it has to say or do.
pub(super) enum Forked {
    Parent(ControlReply),
    Child(Box<ForkedChild>),
}

/// Which process this is after [`EventLoop::fork_standing`].
enum Copied {
    /// The process IDs of the children.
    Parent(Vec<u32>),
    Child(Box<ForkedChild>),
}

impl EventLoop {
    /// Forks the machine. In a child's process the child is returned and nothing else may be done here.
    pub(super) fn fork(&mut self, request: &ForkRequest, fds: ReceivedFds) -> Forked {
        let (children, disk_tops) = match self.take_children(request, fds) {
            Ok(taken) => taken,
            Err(error) => return Forked::Parent(error.into()),
        };
        let was_running = self.setup.machine.hold();
        let stopped = Instant::now();
        let copied = match self.fork_standing(children, disk_tops) {
            Ok(Copied::Child(child)) => return Forked::Child(child),
            Ok(Copied::Parent(pids)) => Ok(pids),
            Err(error) => Err(error),
        };
        if was_running {
            self.setup.machine.resume();
        }
        Forked::Parent(match copied {
            Ok(pids) => ControlReply::Fork(ForkReport { pause_ns: nanoseconds_since(stopped), pids }),
            Err(error) => error.into(),
        })
    }

    fn take_children(
        &self,
        request: &ForkRequest,
        mut fds: ReceivedFds,
    ) -> Result<(Vec<Handed>, Vec<File>), RequestError> {
        if self.writing.is_some() {
            return Err(RequestError::Busy);
        }
        let children = request.children.iter().map(|child| Handed::take(child, &self.setup.devices, &mut fds));
        Ok((children.collect::<Result<_, _>>()?, fds.take_files(&request.disk_tops, "a disk layer")?))
    }

    fn fork_standing(&mut self, children: Vec<Handed>, disk_tops: Vec<File>) -> Result<Copied, RequestError> {
        let setup = &self.setup;
        setup.devices.disks().push_tops(disk_tops)?;
        let state = setup.machine.save()?;
        let (barrier, guard) = fork::start_barrier()?;
        let mut pids = Vec::with_capacity(children.len());
        for files in children {
            match split()? {
                Side::Parent(pid) => pids.push(pid),
                Side::Child => {
                    let inherited = Inheritance {
                        context: setup.context().clone(),
                        baseline: setup.baseline.clone(),
                        missing: self.reporter.missing.clone(),
                    };
                    return match ForkedChild::take_over(state, files, &setup.devices, inherited, barrier) {
                        Ok(child) => Ok(Copied::Child(Box::new(child))),
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
        Ok(Copied::Parent(pids))
    }
}
