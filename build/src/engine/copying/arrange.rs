//! Archives for a machine: what `COPY --from` and `ADD` take of another archive, under the names
//! that it has in the target. Archives are hostile: nothing is unpacked on the host, memory is bounded
//! by the number and length of names, and no entry is written below one that is not a directory, since
//! a guest extracts through links.

use super::archive_names::{Class, Names};
use crate::context::path_matches;
use crate::engine::{error::StepProblem, machine::Owner};
use sandboxvm_archive::{Entry, Kind, Reader, Writer};
use std::{
    collections::{BTreeSet, HashSet},
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
};

/// The name of the tree in an archive that a machine made.
pub(in crate::engine) const ROOT: &str = "x";

/// A source of `COPY --from`, as the part that is read from the machine and the rest of the pattern.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Pattern {
    /// Absolute path without a pattern.
    pub(in crate::engine) root: String,
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
    /// Returns the place with its path in another string, which a thread can own.
    pub(crate) fn of(self, target: &str) -> Place<'_> {
        let Self { target: _, is_directory, owner, chmod } = self;
        Place { target, is_directory, owner, chmod }
    }

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
    let names = listing(input)?;
    let found = found(&names, pattern);
    let tops = Tops::new(&found);
    if found.is_empty() {
        return Err(StepProblem::Missing(source.to_owned()));
    }
    let is_directory = |path: &[u8]| names.class(path) == Some(Class::Directory);
    let into_directory = place.is_directory || found.iter().any(|path| is_directory(path));
    if !place.is_directory && found.len() > 1 {
        return Err(StepProblem::NotADirectory(place.target.to_owned()));
    }
    let root_name = pattern.root.rsplit('/').next().unwrap_or_default().as_bytes();
    // Returns the new name of a path below the root, if it is taken.
    let renamed = |path: &[u8]| -> Option<Vec<u8>> {
        let top = tops.above(path)?;
        let inner = path[top.len()..].strip_prefix(b"/").unwrap_or(&path[top.len()..]);
        if is_directory(top) {
            // Of a directory its content is copied, not the directory itself.
            return (!inner.is_empty()).then(|| place.join(inner));
        }
        let name = top.rsplit(|byte| *byte == b'/').next().filter(|name| !name.is_empty()).unwrap_or(root_name);
        Some(if into_directory { place.join(name) } else { place.join(b"") })
    };
    input.seek(SeekFrom::Start(0))?;
    let mut reader = Reader::new(io::BufReader::new(input));
    let mut output = Checked::new(output);
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
        output.copy(&mut reader, &entry)?;
        arranged.entries += 1;
    }
    Ok((output.finish()?, arranged))
}

/// Writes an archive that a machine made of a directory, with its tree at `target`.
pub(in crate::engine) fn renamed<W: Write>(input: impl Read, target: &str, output: W) -> Result<W, StepProblem> {
    let mut reader = Reader::new(input);
    let mut output = Checked::new(output);
    let target = target.trim_matches('/').as_bytes();
    let at = |inner: &[u8]| if inner.is_empty() { target.to_vec() } else { [target, b"/", inner].concat() };
    while let Some(mut entry) = reader.next_entry()? {
        let Some(inner) = below_root(&entry.path) else { continue };
        if inner.is_empty() && entry.kind != Kind::Directory {
            return Err(StepProblem::Unsupported(
                "an archive of a directory that has another file in its place".into(),
            ));
        }
        let path = at(inner);
        if let Kind::HardLink(other) = &entry.kind {
            let Some(other) = below_root(other).map(at) else { continue };
            entry.kind = Kind::HardLink(other);
        }
        entry.path = path;
        output.copy(&mut reader, &entry)?;
    }
    output.finish()
}

