//! How long a vCPU keeps a processor of the host that others wait for. Each vCPU thread asks for it, before
//! it gives up the system calls that it does not need to run.
//!
//! Where the guest's kernel is interpreted its timer tick takes milliseconds, and a guest that waited begins each turn
//! with one: of the scheduler's usual 3 ms nearly nothing is left for its programs, and many busy machines together do
//! little but tick. A turn as long as the time between two ticks delays other threads by no more than that: the scheduler
//! stays fair overall, and a waiting thread with a shorter slice (every other thread) runs first.

use sandboxvm_protocol::machine::HostMode;
use std::time::Duration;

/// The time between two ticks of our guest kernel (CONFIG_HZ=50).
const INTERPRETED: Duration = Duration::from_millis(20);

/// linux/sched.h, SCHED_FLAG_KEEP_POLICY: a user who runs the VMM as a batch job or in idle time alone has reasons.
const KEEP_POLICY: u64 = 0x08;

/// Asks for the slice that suits the host (sched_setattr(2), `sched_runtime` of a SCHED_OTHER thread: Linux 6.12,
/// Documentation/scheduler/sched-eevdf.rst). A kernel that knows none leaves everything as it is.
pub(crate) fn suit(mode: HostMode) {
    if mode != HostMode::Pvm {
        return;
    }
    // SAFETY: getpriority(2) takes two numbers, here those of the calling thread.
    let nice = unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, 0) };
    // The call answers 20 less the nice value, so that it is never negative; after a failure nothing is changed.
    let Ok(nice @ 1..=40) = i32::try_from(nice) else { return };
    let attributes = libc::sched_attr {
        size: u32::try_from(size_of::<libc::sched_attr>()).expect("it has 48 bytes"),
        sched_policy: 0,
        sched_flags: KEEP_POLICY,
        sched_nice: 20 - nice,
        sched_priority: 0,
        sched_runtime: u64::try_from(INTERPRETED.as_nanos()).expect("it is 20 ms"),
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the kernel reads `size` bytes of the attributes, which are all there; 0 is the calling thread.
    // Refused, as with a real-time policy, its turns are as long as they were.
    let _ = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The slice of the calling thread in nanoseconds, and its nice value.
    fn slice() -> (u64, i32) {
        // SAFETY: all zeroes are valid attributes.
        let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes 48 bytes at most, which are there.
        let read = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, 48, 0) };
        assert_eq!(read, 0);
        (attributes.sched_runtime, attributes.sched_nice)
    }

    #[test]
    fn an_interpreted_guest_has_long_turns_and_others_what_they_had() {
        std::thread::spawn(|| {
            let before = slice();
            suit(HostMode::Vmx);
            assert_eq!(slice(), before);
            suit(HostMode::Pvm);
            let (after, nice) = slice();
            // Kernels before 6.12 state none.
            assert!(after == 20_000_000 || after == before.0 && before.0 == 0, "{after}");
            assert_eq!(nice, before.1);
        })
        .join()
        .unwrap();
    }
}
