//! Attacks on the system call filter: a process takes it on and then makes the call that code injected into a VMM would
//! make. Each must end that process with SIGSYS; what a VMM needs must keep working.

#![expect(
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block,
    reason = "raw system calls with valid arguments are the point"
)]

use sandboxvm_vmm::confine::restrict_syscalls;
use std::ptr::{null, null_mut};

/// Runs `attack` in a process of its own under the filter; returns how it ended (waitpid(2)).
fn under_filter(attack: impl FnOnce() -> bool) -> libc::c_int {
    // The child makes a handful of system calls and ends: safe to fork from a test's threads.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork: {}", std::io::Error::last_os_error());
    if child == 0 {
        unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        let code = match restrict_syscalls(sandboxvm_vmm::devices::set::system_calls()) {
            Ok(()) if attack() => 0,
            Ok(()) => 1,
            Err(_) => 2,
        };
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    status
}

fn assert_killed(what: &str, attack: impl FnOnce() -> bool) {
    let status = under_filter(attack);
    assert!(
        libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS,
        "{what} was not stopped by the filter (wait status {status:#x})"
    );
}

#[test]
fn what_a_machine_needs_works() {
    let status = under_filter(|| {
        let page = unsafe {
            libc::mmap(null_mut(), 4096, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANON, -1, 0)
        };
        let mut byte = 0u8;
        let random = unsafe { libc::syscall(libc::SYS_getrandom, &raw mut byte, 1, 0) };
        let event = unsafe { libc::eventfd(0, 0) };
        let forked = unsafe { libc::fork() };
        if forked == 0 {
            unsafe { libc::_exit(0) };
        }
        page != libc::MAP_FAILED && random == 1 && event >= 0 && forked > 0
    });
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "wait status {status:#x}");
}

#[test]
fn files_of_the_host_cannot_be_named() {
    assert_killed("open", || unsafe { libc::open(c"/etc/passwd".as_ptr(), libc::O_RDONLY) >= 0 });
    assert_killed("openat", || unsafe {
        libc::syscall(libc::SYS_openat, libc::AT_FDCWD, c"/etc/passwd".as_ptr(), libc::O_RDONLY) >= 0
    });
    assert_killed("unlink", || unsafe { libc::unlink(c"/tmp/sandboxvm-no-such-file".as_ptr()) == 0 });
    assert_killed("mount", || unsafe {
        libc::mount(c"x".as_ptr(), c"/tmp".as_ptr(), c"tmpfs".as_ptr(), 0, null()) == 0
    });
}

#[test]
fn programs_and_namespaces_cannot_be_had() {
    assert_killed("execve", || unsafe {
        libc::execve(c"/bin/true".as_ptr(), [null()].as_ptr(), [null()].as_ptr()) == 0
    });
    assert_killed("unshare", || unsafe { libc::unshare(libc::CLONE_NEWUSER) == 0 });
    assert_killed("clone into a namespace", || unsafe {
        libc::syscall(libc::SYS_clone, libc::CLONE_NEWUSER | libc::SIGCHLD, 0, 0, 0, 0) >= 0
    });
    assert_killed("setuid", || unsafe { libc::syscall(libc::SYS_setuid, 0) == 0 });
}

#[test]
fn no_network_can_be_reached() {
    assert_killed("socket", || unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) >= 0 });
    assert_killed("unix socket", || unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0) >= 0 });
    assert_killed("connect", || unsafe { libc::connect(0, null(), 0) == 0 });
}

#[test]
fn other_processes_cannot_be_touched() {
    assert_killed("kill", || unsafe { libc::kill(libc::getppid(), 0) == 0 });
    assert_killed("ptrace", || unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) == 0 });
    assert_killed("sched_setattr", || unsafe {
        libc::syscall(libc::SYS_sched_setattr, libc::getppid(), null::<u8>(), 0) == 0
    });
    assert_killed("getpriority", || unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_USER, 0) >= 0 });
    assert_killed("process_vm_readv", || unsafe { libc::process_vm_readv(1, null(), 0, null(), 0, 0) >= 0 });
}

#[test]
fn the_kernels_own_faults_cannot_be_caught() {
    assert_killed("userfaultfd", || unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) >= 0 });
}

#[test]
fn no_memory_becomes_code() {
    assert_killed("mmap of code", || unsafe {
        libc::mmap(null_mut(), 4096, libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANON, -1, 0)
            != libc::MAP_FAILED
    });
    assert_killed("mprotect to code", || unsafe {
        let page = libc::mmap(null_mut(), 4096, libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANON, -1, 0);
        libc::mprotect(page, 4096, libc::PROT_READ | libc::PROT_EXEC) == 0
    });
}

#[test]
fn only_kvm_answers_ioctls() {
    assert_killed("TIOCSTI", || unsafe { libc::ioctl(0, libc::TIOCSTI, c"x".as_ptr()) == 0 });
    assert_killed("UFFDIO_COPY", || unsafe { libc::ioctl(0, 0xc028_aa03, null_mut::<libc::c_void>()) == 0 });
    assert_killed("TUNSETIFF", || unsafe { libc::ioctl(0, 0x4004_54ca, null_mut::<libc::c_void>()) == 0 });
}
