//! The file of a sandbox's audit log: appends a line, and checks all of them.
//!
//! `<id>.jsonl` holds the lines, and `<id>.head` the number and hash of the last, so that lines
//! missing at the end are noticed. The process that acts changes both under an exclusive lock
//! (flock) on the log. A writer that is killed leaves either no line, a complete line that the head
//! does not include yet, or a part of one, which the next writer removes and reports. Lines may
//! only be appended, never changed.
//!
//! Lines are not synced to the disk. A sync before each command takes milliseconds, which is more
//! than a command takes, and it would only preserve the last seconds before a power failure, in
//! which the sandboxes themselves end. So a host that loses power may lose the last lines of its
//! logs, and a head that reached the disk before its line makes [`Trail::verify`] report the log as
//! shortened: a line that was lost cannot be distinguished from one that was removed.

use crate::{
    audit::{
        chain::{self, Head, MAX_LINE, Verified, Violation},
        event::Event,
        line::{Actor, Line},
    },
    home::{
        flock::Sharing,
        layout::Home,
        locks::{FileLock, LockClass},
        private,
    },
};
use rustix::{
    fs::{Mode, OFlags},
    process::{getpid, getuid},
};
use sandboxvm_protocol::ids::SandboxId;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, BufReader, Read, Write},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

const MAX_HEAD: u64 = 4096;
pub(crate) const EXTENSION: &str = "jsonl";
pub(crate) const HEAD: &str = "head";
/// How long the log of a removed sandbox is kept, unless a caller says otherwise.
pub(crate) const KEPT_FOR: Duration = Duration::from_secs(30 * 24 * 3600);

/// Why a line was not written, or a log could not be read.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// A file operation failed.
    #[error("cannot {what} the audit log {}: {source}", .path.display())]
    Io {
        /// The operation.
        what: &'static str,
        /// Path of the file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The log is not valid.
    #[error("audit log {} is damaged: {source}", .path.display())]
    Damaged {
        /// Path of the file.
        path: PathBuf,
        /// What is wrong.
        source: Violation,
    },
    /// The last line is incomplete.
    #[error("audit log {} is corrupt: the last line is incomplete", .0.display())]
    NoEnd(PathBuf),
    /// The log has its maximum size.
    #[error("audit log {} is full: it has reached its maximum of {max} bytes", .path.display())]
    Full {
        /// Path of the file.
        path: PathBuf,
        /// Its maximum size in bytes.
        max: u64,
    },
    /// The sandbox has no log.
    #[error("sandbox {0} has no audit log")]
    None(SandboxId),
}

/// The audit log of one sandbox.
#[derive(Debug, Clone)]
pub struct Trail {
    sandbox: SandboxId,
    path: PathBuf,
    /// Maximum size of the log in bytes. A sandbox whose log is full cannot start anything new
    /// until the log was archived and removed.
    max: u64,
}

/// The content of `<id>.head`.
#[derive(Debug, Serialize, Deserialize)]
struct StoredHead {
    seq: u64,
    hash: String,
}

impl Trail {
    pub(crate) fn of(home: &Home, sandbox: &SandboxId) -> Self {
        Self {
            sandbox: sandbox.clone(),
            path: home.audit().join(format!("{sandbox}.{EXTENSION}")),
            max: home.max_audit_log(),
        }
    }

    /// Returns the sandbox that the log belongs to.
    #[must_use]
    pub fn sandbox(&self) -> &SandboxId {
        &self.sandbox
    }

