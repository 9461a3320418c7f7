//! The attacks, each by the bare system call: a library might try another way round first. The numbers that a guest names
//! them by are their places in [`ALL`], from 1; the tests know them by name (`tests/src/drills.rs`).

#![expect(
    clippy::undocumented_unsafe_blocks,
    clippy::cast_possible_truncation,
    reason = "this is what hostile code does; the process is a test's"
)]

use std::{
    ffi::CString,
    io::{Error, Result},
    ptr::null,
};

type Attack = fn() -> Result<()>;

pub(super) const ALL: &[(&str, Attack)] = &[
    ("read-file", read_file),
    ("open-socket", open_socket),
    ("ptrace", ptrace),
    ("kill", kill),
    ("tkill", tkill),
    ("fork-bomb", fork_bomb),
    ("exec", exec),
    ("mount", mount),
    ("steal-descriptor", steal_descriptor),
    ("read-inherited", read_inherited),
    ("exhaust-memory", exhaust_memory),
    ("write-file", write_file),
    ("map-file-shared", map_file_shared),
    ("map-code", map_code),
    ("make-code", make_code),
    ("set-owner", set_owner),
    ("unused-kvm-request", unused_kvm_request),
    ("accept", accept),
    ("catch-refusals", catch_refusals),
    ("block-refusals", block_refusals),
    ("open-files", open_files),
    ("grow-file", grow_file),
    ("merge-pages", merge_pages),
    ("new-namespace", new_namespace),
    ("become-root", become_root),
    ("write-guest-memory", write_guest_memory),
    ("outrank", outrank),
    ("run-in-real-time", run_in_real_time),
    ("close-lock", close_lock),
    ("leave-child", leave_child),
    ("fill-status", fill_status),
];

/// What the drill aims at: a path, a process, a port, a descriptor.
fn target() -> String {
    std::env::var("SANDBOXVM_DRILL_TARGET").unwrap_or_default()
}

fn target_number() -> i32 {
    target().parse().unwrap_or(0)
}

fn call(number: libc::c_long, arguments: [i64; 6]) -> Result<i64> {
    let [a, b, c, d, e, f] = arguments;
    match unsafe { libc::syscall(number, a, b, c, d, e, f) } {
        -1 => Err(Error::last_os_error()),
        result => Ok(result),
    }
}

fn path() -> CString {
    CString::new(target()).unwrap_or_default()
}

fn read_file() -> Result<()> {
    let fd = call(libc::SYS_open, [path().as_ptr() as i64, libc::O_RDONLY.into(), 0, 0, 0, 0])?;
    let mut byte = [0_u8];
    call(libc::SYS_read, [fd, byte.as_mut_ptr() as i64, 1, 0, 0, 0]).map(drop)
}

/// A connection to the target, a port of 127.0.0.1.
fn open_socket() -> Result<()> {
    let fd = call(libc::SYS_socket, [libc::AF_INET.into(), libc::SOCK_STREAM.into(), 0, 0, 0, 0])?;
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: (target_number() as u16).to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([127, 0, 0, 1]) },
        sin_zero: [0; 8],
    };
    call(libc::SYS_connect, [fd, &raw const address as i64, 16, 0, 0, 0]).map(drop)
}

fn ptrace() -> Result<()> {
    call(libc::SYS_ptrace, [libc::PTRACE_SEIZE.into(), target_number().into(), 0, 0, 0, 0]).map(drop)
}

fn kill() -> Result<()> {
    call(libc::SYS_kill, [target_number().into(), libc::SIGKILL.into(), 0, 0, 0, 0]).map(drop)
}

/// The one call with a process in it that is left, with the one signal that is left: a kick.
fn tkill() -> Result<()> {
    let signal = vmm_sys_util::signal::SIGRTMIN();
    call(libc::SYS_tkill, [target_number().into(), signal.into(), 0, 0, 0, 0]).map(drop)
}

/// Done when there are more processes than a VMM may have.
fn fork_bomb() -> Result<()> {
    for _ in 0..4200 {
        if call(libc::SYS_fork, [0; 6])? == 0 {
            // One of them: it stays until the thread that forked it ends.
            let _ = call(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG.into(), libc::SIGKILL.into(), 0, 0, 0, 0]);
            loop {
                std::thread::sleep(std::time::Duration::from_secs(60));
            }
        }
    }
    Ok(())
}

fn exec() -> Result<()> {
    let program = path();
    let arguments = [program.as_ptr(), null()];
    call(libc::SYS_execve, [program.as_ptr() as i64, arguments.as_ptr() as i64, 0, 0, 0, 0]).map(drop)
}

