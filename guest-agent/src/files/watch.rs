//! Reports what changes in a directory, by inotify(7), until the host closes the connection.
//! Watches at most [`MAX_WATCHES`] directories. If there are more, or if the kernel drops events,
//! the host receives [`ChangeKind::Missed`].
//!
//! A file that a host writes has a temporary name first ([`temporary_replaces`]). Events of that
//! name are not reported. Instead the host receives that the file was created, if it is new, and
//! written.

use super::channel::Channel;
use super::describer::Describer;
use super::details::Reader;
use super::failure::{Trouble, refused};
use super::inspect::describe;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, lstat, openat};
use rustix::io::Errno;
use sandboxvm_archive::temporary_replaces;
use sandboxvm_protocol::agent::details::{DETAILS_BUDGET, FileDetails, MAX_DETAILS, Observation};
use sandboxvm_protocol::agent::files::{ChangeKind, FileChange, FilePath, FileReply, FileTotals};
use std::collections::{BTreeMap, VecDeque};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

const MAX_WATCHES: usize = 4096;
const MAX_DEPTH: usize = 256;
/// Maximum number of moves of which only the first half was seen. Both halves mostly follow each
/// other.
const MAX_MOVING: usize = 64;

/// The kind of reports that the host receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watched {
    /// [`FileReply::Changes`].
    Changes,
    /// [`FileReply::Observed`] without details of files.
    Names,
    /// [`FileReply::Observed`] with details of the files that exist.
    Files,
}

struct Watching<'c> {
    channel: &'c mut Channel,
    root: Vec<u8>,
    recursive: bool,
    watched: Watched,
    /// Only for [`Watched::Files`].
    files: Option<(Describer, Reader)>,
    /// Temporary names that were moved away: inotify's cookie, and whether the file replaces
    /// another one.
    moving: VecDeque<(u32, bool)>,
    inotify: OwnedFd,
    /// Watched directories, relative to the root, which is empty.
    directories: BTreeMap<i32, Vec<u8>>,
    changes: Vec<Observation>,
    /// Size of paths and metadata in `changes`, in bytes.
    budget: usize,
}

