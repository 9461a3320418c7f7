//! Where an entry of an archive goes: its path, cut into names, and the open directory above it. All reaching into the
//! target is here, and with [`Reach::Beneath`] the kernel itself sees to it that none of it leaves the directory it
//! began at: openat2(2) with `RESOLVE_BENEATH`, `RESOLVE_NO_SYMLINKS` and `RESOLVE_NO_MAGICLINKS`.

use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{AtFlags, Mode, OFlags, ResolveFlags, mkdirat, openat2, unlinkat},
    io::Errno,
    rand::{GetRandomFlags, getrandom},
};

/// A path of an archive that leads nowhere it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// Begins at the root.
    #[error("its path begins at the root")]
    Absolute,
    /// Has `..` in it.
    #[error("its path leads upwards by '..'")]
    Upwards,
    /// Has a NUL in it.
    #[error("its path has a NUL in it")]
    Nul,
    /// Has no name where one must be.
    #[error("its path names no file")]
    Nameless,
}

/// How far paths may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Nowhere but below the directory, through real directories only.
    Beneath,
    /// Wherever the symbolic links of the target lead.
    Anywhere,
}

impl Reach {
    fn resolve(self) -> ResolveFlags {
        match self {
            Self::Beneath => ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
            Self::Anywhere => ResolveFlags::NO_MAGICLINKS,
        }
    }
}

/// Names without `.` and empty ones, joined by `/`; empty for the directory itself.
pub(crate) fn normal(path: &[u8], reach: Reach) -> Result<Vec<u8>, PlaceError> {
    if path.contains(&0) {
        return Err(PlaceError::Nul);
    }
    if path.starts_with(b"/") && reach == Reach::Beneath {
        return Err(PlaceError::Absolute);
    }
    let mut normal = Vec::with_capacity(path.len());
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return Err(PlaceError::Upwards),
            name => {
                if !normal.is_empty() {
                    normal.push(b'/');
                }
                normal.extend_from_slice(name);
            }
        }
    }
    Ok(normal)
}

/// The part above the last name, and that name.
pub(crate) fn split(normal: &[u8]) -> (&[u8], &[u8]) {
    match normal.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&normal[..at], &normal[at + 1..]),
        None => (&[], normal),
    }
}

/// Opens a directory below `base` by its normal path.
pub(crate) fn open_directory(
    base: BorrowedFd<'_>,
    normal: &[u8],
    reach: Reach,
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    let path = if normal.is_empty() { b"." } else { normal };
    let flags = flags | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut tries = 0;
    loop {
        match openat2(base, path, flags, Mode::empty(), reach.resolve()) {
            // A rename somewhere made the kernel unsure (openat2(2)); it is to be asked again.
            Err(Errno::AGAIN | Errno::INTR) if tries < 10_000 => tries += 1,
            opened => return opened,
        }
    }
}

/// The directory above entries, kept from one entry to the next.
#[derive(Debug)]
pub(crate) struct Parents {
    base: OwnedFd,
    reach: Reach,
    last: Option<(Vec<u8>, OwnedFd)>,
}

impl Parents {
    pub(crate) fn new(base: OwnedFd, reach: Reach) -> Self {
        Self { base, reach, last: None }
    }

    pub(crate) fn base(&self) -> BorrowedFd<'_> {
        self.base.as_fd()
    }

    pub(crate) fn reach(&self) -> Reach {
        self.reach
    }

    /// Opens the directory of this normal path, making what is missing of it.
    pub(crate) fn open(&mut self, normal: &[u8]) -> Result<BorrowedFd<'_>, Errno> {
        if normal.is_empty() {
            return Ok(self.base.as_fd());
        }
        if self.last.as_ref().is_none_or(|(path, _)| path != normal) {
            let opened = match open_directory(self.base.as_fd(), normal, self.reach, OFlags::PATH) {
                Err(Errno::NOENT) => self.make(normal)?,
                opened => opened?,
            };
            self.last = Some((normal.to_vec(), opened));
        }
        Ok(self.last.as_ref().map_or(self.base.as_fd(), |(_, directory)| directory.as_fd()))
    }

    /// Level by level, each opened through the ones above it.
    fn make(&self, normal: &[u8]) -> Result<OwnedFd, Errno> {
        let mut end = 0;
        let mut parent = open_directory(self.base.as_fd(), b"", self.reach, OFlags::PATH)?;
        while end < normal.len() {
            let begin = if end == 0 { 0 } else { end + 1 };
            end = normal[begin..].iter().position(|byte| *byte == b'/').map_or(normal.len(), |at| begin + at);
            match mkdirat(&parent, &normal[begin..end], Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
            parent = open_directory(self.base.as_fd(), &normal[..end], self.reach, OFlags::PATH)?;
        }
        Ok(parent)
    }
}

