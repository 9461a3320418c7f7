//! What changes in a directory, by inotify(7), until the host hangs up. At most [`MAX_WATCHES`] directories; where there
//! are more, and where the kernel loses count, the host is told that something is missing.

use super::channel::Channel;
use super::failure::{Trouble, refused};
use super::inspect::describe;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{Dir, FileType, Mode, OFlags, openat};
use rustix::io::Errno;
use sandboxvm_protocol::agent::files::{
    ChangeKind, FileChange, FilePath, FileReply, FileTotals, MAX_CHANGES, PAGE_BUDGET,
};
use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

const MAX_WATCHES: usize = 4096;
const MAX_DEPTH: usize = 256;

struct Watching<'c> {
    channel: &'c mut Channel,
    root: Vec<u8>,
    recursive: bool,
    inotify: OwnedFd,
    /// Directories relative to the root, empty for itself.
    directories: BTreeMap<i32, Vec<u8>>,
    changes: Vec<FileChange>,
    budget: usize,
}

pub(super) fn watch(channel: &mut Channel, path: &[u8], recursive: bool) -> Result<FileReply, Trouble> {
    let fail = |errno| refused("watch it", path, errno);
    let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(fail)?;
    let begun = describe(path, true)?;
    let mut watching = Watching {
        channel,
        root: path.to_vec(),
        recursive,
        inotify,
        directories: BTreeMap::new(),
        changes: Vec::new(),
        budget: 0,
    };
    watching.add(b"").map_err(fail)?;
    if recursive {
        watching.add_below(b"", false, 0);
    }
    // What was added to while it was looked through is told once it is watched.
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

/// An event, apart from the buffer it was read into.
struct Event {
    watch: i32,
    flags: ReadFlags,
    name: Vec<u8>,
}

impl Watching<'_> {
    /// Takes all events there are; false when the directory itself is gone.
    fn take(&mut self) -> Result<bool, Errno> {
        let mut buffer = [const { MaybeUninit::uninit() }; 16 * 1024];
        let mut events = Vec::new();
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        // One buffer's worth at a time: what is left comes with the next.
        loop {
            match reader.next() {
                Ok(event) => {
                    let name = event.file_name().map(|name| name.to_bytes().to_vec()).unwrap_or_default();
                    events.push(Event { watch: event.wd(), flags: event.events(), name });
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
            // The last that is heard of a directory: it was removed, or its file system unmounted.
            if directory.is_empty() {
                self.tell(ChangeKind::Removed, None);
            }
            return !directory.is_empty();
        }
        if event.name.is_empty() {
            // Of a directory below, the one above tells.
            if has(ReadFlags::ATTRIB) && directory.is_empty() {
                self.tell(ChangeKind::AttributesChanged, None);
            }
            return true;
        }
        let path =
            if directory.is_empty() { event.name.clone() } else { [&directory, &b"/"[..], &event.name].concat() };
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

    /// A directory that is new here, and what is in it by now.
    fn add_below_of(&mut self, path: &[u8]) {
        match self.add(path) {
            Ok(()) => self.add_below(path, true, 0),
            // Gone again.
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
        let full = if path.is_empty() { self.root.clone() } else { [&self.root, &b"/"[..], path].concat() };
        let watch = inotify::add_watch(&self.inotify, &full[..], flags)?;
        self.directories.insert(watch, path.to_vec());
        Ok(())
    }

    /// Watches the directories below one, and with `tell` tells of all that is there.
    fn add_below(&mut self, path: &[u8], tell: bool, depth: usize) {
        let full = if path.is_empty() { self.root.clone() } else { [&self.root, &b"/"[..], path].concat() };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let flags = if path.is_empty() { flags } else { flags | OFlags::NOFOLLOW };
        let opened = openat(rustix::fs::CWD, &full[..], flags, Mode::empty()).and_then(Dir::new);
        let Ok(mut names) = opened else { return };
        while let Some(Ok(entry)) = names.read() {
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
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

    /// A directory that was moved away is no concern of ours any more; if it came to elsewhere here, that is told next.
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
        let path = path.and_then(|path| FilePath::try_from(path.to_vec()).ok());
        let change = FileChange { kind, path };
        // A file that is written to piece by piece is one change until it is told.
        if self.changes.last() == Some(&change) {
            return;
        }
        self.budget += change.path.as_ref().map_or(0, |path| path.as_bytes().len());
        self.changes.push(change);
        if self.changes.len() == MAX_CHANGES || self.budget >= PAGE_BUDGET {
            // A host that is gone is noticed in the next turn.
            let _ = self.send();
        }
    }

    fn send(&mut self) -> Result<(), Trouble> {
        self.budget = 0;
        if self.changes.is_empty() {
            return Ok(());
        }
        self.channel.reply(&FileReply::Changes(std::mem::take(&mut self.changes)))
    }
}