pub(super) fn watch(
    channel: &mut Channel,
    path: &[u8],
    recursive: bool,
    watched: Watched,
) -> Result<FileReply, Trouble> {
    let fail = |errno| refused("watch it", path, errno);
    let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(fail)?;
    let begun = describe(path, true)?;
    let mut watching = Watching {
        channel,
        root: path.to_vec(),
        recursive,
        watched,
        files: (watched == Watched::Files).then(|| (Describer::new(), Reader::new())),
        moving: VecDeque::new(),
        inotify,
        directories: BTreeMap::new(),
        changes: Vec::new(),
        budget: 0,
    };
    watching.add(b"").map_err(fail)?;
    if recursive {
        watching.add_below(b"", false, 0);
    }
    // Changes to a directory that was being read are reported after the directory is watched.
    watching.channel.reply(&FileReply::Begun(Some(begun)))?;
    loop {
        let mut ready = [
            PollFd::from_borrowed_fd(watching.channel.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(watching.inotify.as_fd(), PollFlags::IN),
        ];
        match poll(&mut ready, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(fail(errno)),
        }
        if watching.channel.is_over() {
            return Err(Trouble::Gone);
        }
        let goes_on = watching.take().map_err(fail)?;
        watching.send()?;
        if !goes_on {
            return Ok(FileReply::Done(FileTotals::default()));
        }
    }
}

/// An event, copied out of the buffer.
struct Event {
    watch: i32,
    flags: ReadFlags,
    /// The same for both halves of a move.
    cookie: u32,
    name: Vec<u8>,
}

impl Watching<'_> {
    /// Reads all events. Returns false if the directory itself is gone.
    fn take(&mut self) -> Result<bool, Errno> {
        let mut buffer = [const { MaybeUninit::uninit() }; 16 * 1024];
        let mut events = Vec::new();
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        // Reads one buffer at a time. The rest follows in the next turn.
        loop {
            match reader.next() {
                Ok(event) => {
                    let name = event.file_name().map(|name| name.to_bytes().to_vec()).unwrap_or_default();
                    events.push(Event { watch: event.wd(), flags: event.events(), cookie: event.cookie(), name });
                }
                Err(Errno::AGAIN | Errno::INTR) => break,
                Err(errno) => return Err(errno),
            }
            if reader.is_buffer_empty() {
                break;
            }
        }
        Ok(events.into_iter().all(|event| self.event(&event)))
    }

    fn event(&mut self, event: &Event) -> bool {
        let has = |flag| event.flags.intersects(flag);
        if has(ReadFlags::QUEUE_OVERFLOW) {
            self.tell(ChangeKind::Missed, None);
            return true;
        }
        let Some(directory) = self.directories.get(&event.watch).cloned() else { return true };
        if has(ReadFlags::IGNORED) {
            self.directories.remove(&event.watch);
            // The last event of a directory: it was removed, or its file system was unmounted.
            if directory.is_empty() {
                self.tell(ChangeKind::Removed, None);
            }
            return !directory.is_empty();
        }
        if event.name.is_empty() {
            // For a directory below the root, the event of the directory above is reported.
            if has(ReadFlags::ATTRIB) && directory.is_empty() {
                self.tell(ChangeKind::AttributesChanged, None);
            }
            return true;
        }
        if let Some(replaces) = temporary_replaces(&event.name) {
            if has(ReadFlags::MOVED_FROM) {
                self.moving.truncate(MAX_MOVING - 1);
                self.moving.push_front((event.cookie, replaces));
            }
            return true;
        }
        let path =
            if directory.is_empty() { event.name.clone() } else { [&directory, &b"/"[..], &event.name].concat() };
        if has(ReadFlags::MOVED_TO)
            && let Some(at) = self.moving.iter().position(|(cookie, _)| *cookie == event.cookie)
            && let Some((_, replaces)) = self.moving.remove(at)
        {
            self.placed(&path, replaces);
            return true;
        }
        let is_directory = self.recursive && has(ReadFlags::ISDIR);
        if has(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
            self.tell(ChangeKind::Created, Some(&path));
            if is_directory {
                self.add_below_of(&path);
            }
        }
        if has(ReadFlags::MODIFY) {
            self.tell(ChangeKind::Written, Some(&path));
        }
        if has(ReadFlags::ATTRIB) {
            self.tell(ChangeKind::AttributesChanged, Some(&path));
        }
        if has(ReadFlags::DELETE) {
            self.tell(ChangeKind::Removed, Some(&path));
        }
        if has(ReadFlags::MOVED_FROM) {
            self.tell(ChangeKind::Renamed, Some(&path));
            if is_directory {
                self.forget(&path);
            }
        }
        true
    }

    /// A file with a temporary name was moved to its place: a written file, or a new link.
    fn placed(&mut self, path: &[u8], replaces: bool) {
        if !replaces {
            self.tell(ChangeKind::Created, Some(path));
        }
        let is_file = lstat(&self.full(path)[..])
            .map_or(true, |about| FileType::from_raw_mode(about.st_mode) == FileType::RegularFile);
        if is_file || replaces {
            self.tell(ChangeKind::Written, Some(path));
        }
    }

    /// Returns the path of a directory or file, given its path relative to the root.
    fn full(&self, path: &[u8]) -> Vec<u8> {
        if path.is_empty() { self.root.clone() } else { [&self.root, &b"/"[..], path].concat() }
    }

    /// Adds a new directory, and reports everything in it.
    fn add_below_of(&mut self, path: &[u8]) {
        match self.add(path) {
            Ok(()) => self.add_below(path, true, 0),
            // It was removed again.
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(_) => self.tell(ChangeKind::Missed, Some(path)),
        }
    }

    fn add(&mut self, path: &[u8]) -> Result<(), Errno> {
        if self.directories.len() >= MAX_WATCHES {
            return Err(Errno::NOSPC);
        }
        let mut flags = WatchFlags::CREATE
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::EXCL_UNLINK
            | WatchFlags::ONLYDIR;
        if !path.is_empty() {
            flags |= WatchFlags::DONT_FOLLOW;
        }
        let full = self.full(path);
        let watch = inotify::add_watch(&self.inotify, &full[..], flags)?;
        self.directories.insert(watch, path.to_vec());
        Ok(())
    }

    /// Watches the directories below one. With `tell` also reports all files that exist.
    fn add_below(&mut self, path: &[u8], tell: bool, depth: usize) {
        let full = self.full(path);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let flags = if path.is_empty() { flags } else { flags | OFlags::NOFOLLOW };
        let opened = openat(CWD, &full[..], flags, Mode::empty()).and_then(Dir::new);
        let Ok(mut names) = opened else { return };
        while let Some(Ok(entry)) = names.read() {
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") || temporary_replaces(name).is_some() {
                continue;
            }
            let below = if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() };
            if tell {
                self.tell(ChangeKind::Created, Some(&below));
            }
            if entry.file_type() == FileType::Directory {
                match self.add(&below) {
                    Ok(()) if depth < MAX_DEPTH => self.add_below(&below, tell, depth + 1),
                    Err(Errno::NOENT | Errno::NOTDIR) => {}
                    Ok(()) | Err(_) => {
                        self.tell(ChangeKind::Missed, Some(&below));
                        return;
                    }
                }
            }
        }
    }

    /// Forgets a directory that was moved away. If its new place is watched too, the next event
    /// adds it again.
    fn forget(&mut self, path: &[u8]) {
        let is_below = |other: &[u8]| other.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest[0] == b'/');
        let gone: Vec<i32> =
            self.directories.iter().filter(|(_, other)| is_below(other)).map(|(watch, _)| *watch).collect();
        for watch in gone {
            self.directories.remove(&watch);
            let _ = inotify::remove_watch(&self.inotify, watch);
        }
    }

    fn tell(&mut self, kind: ChangeKind, path: Option<&[u8]>) {
        let change = FileChange { kind, path: path.and_then(|path| FilePath::try_from(path.to_vec()).ok()) };
        // Several writes to a file are one change until they are reported.
        if self.changes.last().is_some_and(|last| last.change == change) {
            return;
        }
        let details = match kind {
            ChangeKind::Created | ChangeKind::Written | ChangeKind::AttributesChanged => {
                self.details(path.unwrap_or_default())
            }
            // The old file is gone, and another one may have its name by now.
            ChangeKind::Removed | ChangeKind::Renamed | ChangeKind::Missed => None,
        };
        self.budget += change.path.as_ref().map_or(0, |path| path.as_bytes().len());
        self.budget += details.as_ref().map_or(0, |details| size(details));
        self.changes.push(Observation { change, details });
        if self.changes.len() == MAX_DETAILS || self.budget >= DETAILS_BUDGET {
            // If the host has closed the connection, the next turn notices.
            let _ = self.send();
        }
    }

    fn send(&mut self) -> Result<(), Trouble> {
        self.budget = 0;
        if self.changes.is_empty() {
            return Ok(());
        }
        let changes = std::mem::take(&mut self.changes);
        self.channel.reply(&match self.watched {
            Watched::Changes => FileReply::Changes(changes.into_iter().map(|observed| observed.change).collect()),
            Watched::Names | Watched::Files => FileReply::Observed(changes),
        })
    }

    /// Returns the details of a path, if the host wants them and the file exists.
    fn details(&mut self, path: &[u8]) -> Option<Box<FileDetails>> {
        let full = self.full(path);
        let (describer, reader) = self.files.as_mut()?;
        let entry = describer.describe(CWD, &full, &full, false).ok()?;
        Some(Box::new(reader.read(entry, &full)))
    }
}

/// Returns the size of paths and metadata in bytes.
fn size(details: &FileDetails) -> usize {
    let length = |path: Option<&FilePath>| path.map_or(0, |path| path.as_bytes().len());
    length(Some(&details.entry.path))
        + length(details.entry.link_target.as_ref())
        + length(details.target.as_ref().map(|target| &target.path))
        + details.metadata.size()
}