fn mount() -> Result<()> {
    let kind = c"tmpfs".as_ptr() as i64;
    call(libc::SYS_mount, [kind, c"/".as_ptr() as i64, kind, 0, 0, 0]).map(drop)
}

/// Standard input of another VMM: its launch channel.
fn steal_descriptor() -> Result<()> {
    let pidfd = call(libc::SYS_pidfd_open, [target_number().into(), 0, 0, 0, 0, 0])?;
    call(libc::SYS_pidfd_getfd, [pidfd, 0, 0, 0, 0, 0]).map(drop)
}

/// The target is a descriptor that the process that started this one left open.
fn read_inherited() -> Result<()> {
    let mut byte = [0_u8];
    match call(libc::SYS_pread64, [target_number().into(), byte.as_mut_ptr() as i64, 1, 0, 0, 0])? {
        1 => Ok(()),
        _ => Err(Error::from_raw_os_error(libc::EBADF)),
    }
}

/// Twice what the machine of these tests may take, 64 MiB at a time; a page of each is touched.
fn exhaust_memory() -> Result<()> {
    const PIECE: i64 = 64 << 20;
    for _ in 0..20 {
        let flags = i64::from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
        let protection = i64::from(libc::PROT_READ | libc::PROT_WRITE);
        let at = call(libc::SYS_mmap, [0, PIECE, protection, flags, -1, 0])?;
        unsafe { (at as *mut u8).write_volatile(1) };
    }
    Ok(())
}

/// Into the file with the number that the target names, and no other.
fn write_file() -> Result<()> {
    call(libc::SYS_pwrite64, [find_target()?, c"EVIL".as_ptr() as i64, 4, 0, 0, 0]).map(drop)
}

fn map_file_shared() -> Result<()> {
    let protection = i64::from(libc::PROT_READ | libc::PROT_WRITE);
    let at = call(libc::SYS_mmap, [0, 4096, protection, libc::MAP_SHARED.into(), find_target()?, 0])?;
    unsafe { (at as *mut [u8; 4]).write_volatile(*b"EVIL") };
    Ok(())
}

/// The descriptor of the file whose inode the target names, found as hostile code would: by trying all.
fn find_target() -> Result<i64> {
    let wanted: u64 = target().parse().unwrap_or(0);
    for fd in 0..256 {
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        if call(libc::SYS_fstat, [fd, &raw mut stat as i64, 0, 0, 0, 0]).is_ok() && stat.st_ino == wanted {
            return Ok(fd);
        }
    }
    Err(Error::from_raw_os_error(libc::ENOENT))
}

fn map_code() -> Result<()> {
    let flags = i64::from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let protection = i64::from(libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC);
    call(libc::SYS_mmap, [0, 4096, protection, flags, -1, 0]).map(drop)
}

fn make_code() -> Result<()> {
    let flags = i64::from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let at = call(libc::SYS_mmap, [0, 4096, libc::PROT_WRITE.into(), flags, -1, 0])?;
    // ret
    unsafe { (at as *mut u8).write_volatile(0xc3) };
    call(libc::SYS_mprotect, [at, 4096, i64::from(libc::PROT_READ | libc::PROT_EXEC), 0, 0, 0])?;
    let code: extern "C" fn() = unsafe { std::mem::transmute(at as *const u8) };
    code();
    Ok(())
}

/// Signals of a descriptor of ours to another process.
fn set_owner() -> Result<()> {
    const F_SETOWN: i64 = 8;
    call(libc::SYS_fcntl, [0, F_SETOWN, target_number().into(), 0, 0, 0]).map(drop)
}

/// KVM_CREATE_PIT2 of no descriptor: KVM never sees it, but a filter does.
fn unused_kvm_request() -> Result<()> {
    const KVM_CREATE_PIT2: i64 = 0x4040_ae77;
    call(libc::SYS_ioctl, [-1, KVM_CREATE_PIT2, 0, 0, 0, 0]).map(drop)
}

/// What the event loop may and a vCPU's thread may not.
fn accept() -> Result<()> {
    call(libc::SYS_accept4, [-1, 0, 0, 0, 0, 0]).map(drop)
}

/// Hearing of refused calls oneself.
fn catch_refusals() -> Result<()> {
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = libc::SIG_IGN;
    let bytes = &raw const action as i64;
    call(libc::SYS_rt_sigaction, [libc::SIGSYS.into(), bytes, 0, 8, 0, 0])?;
    call(libc::SYS_getppid, [0; 6]).map(drop)
}

/// Not hearing of them at all.
fn block_refusals() -> Result<()> {
    let all = u64::MAX;
    call(libc::SYS_rt_sigprocmask, [libc::SIG_BLOCK.into(), &raw const all as i64, 0, 8, 0, 0])?;
    call(libc::SYS_getppid, [0; 6]).map(drop)
}

