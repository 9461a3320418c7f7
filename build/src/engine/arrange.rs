//! Archives for a machine: what `COPY --from` and `ADD` take of another archive, under the names
//! that it has in the target. Archives are hostile: nothing is unpacked on the host, and memory is
//! bounded by the number of entries.

use super::{error::StepProblem, machine::Owner};
use crate::context::path_matches;
use sandboxvm_archive::{Entry, Kind, Reader, Writer};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
};

/// Maximum number of entries of an archive.
const MAX_ENTRIES: usize = 1_000_000;
/// The name of the tree in an archive that a machine made.
const ROOT: &[u8] = b"x";

/// A source of `COPY --from`, as the part that is read from the machine and the rest of the pattern.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Pattern {
    /// Absolute path without a pattern.
    pub(super) root: String,
    /// Components below it. Empty: the root itself.
    rest: Vec<Vec<u8>>,
}

impl Pattern {
    pub(crate) fn of(source: &str) -> Self {
        let mut parts = Vec::new();
        for part in source.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        let literal = parts.iter().position(|part| part.contains(['*', '?', '[', '\\'])).unwrap_or(parts.len());
        let rest = parts[literal..].iter().map(|part| part.as_bytes().to_vec()).collect();
        Self { root: format!("/{}", parts[..literal].join("/")), rest }
    }

    /// Like [`Self::of`], for an archive whose tree is the root, whatever the pattern.
    pub(crate) fn below_root(source: &str) -> Self {
        let whole = Self::of(source);
        let literal = whole.root.split('/').filter(|part| !part.is_empty()).map(|part| part.as_bytes().to_vec());
        Self { root: "/".into(), rest: literal.chain(whole.rest).collect() }
    }
}

/// Where files go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    /// Absolute path.
    pub(crate) target: &'a str,
    /// Whether it is a directory, or has to become one.
    pub(crate) is_directory: bool,
    /// `None`: the owners of the archive.
    pub(crate) owner: Option<Owner>,
    pub(crate) chmod: Option<u32>,
}

impl Place<'_> {
    fn join(&self, name: &[u8]) -> Vec<u8> {
        let base = self.target.trim_matches('/').as_bytes();
        match (base.is_empty(), name.is_empty()) {
            (true, _) => name.to_vec(),
            (_, true) => base.to_vec(),
            _ => [base, b"/", name].concat(),
        }
    }
}

/// What an arranged archive does.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Arranged {
    /// Whether the target is a directory afterwards.
    pub(crate) into_directory: bool,
    pub(crate) entries: usize,
}

/// Writes what `pattern` takes of `input` to `output`.
pub(crate) fn arrange<W: Write>(
    input: &mut File,
    source: &str,
    pattern: &Pattern,
    place: Place<'_>,
    output: W,
) -> Result<(W, Arranged), StepProblem> {
    let kinds = listing(input)?;
    let found = found(&kinds, pattern);
    if found.is_empty() {
        return Err(StepProblem::Missing(source.to_owned()));
    }
    let into_directory = place.is_directory || found.iter().any(|path| kinds[*path]);
    if !place.is_directory && found.len() > 1 {
        return Err(StepProblem::NotADirectory(place.target.to_owned()));
    }
    let root_name = pattern.root.rsplit('/').next().unwrap_or_default().as_bytes();
    // Returns the new name of a path below the root, if it is taken.
    let renamed = |path: &[u8]| -> Option<Vec<u8>> {
        let top = found.iter().find(|top| is_within(path, top))?;
        let inner = path[top.len()..].strip_prefix(b"/").unwrap_or(&path[top.len()..]);
        if kinds[*top] {
            // Of a directory its content is copied, not the directory itself.
            return (!inner.is_empty()).then(|| place.join(inner));
        }
        let name = top.rsplit(|byte| *byte == b'/').next().filter(|name| !name.is_empty()).unwrap_or(root_name);
        Some(if into_directory { place.join(name) } else { place.join(b"") })
    };
    input.seek(SeekFrom::Start(0))?;
    let mut reader = Reader::new(io::BufReader::new(input));
    let mut writer = Writer::new(output);
    let mut arranged = Arranged { into_directory, entries: 0 };
    while let Some(mut entry) = reader.next_entry()? {
        let Some(path) = below_root(&entry.path).and_then(&renamed) else { continue };
        if let Kind::HardLink(other) = &entry.kind {
            let other = below_root(other).and_then(&renamed);
            let problem = || StepProblem::Unsupported("a hard link to a file that is not copied".into());
            entry.kind = Kind::HardLink(other.ok_or_else(problem)?);
        }
        entry.path = path;
        set_owner(&mut entry, place.owner);
        if let Some(mode) = place.chmod.filter(|_| !matches!(entry.kind, Kind::Symlink(_))) {
            entry.mode = mode;
        }
        copy(&mut reader, &mut writer, &entry)?;
        arranged.entries += 1;
    }
    Ok((writer.finish()?, arranged))
}

