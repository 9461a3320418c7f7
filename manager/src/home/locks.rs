//! Every advisory file lock (flock(2)) of a home: its name, what it protects, and its rank in the
//! order of locks.
//!
//! The kernel releases a lock when the last descriptor of its open file description is closed,
//! however its holder ended. A lock whose file a sweep may delete is taken with
//! [`FileLock::try_named`], which checks that the file still has its name: a lock on a deleted file
//! excludes no process.
//!
//! **Order.** A task that holds a lock may wait without bound only for locks of a higher rank
//! ([`LockClass`], in the order of its variants). A lock that is tried, or waited for with a bound,
//! may be taken in any order: such a taker gives up instead of blocking, so it is never part of a
//! deadlock. Debug builds panic when the order is violated. The page docs/design/locks.md describes
//! who holds which lock for how long.
//!
//! A sandbox's directory itself is locked too, by its maker or by the `run` that owns it
//! ([`SandboxDirectory::try_claim`](crate::home::directory::SandboxDirectory::try_claim)): always
//! tried, never waited for.

use crate::home::{
    directory::{DirectoryError, SandboxDirectory},
    flock::{self, Sharing},
};
use rustix::fs::{CWD, Mode, OFlags};
use std::{
    fs::File,
    io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// Time between two attempts of a bounded wait that blocks its thread.
const BLOCKING_POLL: Duration = Duration::from_millis(1);

/// The locks of a home, lowest rank first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum LockClass {
    /// `ready/<key>.lock`: making one ready snapshot.
    ReadySnapshot,
    /// `use` of a sandbox: shared while a client is connected to its agent, exclusive while the
    /// idle rule pauses it.
    Activity,
    /// `idle.paused` of a sandbox: resuming a machine that the idle rule paused.
    IdleResume,
    /// `change.lock` of a sandbox: changing what its disk and memory are made of.
    Change,
    /// `supervisor.lock` of a sandbox: being its supervisor.
    Supervisor,
    /// `lock` of a sandbox: exclusive for the life of its VMM, shared to keep a VMM from starting.
    Vmm,
    /// `volumes/<name>`: exclusive while a machine may write the volume, shared while machines read it.
    Volume,
    /// `staging/` itself: shared between making a directory in it and claiming that, exclusive
    /// while a sweep lists it.
    Staging,
    /// `names/` itself: claiming and releasing names.
    Names,
    /// `admitted`: the ledger of memory that was promised.
    Ledger,
    /// `groups/` itself: filling and draining the pool of control groups.
    Groups,
    /// An audit log: appending a line. Innermost, since every other change is logged.
    Audit,
}

/// A held lock. Dropping it releases the lock.
#[derive(Debug)]
pub(crate) struct FileLock {
    file: File,
    #[cfg(debug_assertions)]
    _held: order::Held,
}

impl FileLock {
    /// Takes the lock if that is possible now. Returns `None` while another process or task
    /// excludes it.
    pub(crate) fn try_on(class: LockClass, sharing: Sharing, file: File) -> io::Result<Option<Self>> {
        Ok(if flock::try_take(sharing, &file)? { Some(Self::held(class, file)) } else { None })
    }

    /// Opens the file at `path`, creating it with mode 0600, and takes the lock exclusively.
    /// Returns `None` while another process has it, or when the file was deleted meanwhile.
    pub(crate) fn try_named(class: LockClass, path: &Path) -> Result<Option<Self>, DirectoryError> {
        let fail = |error| DirectoryError::new("lock", path, error);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(CWD, path, flags, Mode::RUSR | Mode::WUSR).map_err(fail)?);
        if !flock::try_take(Sharing::Exclusive, &file).map_err(|error| DirectoryError::new("lock", path, error))? {
            return Ok(None);
        }
        let is_named = flock::is_named(&file, path).map_err(|error| DirectoryError::new("lock", path, error))?;
        Ok(is_named.then(|| Self::held(class, file)))
    }

    /// Waits for the lock without bound, blocking the thread. For locks that are held for
    /// microseconds.
    pub(crate) fn wait(class: LockClass, sharing: Sharing, file: File) -> io::Result<Self> {
        check_order(class);
        flock::wait(sharing, &file)?;
        Ok(Self::held(class, file))
    }

    /// Waits for the lock for at most `within`, blocking the thread. Returns `None` after that.
    pub(crate) fn wait_within(
        class: LockClass,
        sharing: Sharing,
        file: File,
        within: Duration,
    ) -> io::Result<Option<Self>> {
        let deadline = Instant::now() + within;
        loop {
            if flock::try_take(sharing, &file)? {
                return Ok(Some(Self::held(class, file)));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            thread::sleep(BLOCKING_POLL);
        }
    }

    /// Waits for the lock without bound, trying again every `poll`. Cancel safe.
    pub(crate) async fn wait_async(class: LockClass, sharing: Sharing, file: File, poll: Duration) -> io::Result<Self> {
        check_order(class);
        while !flock::try_take(sharing, &file)? {
            tokio::time::sleep(poll).await;
        }
        Ok(Self::held(class, file))
    }

    /// Like [`Self::wait_async`], for at most `within`. Returns `None` after that. Cancel safe.
    pub(crate) async fn wait_async_within(
        class: LockClass,
        sharing: Sharing,
        file: File,
        poll: Duration,
        within: Duration,
    ) -> io::Result<Option<Self>> {
        let deadline = tokio::time::Instant::now() + within;
        while !flock::try_take(sharing, &file)? {
            if tokio::time::Instant::now() >= deadline {
                return Ok(None);
            }
            tokio::time::sleep(poll).await;
        }
        Ok(Some(Self::held(class, file)))
    }

    /// Returns the locked file.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    #[cfg_attr(not(debug_assertions), expect(unused_variables, reason = "only debug builds check the order"))]
    fn held(class: LockClass, file: File) -> Self {
        Self {
            file,
            #[cfg(debug_assertions)]
            _held: order::Held::new(class),
        }
    }
}

