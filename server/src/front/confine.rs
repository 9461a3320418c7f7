//! Takes from the front what it does not need, before it reads a byte from the network: the user root and every capability, the
//! host's files and networks, and all system calls but a few.

use super::filter;
use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    io::Errno,
    mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_remount, unmount},
    process::{
        DumpableBehavior, Resource, Rlimit, Signal, chdir, fchdir, pivot_root, set_dumpable_behavior,
        set_parent_process_death_signal, setrlimit,
    },
    thread::{
        CapabilitySet, CapabilitySets, Gid, Uid, UnshareFlags, clear_ambient_capability_set,
        remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid,
        set_thread_res_uid, unshare_unsafe,
    },
};
use std::{fs, io};

/// The system user of fronts, where the host has one.
const SYSTEM_USER: &str = "sandboxvm-http";
/// Added to the launcher's PID, the user of its front where the host has none: above all users of the host and below those of
/// VMMs.
const FIRST_USER: u32 = 0x6000_0000;
/// Maximum size of its data in bytes: 5 MiB when idle, and with load the bodies and answers of its requests, whose number and
/// lengths are bounded.
const MAX_DATA: u64 = 8 << 30;
/// Maximum number of threads of all fronts with its user: one for each processor, and 512 for blocking work.
const MAX_THREADS: u64 = 8192;
/// Where the empty root is built before it becomes the root: any directory that always exists.
const STAGE: &str = "/tmp";

/// The front is not confined, and must not serve.
#[derive(Debug, thiserror::Error)]
#[error("cannot confine the front: {step}: {source}")]
pub struct ConfineError {
    step: &'static str,
    source: io::Error,
}

fn failed<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> ConfineError {
    move |error| ConfineError { step, source: error.into() }
}

/// User and group of a front.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrontUser {
    /// User ID.
    pub uid: u32,
    /// Group ID.
    pub gid: u32,
}

/// Returns the user of the front that this process starts, or none if this process is not root: then both have one user.
#[must_use]
pub fn user_of_front() -> Option<FrontUser> {
    rustix::process::geteuid().is_root().then(|| {
        let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let own = FIRST_USER.saturating_add(std::process::id());
        system_user(&users).unwrap_or(FrontUser { uid: own, gid: own })
    })
}

/// The system user in a passwd(5).
fn system_user(users: &str) -> Option<FrontUser> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let user = FrontUser { uid: uid.parse().ok()?, gid: gid.parse().ok()? };
        (name == SYSTEM_USER && user.uid != 0 && user.gid != 0).then_some(user)
    })
}

/// Confines this process, which must have one thread: see the module. With `user`, this process is root and becomes that user.
/// With `connects`, it may open connections and read files that its user may read: for an exporter of traces.
///
/// # Errors
/// When a step fails that every host allows.
pub fn confine(user: Option<FrontUser>, connects: bool) -> Result<(), ConfineError> {
    // The launcher's end must be this process's end.
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed("tying it to the launcher"))?;
    // Of all processes of the server, the kernel ends this one first when memory is short: VMMs have 500, and it is replaced.
    if let Err(error) = fs::write("/proc/self/oom_score_adj", "1000") {
        // As in a container with a read-only /proc.
        eprintln!("sandboxvm: warning: the front is not the first process to end when memory is short: {error}");
    }
    if let Some(user) = user {
        if !connects && let Err(error) = leave_the_host() {
            // As in a container. The user and the filter keep it from files and networks in any case.
            eprintln!("sandboxvm: warning: the front keeps the namespaces of this host: {error}");
        }
        // A service may lack the right to do this. Without a capability to start from, the set has no effect.
        for capability in CapabilitySet::all().iter() {
            let _ = remove_capability_from_bounding_set(capability);
        }
        let _ = clear_ambient_capability_set();
        set_thread_groups(&[]).map_err(failed("giving up groups"))?;
        let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
        set_thread_res_gid(gid, gid, gid).map_err(failed("giving up the group root"))?;
        set_thread_res_uid(uid, uid, uid).map_err(failed("giving up the user root"))?;
    }
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
        .map_err(failed("giving up privileges"))?;
    set_no_new_privs(true).map_err(failed("giving up new privileges"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failed("keeping others from tracing it"))?;
    for resource in [Resource::Core, Resource::Memlock, Resource::Msgqueue] {
        setrlimit(resource, Rlimit { current: Some(0), maximum: Some(0) }).map_err(failed("setting limits"))?;
    }
    setrlimit(Resource::Data, Rlimit { current: Some(MAX_DATA), maximum: Some(MAX_DATA) })
        .map_err(failed("setting limits"))?;
    if user.is_some() {
        // Of its user, which has nothing else; without one, it would count what the launcher's user runs.
        setrlimit(Resource::Nproc, Rlimit { current: Some(MAX_THREADS), maximum: Some(MAX_THREADS) })
            .map_err(failed("setting limits"))?;
    }
    // The change of the user clears it.
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed("tying it to the launcher"))?;
    filter::apply(connects).map_err(failed("filtering system calls"))
}

/// Leaves the host's mounts, network, IPC objects, host name and control groups. Its root is an empty directory afterwards.
/// Listeners that were made before still accept connections of the host.
fn leave_the_host() -> Result<(), Errno> {
    let namespaces = UnshareFlags::NEWNS
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP;
    // SAFETY: none of these flags unshares the file table (CLONE_FILES), so no descriptor changes meaning.
    unsafe { unshare_unsafe(namespaces) }?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("sandboxvm", STAGE, "tmpfs", flags, Some(c"size=4k,nr_inodes=2,mode=0555"))?;
    let old = openat(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    chdir(STAGE)?;
    // pivot_root(".", ".") stacks the old root on the new one, from where it is taken away (pivot_root(2), NOTES).
    pivot_root(".", ".")?;
    fchdir(&old)?;
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")?;
    mount_remount("/", flags | MountFlags::RDONLY, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_user_is_found_by_name_and_never_root() {
        let users = "root:x:0:0:root:/root:/bin/bash\nsandboxvm-http2:x:1:1::/:/x\nsandboxvm-http:x:990:991::/:/x\n";
        assert_eq!(system_user(users), Some(FrontUser { uid: 990, gid: 991 }));
        for without in ["", "sandboxvm-http:x:0:5::/:/x", "sandboxvm-http:x:990:0::/:/x", "sandboxvm-http:x:y:1::/:/x"]
        {
            assert_eq!(system_user(without), None, "{without}");
        }
    }
}