/// Writes an archive that a machine made, with its tree at `target`.
pub(super) fn renamed<W: Write>(input: impl Read, target: &str, output: W) -> Result<W, StepProblem> {
    let mut reader = Reader::new(input);
    let mut writer = Writer::new(output);
    let target = target.trim_matches('/').as_bytes();
    let at = |inner: &[u8]| if inner.is_empty() { target.to_vec() } else { [target, b"/", inner].concat() };
    while let Some(mut entry) = reader.next_entry()? {
        let Some(path) = below_root(&entry.path).map(at) else { continue };
        if let Kind::HardLink(other) = &entry.kind {
            let Some(other) = below_root(other).map(at) else { continue };
            entry.kind = Kind::HardLink(other);
        }
        entry.path = path;
        copy(&mut reader, &mut writer, &entry)?;
    }
    Ok(writer.finish()?)
}

/// Writes the content of an archive of `ADD` below the target. Owners are those of the archive,
/// unless one is stated.
pub(super) fn extracted<W: Write>(input: impl Read, place: Place<'_>, output: W) -> Result<W, StepProblem> {
    let mut reader = Reader::new(input);
    let mut writer = Writer::new(output);
    let mut count = 0;
    let safe = |path: &[u8]| {
        let parts: Vec<_> = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
        if parts.contains(&&b".."[..]) {
            return Err(StepProblem::Unsupported("a path with .. in an archive".into()));
        }
        Ok(parts.join(&b'/'))
    };
    while let Some(mut entry) = reader.next_entry()? {
        count += 1;
        if count > MAX_ENTRIES {
            return Err(StepProblem::Unsupported(format!("an archive of more than {MAX_ENTRIES} entries")));
        }
        let path = safe(&entry.path)?;
        if path.is_empty() {
            continue;
        }
        entry.path = place.join(&path);
        if let Kind::HardLink(other) = &entry.kind {
            entry.kind = Kind::HardLink(place.join(&safe(other)?));
        }
        set_owner(&mut entry, place.owner);
        copy(&mut reader, &mut writer, &entry)?;
    }
    Ok(writer.finish()?)
}

fn set_owner(entry: &mut Entry, owner: Option<Owner>) {
    if let Some(Owner { uid, gid }) = owner {
        (entry.uid, entry.gid) = (uid, gid);
    }
}

fn copy<R: Read, W: Write>(reader: &mut Reader<R>, writer: &mut Writer<W>, entry: &Entry) -> Result<(), StepProblem> {
    writer.begin(entry)?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        match reader.read_content(&mut buffer)? {
            0 => break,
            count => writer.content(&buffer[..count])?,
        }
    }
    Ok(writer.end()?)
}

/// Returns the paths below the root, and whether each is a directory.
fn listing(input: &mut File) -> Result<BTreeMap<Vec<u8>, bool>, StepProblem> {
    input.seek(SeekFrom::Start(0))?;
    let mut reader = Reader::new(io::BufReader::new(input));
    let mut kinds = BTreeMap::new();
    while let Some(entry) = reader.next_entry()? {
        if kinds.len() == MAX_ENTRIES {
            return Err(StepProblem::Unsupported(format!("a source of more than {MAX_ENTRIES} files")));
        }
        if let Some(path) = below_root(&entry.path) {
            kinds.insert(path.to_vec(), entry.kind == Kind::Directory);
        }
    }
    Ok(kinds)
}

fn found<'a>(kinds: &'a BTreeMap<Vec<u8>, bool>, pattern: &Pattern) -> Vec<&'a [u8]> {
    if pattern.rest.is_empty() {
        return kinds.get_key_value(&b""[..]).map(|(path, _)| path.as_slice()).into_iter().collect();
    }
    let matches = |path: &&[u8]| {
        !path.is_empty() && path_matches(&pattern.rest, &path.split(|byte| *byte == b'/').collect::<Vec<_>>())
    };
    kinds.keys().map(Vec::as_slice).filter(matches).collect()
}

fn is_within(path: &[u8], top: &[u8]) -> bool {
    path.strip_prefix(top).is_some_and(|rest| top.is_empty() || rest.is_empty() || rest[0] == b'/')
}

