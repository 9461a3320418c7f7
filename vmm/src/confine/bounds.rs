//! Resource limits of the process: what code that took it over could still use up. Set in two steps, since a process that
//! waits in a pool does not know its machine yet; the second only lowers.

use super::{
    error::{ConfineError, step},
    switches::{Protection, is_off},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sandboxvm_protocol::machine::{MIB, MemorySize};

/// Open files: 1023 connections to the guest, 64 control connections, the files of 24 forks' disks, and the VMM's own. More
/// than the usual 1024, which is there for programs that do not know how many they want.
const FILES: u64 = 4096;
/// Processes and threads of one user, which is one VMM with all its live forks and writers (see [`super::own_user`]).
const PROCESSES: u64 = 4096;
/// What a main thread gets by default on Linux; other threads have 2 MiB from the standard library.
const STACK: u64 = 8 * MIB;
/// Address space beside guest memory: code, stacks, connections with full windows (76 MiB), a snapshot's state and tables; and
/// the stacks of its ancestors' vCPU threads, 2 MiB each, which a fork of a fork inherits and never uses.
const OVERHEAD: u64 = 1024 * MIB;
/// Bytes of disk for one byte in each of the two tables that merging layers takes (`block/layered.rs`).
const DISK_PER_TABLE_BYTE: u64 = 2048;

/// How much sooner than others the kernel ends a VMM when memory runs out, as a thousandth of the host's memory each: before
/// the manager's programs, which have none of this, whichever of them is the largest.
const OUT_OF_MEMORY_FIRST: &str = "500";

/// Has the kernel end this process, and all that are forked off it, before those of the manager when the host's memory runs
/// out. While the host's `/proc` can be seen; where there is none, the kernel goes by size alone.
pub(super) fn be_ended_first() {
    let _ = std::fs::write("/proc/self/oom_score_adj", OUT_OF_MEMORY_FIRST);
}

/// Sets the limits for any machine. `own_processes` says that no processes but the VMM's count against its user.
pub(super) fn set(own_processes: bool) -> Result<(), ConfineError> {
    // A core file would hold the guest's memory.
    lower(Resource::Core, 0)?;
    if is_off(Protection::Limits) {
        return Ok(());
    }
    lower(Resource::Nofile, FILES)?;
    lower(Resource::Stack, STACK)?;
    lower(Resource::Memlock, 0)?;
    lower(Resource::Msgqueue, 0)?;
    lower(Resource::Rtprio, 0)?;
    lower(Resource::Nice, 0)?;
    if own_processes {
        lower(Resource::Nproc, PROCESSES)?;
    }
    Ok(())
}

/// Sets the limits for a machine with this much memory, and disks of which the largest has `disk` bytes.
pub(super) fn set_for_machine(memory: MemorySize, disk: u64) -> Result<(), ConfineError> {
    if is_off(Protection::Limits) {
        return Ok(());
    }
    let memory = memory.bytes();
    lower(Resource::As, memory + disk / DISK_PER_TABLE_BYTE + OVERHEAD)?;
    // The files it writes: a snapshot of memory, and disk layers with their tables.
    lower(Resource::Fsize, memory.max(disk) + disk / DISK_PER_TABLE_BYTE + OVERHEAD)?;
    // A write beyond that fails instead of ending the process without a word.
    // SAFETY: SIG_IGN is a valid disposition.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    Ok(())
}

/// Never above what the process may have; what it has now may be less than it may.
fn lower(resource: Resource, to: u64) -> Result<(), ConfineError> {
    let now = getrlimit(resource);
    let least = |limit: Option<u64>| Some(limit.map_or(to, |limit| limit.min(to)));
    // All that it may have, it has: nothing here asks for more later.
    let limit = least(now.maximum);
    setrlimit(resource, Rlimit { current: limit, maximum: limit })
        .map_err(|error| step("limiting what it may use")(error.into()))
}