/// Done when more files are open than a VMM may have.
fn open_files() -> Result<()> {
    for _ in 0..5000 {
        call(libc::SYS_eventfd2, [0; 6])?;
    }
    Ok(())
}

/// Done when the file whose inode the target names can be made longer than any of the machine's needs to be.
fn grow_file() -> Result<()> {
    call(libc::SYS_ftruncate, [find_target()?, 1 << 40, 0, 0, 0, 0]).map(drop)
}

/// Offering pages to be merged with those of other processes.
fn merge_pages() -> Result<()> {
    let flags = i64::from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let at = call(libc::SYS_mmap, [0, 4096, libc::PROT_WRITE.into(), flags, -1, 0])?;
    call(libc::SYS_madvise, [at, 4096, libc::MADV_MERGEABLE.into(), 0, 0, 0]).map(drop)
}

fn new_namespace() -> Result<()> {
    call(libc::SYS_unshare, [libc::CLONE_NEWNET.into(), 0, 0, 0, 0, 0]).map(drop)
}

fn become_root() -> Result<()> {
    call(libc::SYS_setuid, [0; 6]).map(drop)
}

/// Into the first mapping of the file whose inode the target names, as if it were the guest.
fn write_guest_memory() -> Result<()> {
    let fd = find_target()?;
    let flags = i64::from(libc::MAP_PRIVATE);
    let at = call(libc::SYS_mmap, [0, 4096, i64::from(libc::PROT_READ | libc::PROT_WRITE), flags, fd, 0])?;
    unsafe { (at as *mut [u8; 4]).write_volatile(*b"EVIL") };
    call(libc::SYS_munmap, [at, 4096, 0, 0, 0, 0]).map(drop)
}

/// Before every program of the host that has the usual nice value.
fn outrank() -> Result<()> {
    set_scheduling(libc::sched_attr { sched_policy: libc::SCHED_OTHER as u32, sched_nice: -20, ..no_scheduling() })
}

/// Before every program of the host that is not a real-time one.
fn run_in_real_time() -> Result<()> {
    set_scheduling(libc::sched_attr { sched_policy: libc::SCHED_FIFO as u32, sched_priority: 1, ..no_scheduling() })
}

fn no_scheduling() -> libc::sched_attr {
    libc::sched_attr { size: size_of::<libc::sched_attr>() as u32, ..unsafe { std::mem::zeroed() } }
}

/// Of the calling thread: the one that may be named.
fn set_scheduling(attributes: libc::sched_attr) -> Result<()> {
    call(libc::SYS_sched_setattr, [0, &raw const attributes as i64, 0, 0, 0, 0]).map(drop)
}

/// Descriptors of regular files with that length.
fn files_of_length(length: i64) -> impl Iterator<Item = i64> {
    (3..256).filter(move |fd| {
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        call(libc::SYS_fstat, [*fd, &raw mut stat as i64, 0, 0, 0, 0]).is_ok()
            && stat.st_mode & libc::S_IFMT == libc::S_IFREG
            && stat.st_size == length
    })
}

/// The lock is empty.
fn close_lock() -> Result<()> {
    let locks: Vec<i64> = files_of_length(0).collect();
    for fd in &locks {
        call(libc::SYS_close, [*fd, 0, 0, 0, 0, 0])?;
    }
    if locks.is_empty() { Err(Error::from_raw_os_error(libc::ENOENT)) } else { Ok(()) }
}

/// A child that holds nothing of the sandbox's and outlives its parent. With a target it also leaves the session.
fn leave_child() -> Result<()> {
    if call(libc::SYS_fork, [0; 6])? > 0 {
        return close_lock();
    }
    if target_number() > 0 {
        let _ = call(libc::SYS_setsid, [0; 6]);
    }
    let _ = call(libc::SYS_close_range, [3, i64::from(u32::MAX), 0, 0, 0, 0]);
    let _ = call(libc::SYS_close, [0; 6]);
    loop {
        std::thread::sleep(std::time::Duration::from_secs(60));
    }
}

/// More than a reader of the status takes, behind what is there.
fn fill_status() -> Result<()> {
    const LENGTH: i64 = 70_000;
    let spaces = vec![b' '; LENGTH as usize];
    let length = sandboxvm_protocol::vmm::STATUS_LEN as i64;
    let mut statuses = files_of_length(length);
    let fd = statuses.next().ok_or_else(|| Error::from_raw_os_error(libc::ENOENT))?;
    call(libc::SYS_pwrite64, [fd, spaces.as_ptr() as i64, LENGTH, 0, 0, 0]).map(drop)
}
