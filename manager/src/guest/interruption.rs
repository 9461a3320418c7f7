//! Why a sandbox was taken away from under those who use it: written down before it is, so that a command whose
//! connection breaks can say so.
//!
//! ```text
//! ending   when (CLOCK_BOOTTIME, milliseconds, 20 digits), and `reset`, `removed` or `expired`
//! ```
//! It counts for those who opened the sandbox's directory before that moment. A sandbox that is gone with its directory
//! has its audit log left, which says whether it had expired. All of it is for people: where it cannot be written, as on
//! a full disk, reasons become vaguer and nothing else changes.

use crate::{
    audit::{Event, Line, Trail},
    clock,
    home::directory::SandboxDirectory,
};
use rustix::fs::OFlags;
use std::{fmt, os::unix::fs::FileExt};

const ENDING: &str = "ending";
/// Digits of 2^64, a space, the longest word and a line feed: written in place, by one write of one length.
const LENGTH: usize = 29;

/// What became of a sandbox while it was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interruption {
    /// It was put back to a snapshot, or to where it began: all its processes are gone.
    Reset,
    /// It was removed.
    Removed,
    /// Its time to live, or the time it may be idle, was over.
    Expired,
}

impl Interruption {
    const ALL: [Self; 3] = [Self::Reset, Self::Removed, Self::Expired];

    fn word(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Removed => "removed",
            Self::Expired => "expired",
        }
    }
}

impl fmt::Display for Interruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reset => "was reset",
            Self::Removed => "was removed",
            Self::Expired => "expired",
        })
    }
}

/// Says that `directory`'s machine is about to be ended, and why. One that expired is removed for that reason.
pub(crate) fn announce(directory: &SandboxDirectory, why: Interruption) {
    if why == Interruption::Removed && matches!(written(directory), Some((_, Interruption::Expired))) {
        return;
    }
    let text = format!("{:020} {:7}\n", clock::since_boot().as_millis(), why.word());
    let file = match directory.create_file(ENDING) {
        Err(error) if error.is_already_there() => directory.open_file(ENDING, OFlags::WRONLY),
        created => created,
    };
    // See above: readers learn less, and that is all.
    let _ = file.map(|file| file.write_all_at(text.as_bytes(), 0));
}

/// It was not done.
pub(crate) fn withdraw(directory: &SandboxDirectory) {
    // What stays misleads only those whose connection breaks for another reason.
    let _ = directory.unlink(ENDING);
}

/// What became of the sandbox since `directory` was opened; `None` while nothing did, as far as was written down.
pub(crate) fn since_opened(directory: &SandboxDirectory, trail: &Trail) -> Option<Interruption> {
    if !directory.exists() {
        return Some(if had_expired(trail) { Interruption::Expired } else { Interruption::Removed });
    }
    let (moment, why) = written(directory)?;
    (moment >= directory.opened_at().as_millis()).then_some(why)
}

/// Milliseconds since the host's boot, and what was announced then.
fn written(directory: &SandboxDirectory) -> Option<(u128, Interruption)> {
    let text = directory.read(ENDING, LENGTH as u64).ok()?;
    let (moment, word) = std::str::from_utf8(&text).ok()?.trim_end().split_once(' ')?;
    let why = Interruption::ALL.into_iter().find(|why| why.word() == word)?;
    Some((moment.parse().ok()?, why))
}

/// True when the last that the log of a removed sandbox says of it is that its time was over.
fn had_expired(trail: &Trail) -> bool {
    let Ok((text, _)) = trail.read_before(None) else { return false };
    let text = String::from_utf8_lossy(&text);
    let events = text.lines().rev().filter_map(|line| Some(serde_json::from_str::<Line>(line).ok()?.event));
    for event in events {
        match event {
            Event::TimeUp { .. } | Event::IdleEnded { .. } => return true,
            // A machine that was started since: what ended it is something else.
            Event::Created { .. } | Event::Reset { .. } | Event::Resumed => return false,
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{home::layout::Home, limits::lifetime::AtEnd};
    use sandboxvm_protocol::ids::SandboxId;

    fn sandbox() -> (tempfile::TempDir, SandboxDirectory, Trail) {
        let root = tempfile::tempdir().unwrap();
        let home = Home::open(root.path()).unwrap();
        let id = SandboxId::try_from("abcdefgh".to_owned()).unwrap();
        let directory = SandboxDirectory::create(home.sandbox(&id)).unwrap();
        let trail = Trail::of(&home, &id);
        (root, directory, trail)
    }

    #[test]
    fn those_who_used_it_before_learn_why_and_those_who_come_later_do_not() {
        let (_root, directory, trail) = sandbox();
        assert_eq!(since_opened(&directory, &trail), None);
        for why in Interruption::ALL {
            announce(&directory, why);
            assert_eq!(since_opened(&directory, &trail), Some(why));
        }
        announce(&directory, Interruption::Removed);
        assert_eq!(since_opened(&directory, &trail), Some(Interruption::Expired), "that is why it is removed");
        let written = directory.read(ENDING, LENGTH as u64).unwrap();
        assert_eq!(written.len(), LENGTH);
        directory.replace(ENDING, b"00000000000000000000 reset  \n").unwrap();
        assert_eq!(since_opened(&directory, &trail), None, "of a time before");
        for broken in [&b""[..], b"reset", b"x reset", b"99999999999999 burnt", b"\xff"] {
            directory.replace(ENDING, broken).unwrap();
            assert_eq!(since_opened(&directory, &trail), None, "{broken:?}");
        }
        directory.replace(ENDING, &written).unwrap();
        assert_eq!(since_opened(&directory, &trail), Some(Interruption::Expired));
        withdraw(&directory);
        assert_eq!(since_opened(&directory, &trail), None);
    }

    #[test]
    fn of_a_directory_that_is_gone_the_log_says_whether_it_had_expired() {
        let (_root, directory, trail) = sandbox();
        std::fs::remove_dir_all(directory.path()).unwrap();
        assert_eq!(since_opened(&directory, &trail), Some(Interruption::Removed), "without a log");
        trail.append(Event::Paused).unwrap();
        trail.append(Event::Removed).unwrap();
        assert_eq!(since_opened(&directory, &trail), Some(Interruption::Removed));
        trail.append(Event::TimeUp { then: AtEnd::Remove }).unwrap();
        trail.append(Event::Stopped).unwrap();
        trail.append(Event::Removed).unwrap();
        assert_eq!(since_opened(&directory, &trail), Some(Interruption::Expired));
        trail.append(Event::Reset { to: None }).unwrap();
        trail.append(Event::Removed).unwrap();
        assert_eq!(since_opened(&directory, &trail), Some(Interruption::Removed));
    }
}
