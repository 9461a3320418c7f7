//! Where a mount is in the guest. May not name a path that the machine itself needs.

use crate::hostile_text::printable;
use sandboxvm_protocol::agent::files::MAX_PATH;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The directories of the machine: neither they nor anything below them is a place for a mount.
const RESERVED: [&str; 4] = ["/proc", "/sys", "/dev", "/run/sandboxvm"];

/// A path at which nothing can be mounted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MountPathError {
    /// The text is not an absolute path.
    #[error(
        "invalid path of a mount \"{}\": expected an absolute path of at most {MAX_PATH} bytes, other than /, without \
         \".\" and \"..\"", printable(.0)
    )]
    Invalid(String),
    /// The machine has its own file systems there.
    #[error("invalid path of a mount \"{}\": the machine's own file systems are in {reserved}", printable(.path))]
    Reserved {
        /// The path.
        path: String,
        /// The directory of the machine.
        reserved: &'static str,
    },
}

/// An absolute path in the guest, without empty parts, `.` and `..`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MountPath(String);

impl MountPath {
    /// Returns the path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the parts of the path. Sorted by them, a directory comes before what is in it.
    pub(super) fn parts(&self) -> impl Iterator<Item = &str> {
        self.0[1..].split('/')
    }
}

impl TryFrom<String> for MountPath {
    type Error = MountPathError;

    /// Slashes at the end, and several in a row, are accepted.
    fn try_from(text: String) -> Result<Self, MountPathError> {
        let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty()).collect();
        let is_bad = |part: &&str| matches!(*part, "." | "..") || part.contains('\0');
        if text.len() > MAX_PATH || !text.starts_with('/') || parts.is_empty() || parts.iter().any(is_bad) {
            return Err(MountPathError::Invalid(text));
        }
        let path = format!("/{}", parts.join("/"));
        let covers = |reserved: &&str| path == **reserved || path.starts_with(&format!("{reserved}/"));
        match RESERVED.into_iter().find(|reserved| covers(reserved)) {
            Some(reserved) => Err(MountPathError::Reserved { path, reserved }),
            // A mount over `/run` would hide the directory of the machine.
            None if path == "/run" => Err(MountPathError::Reserved { path, reserved: "/run/sandboxvm" }),
            None => Ok(Self(path)),
        }
    }
}

impl From<MountPath> for String {
    fn from(path: MountPath) -> Self {
        path.0
    }
}

impl fmt::Display for MountPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_absolute_and_not_those_of_the_machine() {
        let path = |text: &str| MountPath::try_from(text.to_owned());
        for (given, expected) in
            [("/data", "/data"), ("//a//b/", "/a/b"), ("/process", "/process"), ("/run/x", "/run/x")]
        {
            assert_eq!(path(given).unwrap().as_str(), expected);
        }
        for text in ["", "data", "/", "//", "/a/../b", "/a/.", "/a\0", &format!("/{}", "a".repeat(5000))] {
            assert!(matches!(path(text), Err(MountPathError::Invalid(_))), "{text:?}");
        }
        for text in ["/proc", "/sys/fs/cgroup", "/dev/shm", "//dev", "/run", "/run/sandboxvm/x"] {
            assert!(matches!(path(text), Err(MountPathError::Reserved { .. })), "{text:?}");
        }
    }
}
