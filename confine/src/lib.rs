//! Takes from a process what it does not need, before it reads a byte of an attacker: its user and every capability, the
//! host's files and networks, resources without bound, and all system calls but a few.
//!
//! For the server's front, a sandbox's egress process and its dialer, the layer process, and the process of a share. Each of them says what it keeps, as a
//! [`Confinement`]. The VMM confines itself by `vmm/src/confine`, since it has threads that keep different calls, and must
//! confine itself before it knows its machine.

mod filter;
mod identity;
mod limits;
mod namespaces;
mod outcome;

pub use filter::{Argument, Filter};
pub use identity::User;
pub use namespaces::{Content, Network};
pub use outcome::{ConfineError, Missing, Part};
pub use rustix::process::Resource;

use outcome::{Step, failed};
use rustix::{
    process::{DumpableBehavior, Signal, geteuid, set_dumpable_behavior, set_parent_process_death_signal},
    thread::set_no_new_privs,
};
use std::{fs, io};

/// What a process keeps.
#[derive(Debug)]
pub struct Confinement<'a> {
    /// What it is, for messages: `front`.
    pub process: &'static str,
    /// Whom it becomes, if it is root: the first of these that the host has. A process of another user stays that user.
    pub users: &'a [User],
    /// Namespaces and files; `None` keeps those of the host.
    pub namespaces: Option<Network>,
    /// What of the host's files stays visible in its root, if it gets namespaces: at most two.
    pub contents: &'a [Content<'a>],
    /// Maximum of each resource, in the unit of setrlimit(2). The process may have less before, and then keeps less. Core
    /// files, locked memory, message queues and priorities are 0 in any case.
    pub limits: &'a [(Resource, u64)],
    /// Maximum number of processes and threads, if it has a user that no other process has.
    pub threads: u64,
    /// How much sooner than others the kernel ends it when memory is short (0-1000), as in oom_score_adj of proc(5). A host
    /// that refuses it is reported as [`Part::EndsFirst`].
    pub ends_first: u16,
    /// System calls that are left.
    pub filter: &'a Filter,
}

impl Confinement<'_> {
    /// Confines this process, which must have one thread, from now on and without a way back. Returns the parts that the host
    /// refused and that others cover; the caller reports them. The process ends with its parent from then on.
    ///
    /// # Errors
    /// When a step fails that every host allows, or without which the process is not confined: it must not serve then.
    pub fn apply(&self) -> Result<Vec<Missing>, ConfineError> {
        self.take_away().map_err(|(step, source)| ConfineError { process: self.process, step, source })
    }

    fn take_away(&self) -> Result<Vec<Missing>, Step> {
        let program = self.filter.compile().map_err(|error| ("compiling the filter", error))?;
        let tie = || set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed("tying it to its parent"));
        // The parent's end must be this process's end.
        tie()?;
        let mut missing = Vec::new();
        if let Err(error) = fs::write("/proc/self/oom_score_adj", self.ends_first.to_string()) {
            // As in a container with a read-only /proc.
            missing.push(Missing { part: Part::EndsFirst, error });
        }
        let is_root = geteuid().is_root() && !self.users.is_empty();
        if let Some(network) = self.namespaces {
            missing.extend(namespaces::leave_the_host(network, self.contents, is_root)?);
        }
        if is_root {
            missing.extend(identity::become_one_of(self.users)?);
        }
        identity::give_up_capabilities()?;
        set_no_new_privs(true).map_err(failed("giving up new privileges"))?;
        set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failed("keeping others from tracing it"))?;
        limits::lower(self.limits)?;
        if is_root && !missing.iter().any(|missing| missing.part == Part::OwnUser) {
            // Another user's processes are not this one's to count.
            limits::lower(&[(Resource::Nproc, self.threads)])?;
        }
        // The change of the user clears it.
        tie()?;
        seccompiler::apply_filter(&program).map_err(|error| ("filtering system calls", io::Error::other(error)))?;
        Ok(missing)
    }
}

/// Closes what the starting process left open by mistake: all descriptors but standard input, output and error. To be
/// called first of all.
pub fn close_inherited_files() {
    // SAFETY: plain numbers; the caller has opened no descriptor yet. It does not fail on any kernel that has it.
    unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
}