/// Returns true while another process or task holds the file's lock so that it excludes shared
/// holders.
pub(crate) fn is_held_exclusively(directory: &SandboxDirectory, name: &str) -> Result<bool, DirectoryError> {
    let file = match directory.open_file(name, OFlags::RDONLY) {
        Ok(file) => file,
        Err(error) if error.is_not_found() => return Ok(false),
        Err(error) => return Err(error),
    };
    flock::try_take(Sharing::Shared, &file).map(|free| !free).map_err(|error| directory.error("lock", name, error))
}

/// Opens a directory as the file of its own lock.
pub(crate) fn directory_file(path: &Path) -> Result<File, DirectoryError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path, flags, Mode::empty());
    opened.map(File::from).map_err(|error| DirectoryError::new("lock", path, error))
}

#[cfg(debug_assertions)]
fn check_order(class: LockClass) {
    order::check(class);
}

#[cfg(not(debug_assertions))]
fn check_order(_: LockClass) {}

/// The locks that each task, or each thread outside of tasks, holds.
#[cfg(debug_assertions)]
mod order {
    use super::LockClass;
    use std::{
        collections::HashMap,
        sync::{LazyLock, Mutex, PoisonError},
        thread::{self, ThreadId},
    };

    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    enum Holder {
        Task(tokio::task::Id),
        Thread(ThreadId),
    }

    static HELD: LazyLock<Mutex<HashMap<Holder, Vec<LockClass>>>> = LazyLock::new(Mutex::default);

    fn current() -> Holder {
        tokio::task::try_id().map_or_else(|| Holder::Thread(thread::current().id()), Holder::Task)
    }

    /// Panics if the current task holds a lock that `class` must not be waited for under.
    pub(super) fn check(class: LockClass) {
        let all = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        let higher = all.get(&current()).into_iter().flatten().copied().find(|held| *held >= class);
        drop(all);
        assert!(higher.is_none(), "lock order: a task that holds {higher:?} must not wait for {class:?}");
    }

    /// An entry of the table, removed when it is dropped, also by another task.
    #[derive(Debug)]
    pub(super) struct Held {
        holder: Holder,
        class: LockClass,
    }

    impl Held {
        pub(super) fn new(class: LockClass) -> Self {
            let holder = current();
            HELD.lock().unwrap_or_else(PoisonError::into_inner).entry(holder).or_default().push(class);
            Self { holder, class }
        }
    }

    impl Drop for Held {
        fn drop(&mut self) {
            let mut all = HELD.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(classes) = all.get_mut(&self.holder) {
                if let Some(at) = classes.iter().rposition(|class| *class == self.class) {
                    classes.swap_remove(at);
                }
                if classes.is_empty() {
                    all.remove(&self.holder);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> File {
        File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
    }

    #[test]
    fn shared_holders_exclude_an_exclusive_one_until_they_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let take = |sharing| FileLock::try_on(LockClass::Activity, sharing, open(&path)).unwrap();
        let (first, second) = (take(Sharing::Shared), take(Sharing::Shared));
        assert!(first.is_some() && second.is_some() && take(Sharing::Exclusive).is_none());
        drop((first, second));
        assert!(take(Sharing::Exclusive).is_some());
    }

    #[test]
    fn lock_on_a_deleted_file_is_not_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k.lock");
        let held = FileLock::try_named(LockClass::ReadySnapshot, &path).unwrap().unwrap();
        assert!(FileLock::try_named(LockClass::ReadySnapshot, &path).unwrap().is_none());
        std::fs::remove_file(&path).unwrap();
        let next = FileLock::try_named(LockClass::ReadySnapshot, &path).unwrap();
        assert!(next.is_some(), "the new file of that name is another lock");
        drop(held);
    }

    #[test]
    fn bounded_wait_times_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let _held = FileLock::wait(LockClass::Supervisor, Sharing::Exclusive, open(&path)).unwrap();
        let within = Duration::from_millis(20);
        let waited = FileLock::wait_within(LockClass::Supervisor, Sharing::Shared, open(&path), within);
        assert!(waited.unwrap().is_none());
    }

    #[tokio::test]
    async fn cancelled_wait_does_not_take_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = FileLock::try_on(LockClass::Change, Sharing::Exclusive, open(&path)).unwrap().unwrap();
        let poll = Duration::from_millis(1);
        let file = open(&path);
        let waiting = tokio::spawn(FileLock::wait_async(LockClass::Change, Sharing::Exclusive, file, poll));
        tokio::time::sleep(Duration::from_millis(10)).await;
        waiting.abort();
        assert!(waiting.await.is_err());
        drop(held);
        assert!(FileLock::try_on(LockClass::Change, Sharing::Exclusive, open(&path)).unwrap().is_some());
    }

    #[cfg(debug_assertions)]
    #[test]
    fn waiting_against_the_order_panics_and_trying_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let (names, ledger) = (dir.path().join("names"), dir.path().join("ledger"));
        let held = FileLock::wait(LockClass::Ledger, Sharing::Exclusive, open(&ledger)).unwrap();
        let wait = || FileLock::wait(LockClass::Names, Sharing::Exclusive, open(&names)).map(drop);
        assert!(FileLock::try_on(LockClass::Names, Sharing::Exclusive, open(&names)).unwrap().is_some());
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(wait)).unwrap_err();
        let message = caught.downcast_ref::<String>().unwrap();
        assert!(message.contains("holds Some(Ledger) must not wait for Names"), "{message}");
        drop(held);
        wait().unwrap();
    }
}