/// How every name of a [`Temporary`] begins; 16 hexadecimal digits follow.
const TEMPORARY_PREFIX: &[u8] = b".sandboxvm-";
/// How the name of one ends that is to take the place of a file.
const REPLACING: &[u8] = b"-r";

/// Whether a name is one of a [`Temporary`], and if so, whether it was to take the place of a file that was there.
#[must_use]
pub fn temporary_replaces(name: &[u8]) -> Option<bool> {
    let rest = name.strip_prefix(TEMPORARY_PREFIX)?;
    let (digits, rest) = rest.split_at_checked(16)?;
    let is_ours = digits.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    match rest {
        b"" if is_ours => Some(false),
        REPLACING if is_ours => Some(true),
        _ => None,
    }
}

/// A name of our own beside a file that is to be replaced; what is there when this goes is removed. Programs that watch
/// the directory can recognize it ([`temporary_replaces`]).
#[derive(Debug)]
pub struct Temporary<'d> {
    directory: BorrowedFd<'d>,
    name: String,
}

impl<'d> Temporary<'d> {
    /// Finds a name by having `make` make something of it, and only of a name that is free. `replaces` says whether it
    /// is to take the place of a file that is there.
    ///
    /// # Errors
    /// What `make` fails with, or EEXIST when no name is free.
    pub fn make<T>(
        directory: BorrowedFd<'d>,
        replaces: bool,
        mut make: impl FnMut(&str) -> Result<T, Errno>,
    ) -> Result<(Self, T), Errno> {
        let end = if replaces { "-r" } else { "" };
        for _ in 0..16 {
            let mut random = [0; 8];
            getrandom(&mut random, GetRandomFlags::empty())?;
            let name = format!(".sandboxvm-{:016x}{end}", u64::from_ne_bytes(random));
            match make(&name) {
                Ok(made) => return Ok((Self { directory, name }, made)),
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::EXIST)
    }

    /// Takes the place of `name`.
    ///
    /// # Errors
    /// As rename(2).
    pub fn rename(self, name: &[u8]) -> Result<(), Errno> {
        // Dropped after that: of two names of one file, rename(2) leaves both.
        rustix::fs::renameat(self.directory, self.name.as_str(), self.directory, name)
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        // Not there after a rename.
        let _ = unlinkat(self.directory, self.name.as_str(), AtFlags::empty());
    }
}

/// A path as it is fit to be shown: quoted, with every control character escaped, and cut.
pub(crate) fn shown(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    let mut shown = format!("{:?}", text.chars().take(256).collect::<String>());
    if text.chars().nth(256).is_some() {
        shown.push_str("...");
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_made_normal_or_refused() {
        for (path, expected) in
            [(&b"./a//b/./c/"[..], &b"a/b/c"[..]), (b".", b""), (b"./", b""), (b"", b""), (b"...", b"...")]
        {
            assert_eq!(normal(path, Reach::Beneath), Ok(expected.to_vec()));
        }
        assert_eq!(normal(b"/etc/x", Reach::Beneath), Err(PlaceError::Absolute));
        assert_eq!(normal(b"/etc/x", Reach::Anywhere), Ok(b"etc/x".to_vec()));
        for reach in [Reach::Beneath, Reach::Anywhere] {
            for path in [&b".."[..], b"a/../../b", b"a/.."] {
                assert_eq!(normal(path, reach), Err(PlaceError::Upwards));
            }
            assert_eq!(normal(b"a\0b", reach), Err(PlaceError::Nul));
        }
        assert_eq!(split(b"a/b/c"), (&b"a/b"[..], &b"c"[..]));
        assert_eq!(split(b"c"), (&b""[..], &b"c"[..]));
    }

    #[test]
    fn what_is_shown_drives_no_terminal() {
        assert_eq!(shown(b"a\x1b[1m\n\xff"), "\"a\\u{1b}[1m\\n\u{fffd}\"");
        assert!(shown(&[b'x'; 5000]).len() < 300);
    }
}
