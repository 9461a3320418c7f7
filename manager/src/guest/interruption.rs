//! Records why a sandbox is about to be ended or reset while clients use it, so that a command
//! whose connection breaks can report the reason.
//!
//! ```text
//! ending   when (CLOCK_BOOTTIME, milliseconds, 20 digits), and `reset`, `removed` or `expired`
//! ```
//! The record counts for clients that opened the sandbox's directory before that moment. If the
//! directory was removed, the audit log is left, which shows whether the sandbox had expired. All
//! of this is only for messages to users: if it cannot be written, as on a full disk, reasons
//! become vaguer, and nothing else may change.

use crate::{
    audit::{Event, Line, Trail},
    clock,
    home::directory::SandboxDirectory,
};
use rustix::fs::OFlags;
use std::{fmt, os::unix::fs::FileExt};

const ENDING: &str = "ending";
/// Length of the record in bytes: the digits of 2^64, a space, the longest word and a line feed.
/// Written in place, by one write with a fixed length.
const LENGTH: usize = 29;

/// What happened to a sandbox while it was in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interruption {
    /// The sandbox was reset to a snapshot or to its start: all its processes have ended.
    Reset,
    /// The sandbox was removed.
    Removed,
    /// The time to live was over, or the sandbox was idle for too long.
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

/// Records that the machine of `directory` is about to be ended, and why. A sandbox that is removed
/// because it expired keeps that reason.
pub(crate) fn announce(directory: &SandboxDirectory, why: Interruption) {
    if why == Interruption::Removed && matches!(written(directory), Some((_, Interruption::Expired))) {
        return;
    }
    let text = format!("{:020} {:7}\n", clock::since_boot().as_millis(), why.word());
    let file = match directory.create_file(ENDING) {
        Err(error) if error.is_already_there() => directory.open_file(ENDING, OFlags::WRONLY),
        created => created,
    };
    // An error is ignored: it only makes reasons vaguer.
    let _ = file.map(|file| file.write_all_at(text.as_bytes(), 0));
}

/// Removes the record of an act that was not carried out.
pub(crate) fn withdraw(directory: &SandboxDirectory) {
    // A record that stays misleads only clients whose connection breaks for another reason.
    let _ = directory.unlink(ENDING);
}

/// Returns what happened to the sandbox since `directory` was opened, or `None` if nothing was
/// recorded.
pub(crate) fn since_opened(directory: &SandboxDirectory, trail: &Trail) -> Option<Interruption> {
    if !directory.exists() {
        return Some(if had_expired(trail) { Interruption::Expired } else { Interruption::Removed });
    }
    let (moment, why) = written(directory)?;
    (moment >= directory.opened_at().as_millis()).then_some(why)
}

/// Returns the time of the record in milliseconds since the host's boot, and the reason.
fn written(directory: &SandboxDirectory) -> Option<(u128, Interruption)> {
    let text = directory.read(ENDING, LENGTH as u64).ok()?;
    let (moment, word) = std::str::from_utf8(&text).ok()?.trim_end().split_once(' ')?;
    let why = Interruption::ALL.into_iter().find(|why| why.word() == word)?;
    Some((moment.parse().ok()?, why))
}

/// Returns true if the log of a removed sandbox ends with the fact that its time was over.
fn had_expired(trail: &Trail) -> bool {
    let Ok((text, _)) = trail.read_before(None) else { return false };
    let text = String::from_utf8_lossy(&text);
    let events = text.lines().rev().filter_map(|line| Some(serde_json::from_str::<Line>(line).ok()?.event));
    for event in events {
        match event {
            Event::TimeUp { .. } | Event::IdleEnded { .. } => return true,
            // Another machine was started after that, so it ended for another reason.
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
    use sandboxvm_protocol::identity::SandboxId;

    fn sandbox() -> (tempfile::TempDir, SandboxDirectory, Trail) {
        let root = tempfile::tempdir().unwrap();
        let home = Home::open(root.path()).unwrap();
        let id = SandboxId::try_from("abcdefgh".to_owned()).unwrap();
        let directory = SandboxDirectory::create(home.sandbox(&id)).unwrap();
        let trail = Trail::of(&home, &id);
        (root, directory, trail)
    }

    #[test]
    fn earlier_users_receive_the_reason_and_later_ones_do_not() {
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
    fn log_of_a_removed_sandbox_tells_whether_it_expired() {
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