/// Writes the content of an archive of `ADD` below the target. Owners are those of the archive,
/// unless one is stated.
pub(in crate::engine) fn extracted<W: Write>(input: impl Read, place: Place<'_>, output: W) -> Result<W, StepProblem> {
    let mut reader = Reader::new(input);
    let mut output = Checked::new(output);
    let plain = |path: &[u8]| {
        let parts: Vec<_> = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
        parts.join(&b'/')
    };
    while let Some(mut entry) = reader.next_entry()? {
        let path = plain(&entry.path);
        if path.is_empty() {
            continue;
        }
        entry.path = place.join(&path);
        if let Kind::HardLink(other) = &entry.kind {
            entry.kind = Kind::HardLink(place.join(&plain(other)));
        }
        set_owner(&mut entry, place.owner);
        output.copy(&mut reader, &entry)?;
    }
    output.finish()
}

fn set_owner(entry: &mut Entry, owner: Option<Owner>) {
    if let Some(Owner { uid, gid }) = owner {
        (entry.uid, entry.gid) = (uid, gid);
    }
}

/// An archive for a machine, whose names are checked as they are written: several files of a source may
/// receive one name, or a name above another one.
struct Checked<W: Write> {
    writer: Writer<W>,
    names: Names,
}

impl<W: Write> Checked<W> {
    fn new(output: W) -> Self {
        Self { writer: Writer::new(output), names: Names::default() }
    }

    fn copy<R: Read>(&mut self, reader: &mut Reader<R>, entry: &Entry) -> Result<(), StepProblem> {
        let original = match &entry.kind {
            Kind::HardLink(other) => Some(other.as_slice()),
            _ => None,
        };
        self.names.add(&entry.path, &entry.kind, original)?;
        self.writer.begin(entry)?;
        let mut buffer = vec![0; 64 << 10];
        loop {
            match reader.read_content(&mut buffer)? {
                0 => break,
                count => self.writer.content(&buffer[..count])?,
            }
        }
        Ok(self.writer.end()?)
    }

    fn finish(self) -> Result<W, StepProblem> {
        Ok(self.writer.finish()?)
    }
}

/// Returns the paths below the root, and what each is.
fn listing(input: &mut File) -> Result<Names, StepProblem> {
    input.seek(SeekFrom::Start(0))?;
    let mut reader = Reader::new(io::BufReader::new(input));
    let mut names = Names::default();
    while let Some(entry) = reader.next_entry()? {
        let Some(path) = below_root(&entry.path) else { continue };
        let original = match &entry.kind {
            Kind::HardLink(other) => below_root(other),
            _ => None,
        };
        names.add(path, &entry.kind, original)?;
    }
    Ok(names)
}

fn found<'a>(names: &'a Names, pattern: &Pattern) -> Vec<&'a [u8]> {
    if pattern.rest.is_empty() {
        return names.all().take_while(|path| path.is_empty()).collect();
    }
    let matches = |path: &&[u8]| {
        !path.is_empty() && path_matches(&pattern.rest, &path.split(|byte| *byte == b'/').collect::<Vec<_>>())
    };
    names.all().filter(matches).collect()
}

/// The paths that a pattern found.
struct Tops<'a> {
    paths: HashSet<&'a [u8]>,
    /// The numbers of slashes that they have. Without `**` in the pattern, there is one.
    depths: BTreeSet<usize>,
}

impl<'a> Tops<'a> {
    fn new(found: &[&'a [u8]]) -> Self {
        let depths = found.iter().filter(|path| !path.is_empty()).map(|path| slashes(path).count()).collect();
        Self { paths: found.iter().copied().collect(), depths }
    }

    /// Returns the shortest one that is the path or above it.
    fn above(&self, path: &[u8]) -> Option<&'a [u8]> {
        if let Some(root) = self.paths.get(&b""[..]) {
            return Some(root);
        }
        let ends: Vec<_> = slashes(path).chain([path.len()]).collect();
        self.depths.iter().map_while(|depth| ends.get(*depth)).find_map(|end| self.paths.get(&path[..*end]).copied())
    }
}

fn slashes(path: &[u8]) -> impl Iterator<Item = usize> {
    path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at)
}

