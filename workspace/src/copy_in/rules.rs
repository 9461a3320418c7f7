//! Which files of a project are left out: `.gitignore` and `.sandboxvmignore`, with git's meaning. Owns
//! the rules of one directory and their order; it opens files only below the root that it is given.

use super::options::CopyOptions;
use crate::beneath::Root;
use ignore::{
    Match,
    gitignore::{Gitignore, GitignoreBuilder},
};
use rustix::{fd::OwnedFd, io::Errno};
use std::{ffi::OsStr, fs::File, io::Read, os::unix::ffi::OsStrExt, path::Path, rc::Rc};

/// Maximum size of one file of rules in bytes.
const MAX: u64 = 1 << 20;

/// The rules of a directory and of those above it.
#[derive(Debug)]
pub(super) struct Rules {
    above: Option<Rc<Rules>>,
    own: Vec<Gitignore>,
}

/// Why rules cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the rules of \"{}\": {problem}", .path.escape_ascii())]
pub struct RulesError {
    path: Vec<u8>,
    problem: String,
}

impl Rules {
    /// Reads the rules of a directory, if it has any.
    pub(super) fn of(
        root: &Root,
        directory: &[u8],
        above: Option<Rc<Self>>,
        options: &CopyOptions,
    ) -> Result<Option<Rc<Self>>, RulesError> {
        let mut files: Vec<&[u8]> = Vec::new();
        if options.gitignore {
            if directory.is_empty() {
                files.push(b".git/info/exclude");
            }
            files.push(b".gitignore");
        }
        if options.sandboxvmignore {
            files.push(b".sandboxvmignore");
        }
        let mut own = Vec::new();
        for name in files {
            let path = if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() };
            match root.file(&path) {
                Ok(file) => own.push(read(file, directory, &path)?),
                Err(Errno::NOENT | Errno::LOOP | Errno::INVAL | Errno::NOTDIR | Errno::XDEV) => {}
                Err(errno) => return Err(RulesError { path, problem: errno.to_string() }),
            }
        }
        if own.is_empty() { Ok(above) } else { Ok(Some(Rc::new(Self { above, own }))) }
    }

    /// Returns true if the file at a path is left out. The last rule of the nearest directory decides.
    pub(super) fn leave_out(&self, path: &[u8], is_directory: bool) -> bool {
        let path = Path::new(OsStr::from_bytes(path));
        let mut rules = Some(self);
        while let Some(current) = rules {
            for list in current.own.iter().rev() {
                match list.matched(path, is_directory) {
                    Match::None => {}
                    Match::Ignore(_) => return true,
                    Match::Whitelist(_) => return false,
                }
            }
            rules = current.above.as_deref();
        }
        false
    }
}

fn read(file: OwnedFd, directory: &[u8], path: &[u8]) -> Result<Gitignore, RulesError> {
    let fail = |problem: String| RulesError { path: path.to_vec(), problem };
    let mut bytes = Vec::new();
    File::from(file).take(MAX + 1).read_to_end(&mut bytes).map_err(|error| fail(error.to_string()))?;
    if bytes.len() as u64 > MAX {
        return Err(fail(format!("the file is larger than {MAX} bytes")));
    }
    let mut builder = GitignoreBuilder::new(OsStr::from_bytes(directory));
    for line in bytes.split(|byte| *byte == b'\n') {
        // git skips what is not a pattern as well.
        let _ = builder.add_line(None, &String::from_utf8_lossy(line));
    }
    builder.build().map_err(|error| fail(error.to_string()))
}
