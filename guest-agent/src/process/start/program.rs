//! Finds the file of a program, given its name.
//!
//! A failed execve(2) makes the guest kernel build a whole address space before it fails, while
//! access(2) only resolves a path. So PATH is searched with access(2). The rest of PATH after the
//! first match is tried too, because the process's user may not execute what root could.

use super::strings::CStrings;
use rustix::fs::{Access, access};
use rustix::io::Errno;
use std::ffi::CStr;

/// Maximum number of directories of PATH that are searched: each is a system call, and the agent
/// waits meanwhile.
const MOST_DIRECTORIES: usize = 256;

/// Why a program cannot be executed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProgramError {
    /// No directory of PATH has it.
    #[error("exec: {0:?} was not found in PATH; name a program of the sandbox, or its path")]
    NotInPath(String),
    /// No such file.
    #[error("exec: {0:?} does not exist in the sandbox")]
    NoFile(String),
    /// The file exists, but the interpreter that it names does not.
    #[error("exec: {0:?} exists, but the interpreter or loader it names does not")]
    NoInterpreter(String),
    /// The file is not a program.
    #[error("exec: {0:?} is neither a program for this machine nor a script that begins with #!")]
    BadFormat(String),
    /// The file may not be executed.
    #[error("exec: {name:?} cannot be executed: {errno}")]
    Refused {
        /// Name in the request.
        name: String,
        /// The error of the kernel.
        errno: Errno,
    },
}

impl ProgramError {
    /// Returns true for exit code 127, and false for 126.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::NotInPath(_) | Self::NoFile(_))
    }
}

/// The files to try, best first. There is at least one.
#[derive(Debug)]
pub(super) struct Candidates(CStrings);

impl Candidates {
    /// Returns the files that `name` may mean, given PATH.
    pub(super) fn find(name: &[u8], path: &[u8]) -> Result<Self, ProgramError> {
        let mut candidates = CStrings::default();
        if name.contains(&b'/') {
            candidates.push(&[name]);
            return Ok(Self(candidates));
        }
        let mut refused = None;
        let directories = path.split(|byte| *byte == b':').take(MOST_DIRECTORIES).filter(|_| !name.is_empty());
        for directory in directories {
            // An empty entry means the working directory (execvp(3)).
            let directory = if directory.is_empty() { b"." } else { directory };
            let found = candidates.len() > 0;
            // Relative paths depend on the working directory, which only the child enters.
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

    /// Returns the files for the child to try.
    pub(super) fn strings(&self) -> &CStrings {
        &self.0
    }

    /// Returns the error if execve of all candidates ended with `errno`, in the working directory
    /// `directory`.
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
