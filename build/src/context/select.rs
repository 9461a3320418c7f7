//! Which files one `COPY` takes, and as what: docker's rules for files, directories and targets.
//! Knows the target's file system only by the answer to "is it a directory".

use super::{Context, ContextError, File, FileKind, ignore::path_matches};
use crate::{engine::Owner, key::KeyBuilder};
use sandboxvm_archive::{Entry, Kind, Timestamp, Writer};
use std::io::Write;

/// Where files go.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Absolute path in the machine. A slash at its end says that it is a directory.
    pub path: &'a str,
    /// Whether the machine has a directory there.
    pub is_directory: bool,
}

/// Files of a context and their paths in the archive, in the order of their sources.
#[derive(Debug)]
pub struct Selection<'a> {
    context: &'a Context,
    files: Vec<(&'a [u8], &'a File, Vec<u8>)>,
    /// Whether the target is a directory afterwards.
    into_directory: bool,
}

impl Context {
    /// Selects what `COPY sources... target` takes. Paths in the archive are relative to the root
    /// of the machine.
    ///
    /// # Errors
    /// Fails if a source leaves the context or matches nothing, or if several sources have a target
    /// that is not a directory.
    pub fn select(&self, sources: &[String], target: Target<'_>) -> Result<Selection<'_>, ContextError> {
        let mut found = Vec::new();
        for source in sources {
            found.extend(self.matches(source)?);
        }
        let is_directory = target.path.ends_with('/') || target.is_directory;
        if !is_directory && found.len() > 1 {
            return Err(ContextError::NotADirectory(target.path.into()));
        }
        let base = target.path.trim_matches('/').as_bytes();
        let join = |name: &[u8]| match (base.is_empty(), name.is_empty()) {
            (true, _) => name.to_vec(),
            (_, true) => base.to_vec(),
            _ => [base, b"/", name].concat(),
        };
        let into_directory = is_directory || found.iter().any(|path| self.files[*path].kind == FileKind::Directory);
        let mut files = Vec::new();
        for path in found {
            let file = &self.files[path];
            if file.kind != FileKind::Directory {
                let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
                files.push((path, file, if is_directory { join(name) } else { base.to_vec() }));
                continue;
            }
            // Of a directory its content is copied, not the directory itself.
            let prefix = if path.is_empty() { Vec::new() } else { [path, b"/"].concat() };
            let inner = self.files.range(prefix.clone()..).take_while(|(inner, _)| inner.starts_with(&prefix));
            for (inner, file) in inner.filter(|(inner, _)| !inner.is_empty()) {
                files.push((inner, file, join(&inner[prefix.len()..])));
            }
        }
        Ok(Selection { context: self, files, into_directory })
    }

    fn matches(&self, source: &str) -> Result<Vec<&[u8]>, ContextError> {
        let mut parts: Vec<Vec<u8>> = Vec::new();
        for part in source.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop().ok_or_else(|| ContextError::Escapes(source.into()))?),
                part => parts.push(part.as_bytes().to_vec()),
            }
        }
        let plain = parts.join(&b'/');
        if let Some((path, _)) = self.files.get_key_value(&plain) {
            return Ok(vec![path]);
        }
        let found: Vec<_> = self
            .files
            .keys()
            .filter(|path| !path.is_empty())
            .filter(|path| path_matches(&parts, &path.split(|byte| *byte == b'/').collect::<Vec<_>>()))
            .map(Vec::as_slice)
            .collect();
        if found.is_empty() { Err(ContextError::Missing(source.into())) } else { Ok(found) }
    }
}

