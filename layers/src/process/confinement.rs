//! What the process keeps of what a process has: its descriptors and memory. It opens no file and no
//! socket, starts no process, and receives no further descriptors.

use crate::limits::Limits;
use sandboxvm_confine::{Argument, Confinement, Filter, Network, Resource, User};

pub use sandboxvm_confine::{ConfineError, Missing, close_inherited_files};

/// Added to its PID, the user of a process that root starts: above those of egress processes and below
/// those of VMMs. A PID is below 2^22.
const FIRST_USER: u32 = 0x6840_0000;
/// The user if the host lacks such a range, as in a container with some 65536 users.
const SHARED_USER: u32 = 64_740;

/// Memory in bytes that it uses beside metadata and the window of zstd: the program, buffers and the
/// headers of one entry.
const BASE_MEMORY: u64 = 256 << 20;

/// How much sooner than others the kernel ends it when memory is short: before VMMs, because a
/// conversion can be repeated.
const ENDS_FIRST: u16 = 800;

/// Confines this process, which must have one thread. Returns what the host refused of it.
///
/// # Errors
/// When it is not confined, and must not read a layer.
pub fn confine(limits: &Limits) -> Result<Vec<Missing>, ConfineError> {
    let user = |id| User { uid: id, gid: id };
    let memory = limits.metadata_bytes.saturating_mul(2).saturating_add(limits.zstd_window.saturating_mul(2));
    let resources = [
        (Resource::As, memory.saturating_add(BASE_MEMORY)),
        (Resource::Fsize, limits.image_bytes),
        (Resource::Cpu, limits.cpu_seconds),
        // Those that it has stay open, and it needs no other.
        (Resource::Nofile, 0),
    ];
    Confinement {
        process: "layer process",
        users: &[user(FIRST_USER + std::process::id()), user(SHARED_USER)],
        namespaces: Some(Network::Empty),
        contents: &[],
        limits: &resources,
        threads: 1,
        ends_first: ENDS_FIRST,
        filter: &calls(),
    }
    .apply()
}

fn calls() -> Filter {
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    Filter::new()
        .allow(&[libc::SYS_pwrite64, libc::SYS_ftruncate])
        .allow_if(libc::SYS_fallocate, &[Argument::is(1, punch)])
}