/// Returns the path of an entry below the root of a machine's archive.
fn below_root(path: &[u8]) -> Option<&[u8]> {
    let rest = path.strip_prefix(ROOT)?;
    if rest.is_empty() {
        Some(rest)
    } else {
        rest.strip_prefix(b"/").map(|rest| rest.strip_suffix(b"/").unwrap_or(rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandboxvm_archive::Timestamp;

    fn archive(entries: &[(&str, Kind)]) -> File {
        let mut writer = Writer::new(Vec::new());
        for (path, kind) in entries {
            let (path, kind) = (path.as_bytes().to_vec(), kind.clone());
            let content = kind.stored();
            let modified = Timestamp::default();
            writer
                .begin(&Entry { path, kind, mode: 0o4755, uid: 7, gid: 8, modified, attributes: Vec::new() })
                .unwrap();
            writer.content(&vec![b'c'; usize::try_from(content).unwrap()]).unwrap();
            writer.end().unwrap();
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&writer.finish().unwrap()).unwrap();
        file
    }

    fn tree() -> File {
        let file = || Kind::File { size: 3, extents: None };
        archive(&[
            ("x", Kind::Directory),
            ("x/a.txt", file()),
            ("x/b.txt", file()),
            ("x/d", Kind::Directory),
            ("x/d/e", file()),
            ("x/d/f", Kind::HardLink(b"x/a.txt".to_vec())),
        ])
    }

    fn names(file: &mut File, source: &str, target: &str, is_directory: bool) -> Result<Vec<String>, StepProblem> {
        let place = Place { target, is_directory, owner: Some(Owner { uid: 1, gid: 2 }), chmod: None };
        let (bytes, _) = arrange(file, source, &Pattern::of(source), place, Vec::new())?;
        let mut reader = Reader::new(&bytes[..]);
        let mut names = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            assert_eq!((entry.uid, entry.gid, entry.mode), (1, 2, 0o4755));
            if let Kind::HardLink(other) = &entry.kind {
                names.push(format!("{} = {}", String::from_utf8_lossy(&entry.path), String::from_utf8_lossy(other)));
            } else {
                names.push(String::from_utf8(entry.path).unwrap());
            }
            while reader.read_content(&mut [0; 64]).unwrap() > 0 {}
        }
        Ok(names)
    }

    #[test]
    fn sources_of_a_stage_follow_the_rules_of_copy() {
        let all = ["t/a.txt", "t/b.txt", "t/d", "t/d/e", "t/d/f = t/a.txt"];
        assert_eq!(names(&mut tree(), "/src", "/t", false).unwrap(), all);
        assert_eq!(names(&mut tree(), "/src/*.txt", "/t/", true).unwrap(), ["t/a.txt", "t/b.txt"]);
        assert!(matches!(names(&mut tree(), "/src/*.txt", "/t", false), Err(StepProblem::NotADirectory(_))));
        assert!(matches!(names(&mut tree(), "/src/*.c", "/t", false), Err(StepProblem::Missing(_))));
        assert!(matches!(names(&mut tree(), "/src/d*", "/t", false), Err(StepProblem::Unsupported(_))));
        let mut one = archive(&[("x", Kind::File { size: 2, extents: None })]);
        assert_eq!(names(&mut one, "/bin/prog", "/t", false).unwrap(), ["t"]);
        assert_eq!(names(&mut one, "/bin/prog", "/t", true).unwrap(), ["t/prog"]);
        assert_eq!(names(&mut one, "/bin/prog", "/", true).unwrap(), ["prog"]);
    }

    #[test]
    fn patterns_are_split_at_their_first_wildcard() {
        assert_eq!(Pattern::of("/a/./b/../c").root, "/a/c");
        assert_eq!(Pattern::of("../../etc").root, "/etc");
        let pattern = Pattern::of("/a/b*/c");
        assert_eq!((pattern.root.as_str(), pattern.rest.len()), ("/a", 2));
    }

    #[test]
    fn archives_of_add_stay_below_their_target() {
        let place = Place { target: "/t/", is_directory: true, owner: None, chmod: None };
        let run = |path: &str| {
            let mut file = archive(&[(path, Kind::File { size: 1, extents: None })]);
            file.seek(SeekFrom::Start(0)).unwrap();
            extracted(file, place, Vec::new())
        };
        let bytes = run("/./a/b").unwrap();
        let entry = Reader::new(&bytes[..]).next_entry().unwrap().unwrap();
        assert_eq!((entry.path, entry.uid), (b"t/a/b".to_vec(), 7));
        assert!(run("a/../../b").is_err());
    }
}
