//! Finds the place of an entry: splits its path into names and opens the directory above it. Only
//! this module resolves paths of the target. With [`Reach::Beneath`] the kernel guarantees that no
//! path leaves the directory in which it begins: openat2(2) with `RESOLVE_BENEATH`,
//! `RESOLVE_NO_SYMLINKS` and `RESOLVE_NO_MAGICLINKS`.

use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{AtFlags, Mode, OFlags, ResolveFlags, mkdirat, openat2, unlinkat},
    io::Errno,
    rand::{GetRandomFlags, getrandom},
};

/// Why a path of an archive is not allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// It begins at the root.
    #[error("its path begins at the root")]
    Absolute,
    /// It contains `..`.
    #[error("its path leads upwards by '..'")]
    Upwards,
    /// It contains a NUL.
    #[error("its path has a NUL in it")]
    Nul,
    /// It has no last name.
    #[error("its path names no file")]
    Nameless,
}

/// Which files paths may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Only files below the directory, without symbolic links.
    Beneath,
    /// Any file to which the symbolic links of the target lead.
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

/// Returns the names of a path, without `.` and empty ones, joined by `/`. It is empty for the
/// directory itself.
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

/// Splits a path into the part above the last name, and that name.
pub(crate) fn split(normal: &[u8]) -> (&[u8], &[u8]) {
    match normal.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&normal[..at], &normal[at + 1..]),
        None => (&[], normal),
    }
}

/// Opens a directory below `base`, given its normal path.
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
            // A rename somewhere made the result uncertain (openat2(2)), so this tries again.
            Err(Errno::AGAIN | Errno::INTR) if tries < 10_000 => tries += 1,
            opened => return opened,
        }
    }
}

/// The directory above the last entry. It stays open for the next one.
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

    /// Opens the directory of this normal path, creating missing levels.
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

    /// Creates and opens level after level, each through the one above.
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

/// Prefix of every name of a [`Temporary`]. 16 hexadecimal digits follow.
const TEMPORARY_PREFIX: &[u8] = b".sandboxvm-";
/// Suffix of the name of a file that will replace another one.
const REPLACING: &[u8] = b"-r";

/// Returns whether a name is that of a [`Temporary`], and if so, whether it replaces an existing
/// file.
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

/// A temporary name beside a file that will be replaced. When the value is dropped, the file of
/// this name is removed. Programs that watch the directory can recognise the name
/// ([`temporary_replaces`]).
#[derive(Debug)]
pub struct Temporary<'d> {
    directory: BorrowedFd<'d>,
    name: String,
}

impl<'d> Temporary<'d> {
    /// Calls `make` with names until one is free. `make` creates the file, and must only do so if
    /// the name is free. `replaces` says whether the file will replace an existing one.
    ///
    /// # Errors
    /// The error of `make`, or EEXIST if no name is free.
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

    /// Renames the file to `name`.
    ///
    /// # Errors
    /// As rename(2).
    pub fn rename(self, name: &[u8]) -> Result<(), Errno> {
        // The drop then removes the temporary name if rename(2) left it, as it does for two names
        // of the same file.
        rustix::fs::renameat(self.directory, self.name.as_str(), self.directory, name)
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        // The name does not exist after a rename.
        let _ = unlinkat(self.directory, self.name.as_str(), AtFlags::empty());
    }
}

/// Returns a path that can be shown: quoted, with all control characters escaped, and cut.
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
    fn control_characters_of_paths_are_escaped() {
        assert_eq!(shown(b"a\x1b[1m\n\xff"), "\"a\\u{1b}[1m\\n\u{fffd}\"");
        assert!(shown(&[b'x'; 5000]).len() < 300);
    }
}
