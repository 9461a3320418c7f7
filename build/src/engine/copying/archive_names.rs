//! The names in an archive that another machine, a client or a cache made, and what each of them is.
//! Refuses archives whose extraction could follow a link in it and so leave its directory.
//! May not look at a file system: links that the target has are the target's own.

use crate::engine::error::StepProblem;
use sandboxvm_archive::Kind;
use std::collections::BTreeMap;

/// Maximum number of names in an archive, with those of directories that only its paths imply.
const MAX_NAMES: usize = 1_000_000;
/// Maximum number of bytes that all names have together.
const MAX_BYTES: usize = 256 << 20;

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// A directory, or what has to be one because it is above a file.
    Directory,
    Link,
    File,
}

/// The names so far, without a slash at either end. The root of the archive is the empty name.
#[derive(Debug)]
pub(super) struct Names {
    classes: BTreeMap<Vec<u8>, Class>,
    /// How many names and bytes may still be added.
    left: (usize, usize),
}

impl Default for Names {
    fn default() -> Self {
        Self { classes: BTreeMap::new(), left: (MAX_NAMES, MAX_BYTES) }
    }
}

impl Names {
    /// Adds an entry. `original` is the name of the file that a hard link shares.
    ///
    /// # Errors
    /// Fails if the name has an empty part, `.` or `..`; if what is above it is not a directory; if it
    /// was something else before; if a hard link does not name a file of an earlier entry; or if there
    /// are more than 1,000,000 names, or more than 256 MiB of them.
    pub(super) fn add(&mut self, name: &[u8], kind: &Kind, original: Option<&[u8]>) -> Result<Class, StepProblem> {
        let shown = || String::from_utf8_lossy(name).into_owned();
        if !name.is_empty() && name.split(|byte| *byte == b'/').any(|part| matches!(part, b"" | b"." | b"..")) {
            return Err(StepProblem::BadName { name: shown(), problem: "it has an empty part, . or .." });
        }
        let class = match (kind, original) {
            (Kind::Directory, _) => Class::Directory,
            (Kind::Symlink(_), _) => Class::Link,
            (Kind::HardLink(_), original) => match original.and_then(|original| self.class(original)) {
                Some(class @ (Class::Link | Class::File)) => class,
                _ => {
                    return Err(StepProblem::BadName {
                        name: shown(),
                        problem: "it is a hard link to what is no earlier file",
                    });
                }
            },
            _ => Class::File,
        };
        // What is above a known name was added with it.
        let mut inner = name;
        while !inner.is_empty() {
            inner = inner.iter().rposition(|byte| *byte == b'/').map_or(&b""[..], |at| &inner[..at]);
            match self.class(inner) {
                Some(Class::Directory) => break,
                Some(_) => {
                    return Err(StepProblem::BadName { name: shown(), problem: "what is above it is not a directory" });
                }
                None => self.insert(inner, Class::Directory)?,
            }
        }
        match self.class(name) {
            None => self.insert(name, class)?,
            Some(before) if before == class => {}
            Some(_) => return Err(StepProblem::BadName { name: shown(), problem: "it is two different files" }),
        }
        Ok(class)
    }

    pub(super) fn class(&self, name: &[u8]) -> Option<Class> {
        self.classes.get(name).copied()
    }

    /// Returns the names in order.
    pub(super) fn all(&self) -> impl Iterator<Item = &[u8]> {
        self.classes.keys().map(Vec::as_slice)
    }

    fn insert(&mut self, name: &[u8], class: Class) -> Result<(), StepProblem> {
        let (count, bytes) = (self.left.0.checked_sub(1), self.left.1.checked_sub(name.len()));
        let (Some(count), Some(bytes)) = (count, bytes) else {
            let maximum = format!("{MAX_NAMES} names, or of more than {} MiB of them,", MAX_BYTES >> 20);
            return Err(StepProblem::Unsupported(format!("an archive of more than {maximum}")));
        };
        self.left = (count, bytes);
        self.classes.insert(name.to_vec(), class);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn implied_directories_and_long_names_count_against_the_limits() {
        let file = Kind::File { size: 0, extents: None };
        // Each of these adds three names, so no count is met exactly.
        let mut names = Names { left: (10, 1000), ..Names::default() };
        names.add(b"", &Kind::Directory, None).unwrap();
        for at in 0..3 {
            names.add(format!("{at}/b/c").as_bytes(), &file, None).unwrap();
        }
        names.add(b"0/b/c", &file, None).unwrap();
        assert!(names.add(b"3/b/c", &file, None).is_err());
        assert!(names.classes.len() <= 10);
        let mut names = Names { left: (10, 1000), ..Names::default() };
        names.add(&[b'n'; 600], &file, None).unwrap();
        assert!(names.add(&[b'm'; 600], &file, None).is_err());
    }
}
