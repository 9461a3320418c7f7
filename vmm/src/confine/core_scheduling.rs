//! A dedicated processor core for each VMM while it runs: where two threads share a core (SMT), the kernel then runs
//! beside it only what has its cookie, which are its own threads and the VMMs that were forked off it.

use libc::c_long;

/// Gives this process a cookie. To be called while it has one thread: those started later inherit it. False where the
/// kernel has no core scheduling, or no core has two threads.
pub(super) fn separate() -> bool {
    let (create, this_process, all_threads, nowhere): (c_long, c_long, c_long, c_long) =
        (libc::PR_SCHED_CORE_CREATE.into(), 0, libc::PR_SCHED_CORE_SCOPE_THREAD_GROUP.into(), 0);
    // SAFETY: plain numbers; the kernel writes to no memory of ours where the last of them is 0 (prctl(2)).
    let done = unsafe { libc::prctl(libc::PR_SCHED_CORE, create, this_process, all_threads, nowhere) };
    done == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel says of this thread: none where it has no core scheduling.
    fn cookie() -> Option<u64> {
        let mut cookie = 0_u64;
        let (get, this_thread, one_thread): (c_long, c_long, c_long) =
            (libc::PR_SCHED_CORE_GET.into(), 0, libc::PR_SCHED_CORE_SCOPE_THREAD.into());
        // SAFETY: the kernel writes one u64 to `cookie`, which is one.
        let done = unsafe { libc::prctl(libc::PR_SCHED_CORE, get, this_thread, one_thread, &raw mut cookie) };
        (done == 0).then_some(cookie)
    }

    #[test]
    fn a_process_has_a_cookie_where_the_kernel_gives_one_and_runs_on_where_it_does_not() {
        if separate() {
            assert!(cookie().is_some_and(|cookie| cookie != 0));
            let inherited = std::thread::spawn(cookie).join().unwrap();
            assert_eq!(inherited, cookie(), "threads that are started later have it");
        } else {
            assert!(cookie().is_none_or(|cookie| cookie == 0));
        }
    }
}