impl Selection<'_> {
    /// Returns true if the target is a directory afterwards, and false if it is the copied file.
    #[must_use]
    pub fn into_directory(&self) -> bool {
        self.into_directory
    }

    /// Returns the size of all files in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.files.iter().fold(0, |sum, (_, file, _)| sum.saturating_add(file.size))
    }

    /// Opens the file if the selection is one regular file. What is read of it may have changed.
    pub(crate) fn only_file(&self) -> Result<Option<std::fs::File>, ContextError> {
        match &self.files[..] {
            [(source, file, _)] if file.kind == FileKind::File => self.context.read(source).map(Some),
            _ => Ok(None),
        }
    }

    /// Copies the content of the file if the selection is one regular file.
    ///
    /// # Errors
    /// Fails if it cannot be read or has changed since it was hashed, or if the output fails.
    pub(crate) fn copy_only_file<W: Write>(&self, mut output: W) -> Result<W, ContextError> {
        if let [(source, file @ File { kind: FileKind::File, .. }, _)] = self.files[..] {
            self.context.copy(source, file, |bytes| output.write_all(bytes))?;
        }
        Ok(output)
    }

    /// Adds names, modes and content to a key. Times are not part of it.
    ///
    /// # Errors
    /// Fails if a file cannot be read.
    pub fn hash(&self, key: &mut KeyBuilder) -> Result<(), ContextError> {
        key.count(self.files.len());
        for (source, file, path) in &self.files {
            key.part(path).part(&file.mode.to_le_bytes());
            match &file.kind {
                FileKind::Directory => key.part(b"directory"),
                FileKind::Symlink(target) => key.part(b"link").part(target),
                FileKind::File => key.part(b"file").part(&self.context.hash(source)?),
            };
        }
        Ok(())
    }

    /// Writes the files as a tar archive, with paths relative to the root of the machine.
    /// Directories above the target are not part of it.
    ///
    /// # Errors
    /// Fails if a file cannot be read or has changed since it was hashed, or if the output fails.
    pub fn write<W: Write>(&self, owner: Owner, chmod: Option<u32>, output: W) -> Result<W, ContextError> {
        let mut writer = Writer::new(output);
        for (source, file, path) in &self.files {
            let kind = match &file.kind {
                FileKind::Directory => Kind::Directory,
                FileKind::Symlink(target) => Kind::Symlink(target.clone()),
                FileKind::File => Kind::File { size: file.size, extents: None },
            };
            let mode = chmod.filter(|_| !matches!(kind, Kind::Symlink(_))).unwrap_or(file.mode);
            let Owner { uid, gid } = owner;
            let modified = Timestamp::default();
            writer.begin(&Entry { path: path.clone(), kind, mode, uid, gid, modified, attributes: Vec::new() })?;
            if file.kind == FileKind::File {
                self.context.copy(source, file, |bytes| writer.content(bytes))?;
            }
            writer.end()?;
        }
        Ok(writer.finish()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Context;
    use sandboxvm_archive::Reader;
    use std::{
        fs,
        os::unix::fs::{PermissionsExt, symlink},
    };

    fn context() -> (tempfile::TempDir, Context) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::create_dir_all(root.join("d/e")).unwrap();
        for (name, content) in
            [("a.txt", "1"), ("b.txt", "2"), ("d/e/c", "3"), ("secret", "4"), (".dockerignore", "secret\n")]
        {
            fs::write(root.join(name), content).unwrap();
        }
        fs::set_permissions(root.join("a.txt"), fs::Permissions::from_mode(0o751)).unwrap();
        symlink("/etc/passwd", root.join("d/link")).unwrap();
        let context = Context::open(root).unwrap();
        (directory, context)
    }

    fn names(context: &Context, sources: &[&str], path: &str, is_directory: bool) -> Result<Vec<String>, ContextError> {
        let sources: Vec<_> = sources.iter().map(|source| (*source).to_owned()).collect();
        let tar = context.select(&sources, Target { path, is_directory })?.write(
            Owner { uid: 5, gid: 6 },
            None,
            Vec::new(),
        )?;
        let mut reader = Reader::new(&tar[..]);
        let mut names = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            assert_eq!((entry.uid, entry.gid), (5, 6));
            names.push(String::from_utf8(entry.path).unwrap());
            while reader.read_content(&mut [0; 64]).unwrap() > 0 {}
        }
        Ok(names)
    }

    #[test]
    fn targets_follow_the_rules_of_copy() {
        let (_directory, context) = context();
        assert_eq!(names(&context, &["a.txt"], "/x", false).unwrap(), ["x"]);
        assert_eq!(names(&context, &["a.txt"], "/x", true).unwrap(), ["x/a.txt"]);
        assert_eq!(names(&context, &["*.txt"], "/x/", false).unwrap(), ["x/a.txt", "x/b.txt"]);
        assert_eq!(names(&context, &["d"], "/x", false).unwrap(), ["x/e", "x/e/c", "x/link"]);
        assert!(matches!(names(&context, &["*.txt"], "/x", false), Err(ContextError::NotADirectory(_))));
        assert!(matches!(names(&context, &["secret"], "/x", false), Err(ContextError::Missing(_))));
        assert!(matches!(names(&context, &["../a"], "/x", false), Err(ContextError::Escapes(_))));
        assert!(matches!(names(&context, &["d/link/x"], "/x", false), Err(ContextError::Missing(_))));
        assert!(!names(&context, &["."], "/", true).unwrap().contains(&"secret".to_owned()));
    }

    #[test]
    fn key_changes_with_content_and_mode_but_not_with_time() {
        let (directory, first) = context();
        let key = |context: &Context| {
            let mut key = KeyBuilder::new("test");
            let target = Target { path: "/x/", is_directory: true };
            context.select(&["a.txt".into()], target).unwrap().hash(&mut key).unwrap();
            key.finish()
        };
        let before = key(&first);
        let file = directory.path().join("a.txt");
        fs::write(&file, "1").unwrap();
        assert_eq!(key(&Context::open(directory.path()).unwrap()), before);
        fs::write(&file, "9").unwrap();
        assert_ne!(key(&Context::open(directory.path()).unwrap()), before);
        fs::write(&file, "1").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert_ne!(key(&Context::open(directory.path()).unwrap()), before);
    }

    #[test]
    fn changed_file_is_not_copied() {
        let (directory, _) = context();
        let file = directory.path().join("a.txt");
        fs::write(&file, "as listed").unwrap();
        let context = Context::open(directory.path()).unwrap();
        let target = Target { path: "/x", is_directory: false };
        let selected = context.select(&["a.txt".into()], target).unwrap();
        selected.hash(&mut KeyBuilder::new("test")).unwrap();
        assert!(selected.write(Owner::default(), None, Vec::new()).is_ok());
        assert_eq!(selected.copy_only_file(Vec::new()).unwrap(), b"as listed");
        for other in ["as_listed", "short", "as listed and longer"] {
            fs::write(&file, other).unwrap();
            let is_longer = other.len() > 9;
            for error in
                [selected.write(Owner::default(), None, Vec::new()).err(), selected.copy_only_file(Vec::new()).err()]
            {
                // The first bytes are those of the key.
                assert_eq!(error.is_none(), is_longer, "{other}");
                let text = error.map(|error| error.to_string());
                assert!(text.is_none_or(|text| text == "\"a.txt\" changed during the build"));
            }
        }
    }
}