/// Returns the path of an entry below the root of a machine's archive.
fn below_root(path: &[u8]) -> Option<&[u8]> {
    let rest = path.strip_prefix(ROOT.as_bytes())?;
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

    fn link(target: &str) -> Kind {
        Kind::Symlink(target.into())
    }

    fn file() -> Kind {
        Kind::File { size: 1, extents: None }
    }

    #[test]
    fn archives_cannot_leave_their_target_through_their_own_links() {
        let hostile = [
            vec![("x", Kind::Directory), ("x/l", link("/etc")), ("x/l/shadow", file())],
            vec![("x", Kind::Directory), ("x/l", link("/etc")), ("x/l", Kind::Directory), ("x/l/shadow", file())],
            vec![("x", Kind::Directory), ("x/l/a", file()), ("x/l", link("/etc")), ("x/l/shadow", file())],
            vec![("x", Kind::Directory), ("x/l", link("/etc")), ("x/l", file())],
            vec![("x", Kind::Directory), ("x/../etc/shadow", file())],
            vec![("x", Kind::Directory), ("x/./a", file())],
            vec![("x", link("/etc")), ("x/shadow", file())],
            vec![("x", Kind::Directory), ("x/l", link("/etc")), ("x/h", Kind::HardLink(b"x/l/shadow".to_vec()))],
            vec![
                ("x", Kind::Directory),
                ("x/l", link("/etc")),
                ("x/h", Kind::HardLink(b"x/l".to_vec())),
                ("x/h/shadow", file()),
            ],
        ];
        let place = Place { target: "/t", is_directory: true, owner: None, chmod: None };
        for entries in hostile {
            let mut archive = archive(&entries);
            let copied = arrange(&mut archive, "/s", &Pattern::of("/s"), place, Vec::new());
            assert!(matches!(copied, Err(StepProblem::BadName { .. })), "{entries:?} {copied:?}");
            archive.seek(SeekFrom::Start(0)).unwrap();
            assert!(renamed(&archive, "/cache", Vec::new()).is_err(), "{entries:?}");
            archive.seek(SeekFrom::Start(0)).unwrap();
            // Of an archive of ADD, the dots of a path are taken out.
            assert!(extracted(&archive, place, Vec::new()).is_err() || entries[1].0 == "x/./a", "{entries:?}");
        }
        let mut root = archive(&[("x", link("/etc"))]);
        root.seek(SeekFrom::Start(0)).unwrap();
        assert!(renamed(root, "/cache", Vec::new()).is_err());
        // What is harmless in the source may not become harmful by the names in the target.
        let mut merged = archive(&[
            ("x", Kind::Directory),
            ("x/a", Kind::Directory),
            ("x/a/l", link("/etc")),
            ("x/b", Kind::Directory),
            ("x/b/l", Kind::Directory),
            ("x/b/l/shadow", file()),
        ]);
        let copied = arrange(&mut merged, "/s/*", &Pattern::of("/s/*"), place, Vec::new());
        assert!(matches!(copied, Err(StepProblem::BadName { .. })), "{copied:?}");
    }

    #[test]
    fn sources_are_found_in_time_that_does_not_grow_with_their_number() {
        let paths: Vec<_> = (0..100_000).map(|at| format!("{at}/f").into_bytes()).collect();
        let found: Vec<_> = paths.iter().map(Vec::as_slice).collect();
        let tops = Tops::new(&found);
        let begin = std::time::Instant::now();
        assert!(found.iter().all(|path| tops.above(&[path, &b"/x"[..]].concat()) == Some(*path)));
        // One by one, it takes minutes.
        assert!(begin.elapsed() < std::time::Duration::from_secs(20), "{:?}", begin.elapsed());
        assert_eq!((tops.above(b"1"), tops.above(b"1/fx"), tops.above(b"")), (None, None, None));
        let nested = Tops::new(&[b"a/b/c", b"a"]);
        assert_eq!((nested.above(b"a/b/c/d"), nested.above(b"ab")), (Some(&b"a"[..]), None));
        assert_eq!(Tops::new(&[b""]).above(b"x"), Some(&b""[..]));
    }
}
