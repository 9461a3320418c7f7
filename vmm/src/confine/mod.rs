//! Giving up what a VMM does not need, before the first guest instruction: the host's namespaces, files, users and
//! privileges, resources without bound, and the system calls that are left. Each step is taken once, in
//! the order of [`crate::bring_up`]; threads and processes that need still less take another.
//!
//! A process started by root takes every step or does not run a guest. The kernel may refuse two of them even to root; these
//! are reported as missing. A process started by another user takes the steps that the host allows. The status file and
//! `inspect` list what is missing, and `doctor` says what to do about it.

mod bounds;
mod core_scheduling;
mod dispatch;
mod error;
mod isolation;
mod kvm_requests;
mod last_call;
mod own_user;
mod switches;
mod syscalls;
pub(crate) mod tracking_requests;

pub use error::ConfineError;
use error::step;
pub(crate) use last_call::unless_refused;
use rustix::process::getuid;
use sandboxvm_protocol::{
    machine::{HostMode, MemorySize},
    vmm::{JailPart, VmmThread},
};
use std::{
    os::fd::AsFd,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};
use switches::{Protection, is_off};
pub use syscalls::DeviceCalls;
use syscalls::Left;

/// Closes what the starting process left open by mistake. To be called first of all, before anything is opened here.
pub fn drop_inherited_files() {
    if is_off(Protection::Descriptors) {
        return;
    }
    // SAFETY: plain numbers; nothing of this process has opened a descriptor yet. It does not fail on any kernel that has it.
    unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
}

/// Keeps other sandboxes off the processor core that this process runs on, where two threads share one. To be called while it
/// has one thread. False where the kernel has no core scheduling or no core has two threads.
#[must_use]
pub fn separate_cores() -> bool {
    core_scheduling::separate()
}

/// Takes this process out of the host: called when `/dev/kvm` is open, before any thread is started, so that every
/// thread begins outside. Returns the parts that this host does not give.
///
/// # Errors
/// See [`ConfineError`].
pub fn isolate() -> Result<Vec<JailPart>, ConfineError> {
    bounds::be_ended_first();
    let missing = if getuid().is_root() {
        isolation::leave_the_host()?;
        if is_off(Protection::User) {
            bounds::set(true)?;
            return Ok(vec![JailPart::OwnUser, JailPart::UserNamespace]);
        }
        own_user::become_nobody()?
    } else {
        let mut missing = isolation::leave_the_host_unprivileged()?;
        missing.push(JailPart::OwnUser);
        missing
    };
    own_user::give_up_capabilities()?;
    own_user::no_new_privileges()?;
    // An ordinary user's other processes are not this sandbox's to count; in a user namespace they are not counted.
    bounds::set(!(missing.contains(&JailPart::OwnUser) && missing.contains(&JailPart::UserNamespace)))?;
    Ok(missing)
}

/// The system calls of the devices, from [`restrict_syscalls`] on.
static DEVICES: OnceLock<DeviceCalls> = OnceLock::new();

/// True once there is a filter to narrow. Without one, as in a test, threads are not confined.
static RESTRICTED: AtomicBool = AtomicBool::new(false);

/// Leaves this process, all threads it will start and every process forked off it the system calls that build and run a
/// machine, those of its `devices` included. Called after [`isolate`], before the process knows what machine that is.
///
/// # Errors
/// See [`ConfineError`].
pub fn restrict_syscalls(devices: DeviceCalls) -> Result<(), ConfineError> {
    if is_off(Protection::Seccomp) {
        return Ok(());
    }
    last_call::listen().map_err(step("listening for refused system calls"))?;
    let devices = DEVICES.get_or_init(|| devices);
    syscalls::leave(Left::EventLoop, devices)?;
    RESTRICTED.store(true, Ordering::Relaxed);
    Ok(())
}

/// Leaves the calling thread what running a vCPU takes. After [`restrict_syscalls`].
///
/// # Errors
/// See [`ConfineError`].
pub fn restrict_to_vcpu() -> Result<(), ConfineError> {
    last_call::this_is(VmmThread::Vcpu);
    narrow(Left::Vcpu)
}

/// Leaves a process forked off the VMM what writing files takes. After [`restrict_syscalls`].
///
/// # Errors
/// See [`ConfineError`].
pub fn restrict_to_writing() -> Result<(), ConfineError> {
    last_call::this_is(VmmThread::Writer);
    narrow(Left::Writer)
}

fn narrow(left: Left) -> Result<(), ConfineError> {
    if is_off(Protection::ThreadSeccomp) {
        return Ok(());
    }
    match DEVICES.get() {
        Some(devices) if RESTRICTED.load(Ordering::Relaxed) => syscalls::leave(left, devices),
        _ => Ok(()),
    }
}

/// Bounds what this process can use to what its machine takes: memory, and the length of files. `disk` is the size of the
/// largest.
///
/// # Errors
/// See [`ConfineError`].
pub fn bound_to_machine(memory: MemorySize, disk: u64) -> Result<(), ConfineError> {
    bounds::set_for_machine(memory, disk)
}

/// Has a refused system call reported in the status file, which stays open as long as this process or until
/// [`report_nowhere`].
pub fn report_refused_calls(status: impl AsFd, mode: HostMode) {
    last_call::report_to(status, mode);
}

/// In a new process: its parent's status file is not its own.
pub fn report_nowhere() {
    last_call::report_nowhere();
}
