//! Which file a program's name means.
//!
//! A failed execve(2) costs the guest kernel a whole new address space before it says so; access(2) only walks a path.
//! So PATH is searched with the latter, and the rest of PATH after the first hit goes along for the case that the
//! process's user may not run what root could.

use super::strings::CStrings;
use rustix::fs::{Access, access};
use rustix::io::Errno;
use std::ffi::CStr;

/// More of PATH is not searched: each directory is a call, and everything waits meanwhile.
const MOST_DIRECTORIES: usize = 256;

/// A program that cannot be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProgramError {
    /// Nowhere.
    #[error("exec: {0:?} was not found in PATH; name a program of the sandbox, or its path")]
    NotInPath(String),
    /// No such file.
    #[error("exec: {0:?} does not exist in the sandbox")]
    NoFile(String),
    /// A file, but the interpreter it names is missing.
    #[error("exec: {0:?} exists, but the interpreter or loader it names does not")]
    NoInterpreter(String),
    /// A file that is no program.
    #[error("exec: {0:?} is neither a program for this machine nor a script that begins with #!")]
    BadFormat(String),
    /// A file that may not be run.
    #[error("exec: {name:?} cannot be executed: {errno}")]
    Refused {
        /// As requested.
        name: String,
        /// What the kernel said.
        errno: Errno,
    },
}

impl ProgramError {
    /// True for exit code 127, false for 126.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::NotInPath(_) | Self::NoFile(_))
    }
}

/// The files to try, best first; at least one.
#[derive(Debug)]
pub(super) struct Candidates(CStrings);

impl Candidates {
    /// Files that `name` may mean, given PATH.
    pub(super) fn find(name: &[u8], path: &[u8]) -> Result<Self, ProgramError> {
        let mut candidates = CStrings::default();
        if name.contains(&b'/') {
            candidates.push(&[name]);
            return Ok(Self(candidates));
        }
        let mut refused = None;
        let directories = path.split(|byte| *byte == b':').take(MOST_DIRECTORIES).filter(|_| !name.is_empty());
        for directory in directories {
            // An empty entry is the working directory (execvp(3)).
            let directory = if directory.is_empty() { b"." } else { directory };
            let found = candidates.len() > 0;
            // What is relative depends on the working directory, which only the child enters.
            if !found && directory.starts_with(b"/") {
                let mut one = CStrings::default();
                one.push(&[directory, b"/", name]);
                match one.get(0).map(|file| access(file, Access::EXEC_OK)) {
                    Some(Ok(())) => candidates = one,
                    Some(Err(errno @ Errno::ACCESS)) => refused = Some(errno),
                    _ => {}
                }
            } else {
                candidates.push(&[directory, b"/", name]);
            }
        }
        if candidates.len() > 0 {
            return Ok(Self(candidates));
        }
        Err(match refused {
            Some(errno) => ProgramError::Refused { name: text(name), errno },
            None => ProgramError::NotInPath(text(name)),
        })
    }

    /// For the child to try.
    pub(super) fn strings(&self) -> &CStrings {
        &self.0
    }

    /// What it means that execve of the candidates ended in `errno`, with `directory` as working directory.
    pub(super) fn explain(&self, name: &[u8], directory: &[u8], errno: Errno) -> ProgramError {
        let name_text = text(name);
        match errno {
            Errno::NOENT if self.first_exists(directory) => ProgramError::NoInterpreter(name_text),
            Errno::NOENT | Errno::NOTDIR if name.contains(&b'/') => ProgramError::NoFile(name_text),
            Errno::NOENT | Errno::NOTDIR => ProgramError::NotInPath(name_text),
            Errno::NOEXEC => ProgramError::BadFormat(name_text),
            errno => ProgramError::Refused { name: name_text, errno },
        }
    }

    fn first_exists(&self, directory: &[u8]) -> bool {
        let exists = |file: &CStr| access(file, Access::EXISTS).is_ok();
        match self.0.get(0) {
            Some(file) if file.to_bytes().starts_with(b"/") => exists(file),
            Some(file) => {
                let mut joined = CStrings::default();
                joined.push(&[directory, b"/", file.to_bytes()]);
                joined.get(0).is_some_and(exists)
            }
            None => false,
        }
    }
}

fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name).chars().take(256).collect()
}

#[cfg(test)]
mod tests {
    use super::{Candidates, ProgramError};
    use rustix::io::Errno;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_first_hit_comes_first_and_the_rest_of_path_follows() {
        let found = Candidates::find(b"sh", b"/nonexistent:/bin:relative:/usr/bin").unwrap();
        let all: Vec<_> = (0..3).filter_map(|index| found.strings().get(index)).collect();
        assert_eq!(all, [c"/bin/sh", c"relative/sh", c"/usr/bin/sh"]);
    }

    #[test]
    fn a_file_without_x_is_126_and_no_file_is_127() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("data");
        fs::write(&file, "x").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let path = format!("/nonexistent:{}", directory.path().display());
        let refused = Candidates::find(b"data", path.as_bytes()).unwrap_err();
        assert!(!refused.is_not_found(), "{refused}");
        for name in [&b"nothing"[..], b""] {
            let missing = Candidates::find(name, path.as_bytes()).unwrap_err();
            assert!(matches!(missing, ProgramError::NotInPath(_)) && missing.is_not_found(), "{missing}");
        }
    }

    #[test]
    fn a_missing_interpreter_is_not_a_missing_program() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("script"), "#!/nonexistent\n").unwrap();
        let directory = directory.path().as_os_str().as_encoded_bytes();
        let found = Candidates::find(b"./script", b"").unwrap();
        assert!(matches!(found.explain(b"./script", directory, Errno::NOENT), ProgramError::NoInterpreter(_)));
        let missing = Candidates::find(b"./other", b"").unwrap();
        assert!(matches!(missing.explain(b"./other", directory, Errno::NOENT), ProgramError::NoFile(_)));
    }
}
