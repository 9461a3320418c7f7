//! The device against a driver that keeps to the rules of virtio and of Linux's vsock, and against one that does not.
//! Rings are real ones in real guest memory, clients are real Unix sockets; only the guest's kernel is played.

mod abuse;
mod guest;
mod lifecycle;
mod peer;
mod random;
mod reset;
mod stream;

/// What a device holds, for tests that see to it that it stays bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Footprint {
    pub(super) connections: usize,
    pub(super) handshakes: usize,
    pub(super) deadlines: usize,
    /// Bytes waiting for clients.
    pub(super) waiting: usize,
    /// Memory allocated for them.
    pub(super) allocated: usize,
    pub(super) replies: usize,
    pub(super) runnable: usize,
}

/// Runs `work` in a child made by fork(2), to which it must not matter that the other threads are gone: it uses memory,
/// descriptors and system calls, and the C library keeps its allocator usable over a fork.
fn in_child(work: impl FnOnce()) {
    in_child_and_here((), |()| work());
}

/// Runs `work` on the child's copy of `value` and gives back the parent's.
fn in_child_and_here<T>(value: T, work: impl FnOnce(T)) -> T {
    // SAFETY: the child does what is said above and leaves with `_exit` whether or not it panics.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(value)));
        // SAFETY: ends the child immediately, with nothing of this process run twice.
        unsafe { libc::_exit(i32::from(result.is_err())) };
    }
    let mut status = 0;
    // SAFETY: waits for the child made above, and writes only to `status`.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0, "the child failed");
    value
}