    /// Returns the path of the log.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns true if the log or its head exists.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.path.exists() || self.head_path().exists()
    }

    /// Returns the number of bytes that the log uses on the disk.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        let files = [self.path.clone(), self.head_path()];
        files.iter().filter_map(|path| fs::symlink_metadata(path).ok()).map(|file| file.blocks() * 512).sum()
    }

    fn head_path(&self) -> PathBuf {
        self.path.with_extension(HEAD)
    }

    pub(super) fn fail(&self, what: &'static str) -> impl FnOnce(io::Error) -> AuditError {
        let path = self.path.clone();
        move |source| AuditError::Io { what, path, source }
    }

    /// Appends a line and returns its number.
    ///
    /// # Errors
    /// Every [`AuditError`]; the line was not appended then.
    pub(crate) fn append(&self, event: Event) -> Result<u64, AuditError> {
        let log = self.open(OFlags::RDWR | OFlags::CREATE | OFlags::APPEND)?;
        let lock = FileLock::wait(LockClass::Audit, Sharing::Exclusive, log).map_err(self.fail("lock"))?;
        let log = lock.file();
        let (mut head, end, torn) = self.end_of(log)?;
        if end >= self.max {
            return Err(AuditError::Full { path: self.path.clone(), max: self.max });
        }
        let mut text = Vec::new();
        if torn > 0 {
            log.set_len(end).map_err(self.fail("repair"))?;
            head = self.seal_into(&mut text, head, Event::Torn { bytes: torn })?;
        }
        head = self.seal_into(&mut text, head, event)?;
        // One write, so that a process that is killed leaves a part of the text only if the disk is
        // full.
        let mut writer = log;
        if let Err(error) = writer.write_all(&text) {
            // The part that was written must not stay. If that fails too, the next writer removes
            // it.
            let _ = log.set_len(end);
            return Err(self.fail("write to")(error));
        }
        self.store_head(&head)?;
        Ok(head.seq)
    }

    /// Appends a line about something that was done or happened already, if that is possible.
    pub(crate) fn note(&self, event: Event) {
        // An error here would say that it was not done. The next act that is logged before it is
        // done fails instead.
        let _ = self.append(event);
    }

    /// Like [`Self::note`], for what a guest can cause as often as it wants: such lines use at most half
    /// of the log, so that the guest cannot keep its owner from acting on it. Returns false if the
    /// line was left out.
    pub(crate) fn note_of_guest(&self, event: Event) -> bool {
        let length = fs::symlink_metadata(&self.path).map_or(0, |log| log.len());
        length < self.max / 2 && self.append(event).is_ok()
    }

    /// Like [`Self::note`], for a sandbox that may have no log because it was never completed.
    pub(crate) fn note_if_any(&self, event: Event) {
        if self.exists() {
            self.note(event);
        }
    }

    fn open(&self, flags: OFlags) -> Result<File, AuditError> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let opened = rustix::fs::open(&self.path, flags, Mode::RUSR | Mode::WUSR);
        opened.map(File::from).map_err(|error| self.fail("open")(error.into()))
    }

    fn seal_into(&self, text: &mut Vec<u8>, head: Head, event: Event) -> Result<Head, AuditError> {
        let line = Line {
            seq: head.seq + 1,
            time: SystemTime::now(),
            sandbox: self.sandbox.clone(),
            by: Actor { uid: getuid().as_raw(), pid: getpid().as_raw_pid().unsigned_abs() },
            event,
            prev: head.hash,
        };
        let (sealed, head) = chain::seal(&line).map_err(|error| self.fail("write to")(error.into()))?;
        text.extend(sealed);
        Ok(head)
    }

    /// Returns the head after the last complete line, the position where that line ends, and the
    /// number of bytes of an incomplete line that follow.
    fn end_of(&self, log: &File) -> Result<(Head, u64, u64), AuditError> {
        let length = log.metadata().map_err(self.fail("read"))?.len();
        if length == 0 {
            return Ok((Head::genesis(), 0, 0));
        }
        // Most lines are short.
        let mut window = 4096_u64;
        loop {
            let start = length.saturating_sub(window);
            let mut tail = vec![0; usize::try_from(length - start).unwrap_or(usize::MAX)];
            log.read_exact_at(&mut tail, start).map_err(self.fail("read"))?;
            let newline = tail.iter().rposition(|byte| *byte == b'\n');
            let begin = newline.map(|end| tail[..end].iter().rposition(|byte| *byte == b'\n').map(|at| at + 1));
            match (newline, begin) {
                (Some(end), Some(Some(begin))) => return self.parse_end(&tail, start, begin, end),
                (Some(end), Some(None)) if start == 0 => return self.parse_end(&tail, start, 0, end),
                (None, _) if start == 0 => return Ok((Head::genesis(), 0, length)),
                // The window would hold a complete line and a part of one.
                _ if window > 2 * MAX_LINE => return Err(AuditError::NoEnd(self.path.clone())),
                _ => window *= 8,
            }
        }
    }

    fn parse_end(&self, tail: &[u8], start: u64, begin: usize, end: usize) -> Result<(Head, u64, u64), AuditError> {
        #[derive(Deserialize)]
        struct Sequence {
            seq: u64,
        }
        let no_end = || AuditError::NoEnd(self.path.clone());
        let text = std::str::from_utf8(&tail[begin..end]).map_err(|_| no_end())?;
        let (hashed, hash) = chain::unseal(text).ok_or_else(no_end)?;
        let Sequence { seq } = serde_json::from_str(&hashed).map_err(|_| no_end())?;
        let after = tail.len() - end - 1;
        Ok((Head { seq, hash: hash.to_owned() }, start + end as u64 + 1, after as u64))
    }

    fn store_head(&self, head: &Head) -> Result<(), AuditError> {
        let stored = StoredHead { seq: head.seq, hash: head.hash.clone() };
        let json = serde_json::to_vec(&stored).map_err(|error| self.fail("write the head of")(error.into()))?;
        // Written to another file and renamed: readers of the head take no lock, so they never
        // block this process.
        let beside = self.path.with_extension("head.new");
        private::write(&beside, json)
            .and_then(|()| fs::rename(&beside, self.head_path()))
            .map_err(self.fail("write the head of"))
    }

    fn stored_head(&self) -> Result<Option<Head>, AuditError> {
        let path = self.head_path();
        let mut json = Vec::new();
        match File::open(&path).and_then(|file| file.take(MAX_HEAD).read_to_end(&mut json)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(AuditError::Io { what: "read the head of", path, source }),
        }
        let stored: StoredHead = serde_json::from_slice(&json).map_err(|error| AuditError::Io {
            what: "read the head of",
            path,
            source: error.into(),
        })?;
        Ok(Some(Head { seq: stored.seq, hash: stored.hash }))
    }

    /// Checks that every line is present and unchanged.
    ///
    /// # Errors
    /// [`AuditError::Damaged`] when a line is not.
    pub fn verify(&self) -> Result<Verified, AuditError> {
        let damaged = |source| AuditError::Damaged { path: self.path.clone(), source };
        let log = match self.open_existing() {
            Err(AuditError::None(id)) => {
                return Err(match self.stored_head()? {
                    Some(last) => damaged(Violation::Shortened { found: 0, expected: last.seq }),
                    None => AuditError::None(id),
                });
            }
            opened => opened?,
        };
        // The lock keeps others from writing between the two reads.
        let lock = FileLock::wait(LockClass::Audit, Sharing::Shared, log).map_err(self.fail("lock"))?;
        let log = lock.file();
        let last = self.stored_head()?;
        chain::verify(BufReader::new(log), &self.sandbox, last.as_ref()).map_err(damaged)
    }

    pub(super) fn open_existing(&self) -> Result<File, AuditError> {
        match self.open(OFlags::RDONLY) {
            Err(AuditError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Err(AuditError::None(self.sandbox.clone()))
            }
            opened => opened,
        }
    }

    /// Returns the time since the last write, if the log exists.
    pub(super) fn age(&self) -> Option<Duration> {
        fs::metadata(&self.path).ok()?.modified().ok()?.elapsed().ok()
    }

    pub(super) fn remove(&self) -> io::Result<()> {
        for path in [self.path.clone(), self.head_path()] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trail() -> (tempfile::TempDir, Trail) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        let trail = Trail::of(&home, &SandboxId::try_from("abcdefgh".to_owned()).unwrap());
        (dir, trail)
    }

    fn violation(trail: &Trail) -> Violation {
        match trail.verify() {
            Err(AuditError::Damaged { source, .. }) => source,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn written_log_is_valid_and_changed_logs_are_not() {
        let (_dir, trail) = trail();
        assert!(matches!(trail.verify(), Err(AuditError::None(_))));
        for seq in 1..=5 {
            let event = Event::NotStarted { exec: seq, reason: format!("number {seq}, \"hash\":\"quoted\"") };
            assert_eq!(trail.append(event).unwrap(), seq);
        }
        assert_eq!(trail.verify().unwrap().lines, 5);
        let good = fs::read_to_string(trail.path()).unwrap();
        let lines: Vec<&str> = good.split_inclusive('\n').collect();
        let damage = |text: String| {
            fs::write(trail.path(), text).unwrap();
            violation(&trail)
        };
        assert_eq!(damage(good.replace("number 3", "number 8")), Violation::Changed(3));
        assert_eq!(damage(lines[..2].concat() + &lines[3..].concat()), Violation::Broken(3));
        assert_eq!(damage([lines[0], lines[2], lines[1], lines[3], lines[4]].concat()), Violation::Broken(2));
        assert_eq!(damage(lines[1..].concat()), Violation::Broken(1));
        assert_eq!(damage(lines[..4].concat()), Violation::Shortened { found: 4, expected: 5 });
        assert_eq!(damage(String::new()), Violation::Shortened { found: 0, expected: 5 });
        assert_eq!(damage(good.replace("abcdefgh", "hgfedcba")), Violation::Changed(1));
        assert!(matches!(damage(lines[..4].concat() + "{}\n"), Violation::NotALine(5, _)));
        assert!(matches!(damage(good[..good.len() - 3].to_owned()), Violation::NotALine(5, _)));
        fs::write(trail.path(), good).unwrap();
        trail.verify().unwrap();
        fs::remove_file(trail.path()).unwrap();
        assert_eq!(violation(&trail), Violation::Shortened { found: 0, expected: 5 });
    }

    #[test]
    fn replaced_log_is_noticed() {
        let (_dir, trail) = trail();
        trail.append(Event::Paused).unwrap();
        trail.append(Event::Resumed).unwrap();
        let head = fs::read(trail.head_path()).unwrap();
        fs::remove_file(trail.path()).unwrap();
        trail.append(Event::Paused).unwrap();
        trail.append(Event::Stopped).unwrap();
        fs::write(trail.head_path(), head).unwrap();
        assert_eq!(violation(&trail), Violation::Replaced(2));
    }

    #[test]
    fn incomplete_line_is_removed_and_reported() {
        let (_dir, trail) = trail();
        trail.append(Event::Paused).unwrap();
        let mut text = fs::read_to_string(trail.path()).unwrap();
        for part in ["{\"seq\":2,\"ti".to_owned(), "x".repeat(9000)] {
            text.push_str(&part);
            fs::write(trail.path(), &text).unwrap();
            let last = trail.append(Event::Resumed).unwrap();
            assert_eq!(trail.verify().unwrap().lines, last);
            text = fs::read_to_string(trail.path()).unwrap();
            assert!(text.contains(&format!("\"event\":\"torn\",\"bytes\":{}", part.len())), "{text}");
        }
        fs::write(trail.path(), "{\"seq\":1").unwrap();
        fs::remove_file(trail.head_path()).unwrap();
        assert_eq!(trail.append(Event::Resumed).unwrap(), 2);
        trail.verify().unwrap();
    }

    #[test]
    fn lines_can_follow_long_lines() {
        let (_dir, trail) = trail();
        trail.append(Event::NotStarted { exec: 0, reason: "x".repeat(300_000) }).unwrap();
        assert_eq!(trail.append(Event::Paused).unwrap(), 2);
        assert_eq!(trail.verify().unwrap().lines, 2);
        let (all, end) = trail.read_from(0).unwrap();
        assert_eq!(end, all.len() as u64);
        assert_eq!(trail.read_from(end).unwrap(), (Vec::new(), end));
    }

    #[test]
    fn concurrent_writers_make_one_chain() {
        let (_dir, trail) = trail();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..25).for_each(|_| assert!(trail.append(Event::Paused).is_ok())));
            }
        });
        assert_eq!(trail.verify().unwrap().lines, 100);
    }

    #[test]
    fn symbolic_link_is_not_accepted_as_a_log() {
        let (dir, trail) = trail();
        let elsewhere = dir.path().join("elsewhere");
        fs::write(&elsewhere, "").unwrap();
        std::os::unix::fs::symlink(&elsewhere, trail.path()).unwrap();
        assert!(trail.append(Event::Paused).is_err());
        assert_eq!(fs::read(&elsewhere).unwrap(), b"");
    }
}
