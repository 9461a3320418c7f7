//! Changes of a workspace as text and JSON. Names and contents are a guest's: everything that this module returns is escaped,
//! except a patch that does not go to a terminal.

use crate::{failure::Failure, output::json, stdio};
use sandboxvm_manager::{one_line, printable};
use sandboxvm_workspace::{Branch, Change, ChangeKind, Changes, Extent, Kind, Review, State, branches};
use serde::Serialize;
use std::{
    fmt::Write as _,
    io::{self, Write},
};

/// Width of the longest word, and two spaces.
const WORD: usize = 10;

/// Returns a path for a reader, on one line.
pub(crate) fn path(path: &[u8]) -> String {
    one_line(&String::from_utf8_lossy(path))
}

/// Returns where a symbolic link leads, to be shown behind its path.
pub(crate) fn target(target: &[u8]) -> String {
    format!(" -> {}", path(target))
}

/// Returns the kind of a change as one word.
pub(crate) fn word(kind: ChangeKind) -> &'static str {
    match kind {
        ChangeKind::Added => "added",
        ChangeKind::Modified => "modified",
        ChangeKind::Mode => "mode",
        ChangeKind::Deleted => "deleted",
        ChangeKind::Renamed => "renamed",
        ChangeKind::TypeChanged => "type",
    }
}

fn kind(state: &State) -> &'static str {
    match state.kind {
        Kind::Directory => "directory",
        Kind::File(_) => "file",
        Kind::Symlink(_) => "symlink",
    }
}

/// Returns one line.
pub(crate) fn line(kind: ChangeKind, text: &str) -> String {
    format!("{:<WORD$}{text}\n", word(kind))
}

/// Returns the list of changes, one on each line.
pub(crate) fn list(changes: &Changes) -> String {
    let mut text = String::new();
    for change in &changes.files {
        let mut shown = path(&change.path);
        let is_directory = |state: &Option<State>| state.as_ref().is_some_and(|state| state.kind == Kind::Directory);
        if is_directory(&change.new) || change.new.is_none() && is_directory(&change.old) {
            shown.push('/');
        }
        if let Some(from) = &change.from {
            shown = format!("{} -> {shown}", path(from));
        }
        if let Some(State { kind: Kind::Symlink(to), .. }) = &change.new {
            shown.push_str(&target(to));
        }
        if let (Some(old), Some(new)) = (&change.old, &change.new) {
            if kind(old) != kind(new) {
                let _ = write!(shown, " ({} -> {})", kind(old), kind(new));
            } else if old.mode != new.mode {
                let _ = write!(shown, " ({:03o} -> {:03o})", old.mode, new.mode);
            }
        }
        text.push_str(&line(change.kind(), &shown));
    }
    text
}

/// Returns how many lines of each file changed.
pub(crate) fn stat(review: &Review) -> Result<String, Failure> {
    let (mut text, mut added_lines, mut removed_lines) = (String::new(), 0, 0);
    let files = &review.changes().files;
    let width = files.iter().map(|change| path(&change.path).chars().count()).max().unwrap_or(0).min(60);
    for change in files {
        let extent = match review.extent(change)? {
            Extent::Lines { added, removed } => {
                added_lines += added;
                removed_lines += removed;
                format!("+{added} -{removed}")
            }
            Extent::Binary { before, after } => format!("binary, {before} -> {after} bytes"),
            Extent::Nothing => word(change.kind()).to_owned(),
        };
        let _ = writeln!(text, "{:<width$}  {extent}", path(&change.path));
    }
    let _ = writeln!(text, "{} changed, {added_lines} lines added, {removed_lines} removed", files.len());
    Ok(text)
}

/// Writes the changes as a patch. Returns how many have no form in one.
pub(crate) fn patch(review: &Review, out: impl Write, to_terminal: bool) -> Result<usize, Failure> {
    let mut left_out = 0;
    if to_terminal {
        let mut out = Escaping { out, line: Vec::new() };
        for change in &review.changes().files {
            left_out += usize::from(!review.write_patch(change, &mut out)?);
        }
        out.flush()?;
    } else {
        let mut out = io::BufWriter::new(out);
        for change in &review.changes().files {
            left_out += usize::from(!review.write_patch(change, &mut out)?);
        }
        out.flush()?;
    }
    Ok(left_out)
}

/// Escapes what a terminal would interpret, line by line.
struct Escaping<W> {
    out: W,
    line: Vec<u8>,
}

/// Lines that are longer than this many bytes are escaped in parts.
const LINE: usize = 64 << 10;

impl<W: Write> Write for Escaping<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let end = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1);
        self.line.extend_from_slice(&bytes[..end]);
        if self.line.ends_with(b"\n") || self.line.len() > LINE {
            self.flush()?;
        }
        Ok(end)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.write_all(printable(&String::from_utf8_lossy(&self.line)).as_bytes())?;
        self.line.clear();
        self.out.flush()
    }
}

/// A change, for programs.
#[derive(Debug, Serialize)]
struct ChangeJson {
    path: String,
    path_hex: Option<String>,
    change: &'static str,
    from: Option<String>,
    from_hex: Option<String>,
    old: Option<FileJson>,
    new: Option<FileJson>,
    added_lines: Option<u64>,
    removed_lines: Option<u64>,
}

/// What a path was or is.
#[derive(Debug, Serialize)]
struct FileJson {
    kind: &'static str,
    mode: String,
    size_bytes: Option<u64>,
    sha256: Option<String>,
    target: Option<String>,
}

/// All changes, for programs.
#[derive(Debug, Serialize)]
struct ChangesJson {
    root: String,
    files: Vec<ChangeJson>,
    git: Vec<String>,
    branches: Vec<BranchJson>,
    left_out: Vec<String>,
}

/// A branch that the sandbox made or moved.
#[derive(Debug, Serialize)]
struct BranchJson {
    name: String,
    commit: String,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the bytes of a name that is not valid UTF-8.
fn invalid(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).is_err().then(|| hex(bytes))
}

impl From<&State> for FileJson {
    fn from(state: &State) -> Self {
        let (mut size_bytes, mut sha256, mut target) = (None, None, None);
        match &state.kind {
            Kind::File(content) => (size_bytes, sha256) = (Some(content.size), Some(hex(&content.digest))),
            Kind::Symlink(to) => target = Some(text(to)),
            Kind::Directory => {}
        }
        Self { kind: kind(state), mode: format!("{:04o}", state.mode), size_bytes, sha256, target }
    }
}

impl ChangeJson {
    fn of(change: &Change, extent: Extent) -> Self {
        let (added_lines, removed_lines) = match extent {
            Extent::Lines { added, removed } => (Some(added), Some(removed)),
            Extent::Binary { .. } | Extent::Nothing => (None, None),
        };
        Self {
            path: text(&change.path),
            path_hex: invalid(&change.path),
            change: word(change.kind()),
            from: change.from.as_deref().map(text),
            from_hex: change.from.as_deref().and_then(invalid),
            old: change.old.as_ref().map(FileJson::from),
            new: change.new.as_ref().map(FileJson::from),
            added_lines,
            removed_lines,
        }
    }
}

/// Returns all changes as JSON.
pub(crate) fn json(review: &Review) -> Result<String, Failure> {
    let changes = review.changes();
    let mut files = Vec::new();
    for change in &changes.files {
        files.push(ChangeJson::of(change, review.extent(change)?));
    }
    let git = changes.git.iter().map(|change| text(&change.path)).collect();
    let left_out = changes.special.iter().map(|path| text(path)).collect();
    let branches = branches_of(review);
    let branches =
        branches.into_iter().map(|branch| BranchJson { name: branch.name, commit: branch.commit.to_string() });
    json::pretty(&ChangesJson { root: text(&review.index().root), files, git, branches: branches.collect(), left_out })
}

/// Prints on stderr which branches the sandbox made or moved.
pub(crate) fn note_branches(review: &Review) {
    for branch in branches_of(review) {
        stdio::notice(format_args!("branch {} is at commit {:.12}", branch.name, branch.commit.to_string()));
    }
}

/// Returns the branches that the sandbox made or moved. A sandbox can make them invalid, and hides no other change by that.
fn branches_of(review: &Review) -> Vec<Branch> {
    branches(review).unwrap_or_else(|error| {
        stdio::notice(format_args!("warning: {}", one_line(&error.to_string())));
        Vec::new()
    })
}

/// Prints on stderr what `apply` will not do, if anything.
pub(crate) fn note_left_out(changes: &Changes) {
    if !changes.git.is_empty() {
        let count = changes.git.len();
        let files = if count == 1 { "1 file".to_owned() } else { format!("{count} files") };
        stdio::notice(format_args!(
            "{files} in .git changed; apply never applies files in .git, but fetches new commits"
        ));
    }
    for special in &changes.special {
        stdio::notice(format_args!("{} is a device or named pipe, and is not applied", path(special)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::json::tests::assert_golden;
    use sandboxvm_workspace::Content;

    fn file(size: u64, mode: u32) -> State {
        State { kind: Kind::File(Content { size, digest: [7; 32], layer: 0, offset: 0 }), mode }
    }

    fn changes() -> Vec<Change> {
        let link = State { kind: Kind::Symlink(b"to".to_vec()), mode: 0o777 };
        let change = |path: &[u8], old, new| Change { path: path.to_vec(), from: None, old, new };
        let renamed =
            Change { from: Some(b"b\xff".to_vec()), ..change(b"c\xff", Some(file(5, 0o600)), Some(file(5, 0o644))) };
        vec![
            change(b"a\x1b[2J\nsandboxvm: x", None, Some(file(3, 0o644))),
            renamed,
            change(b"d", Some(State { kind: Kind::Directory, mode: 0o755 }), None),
            change(b"e", Some(file(1, 0o644)), Some(link.clone())),
            change(b"f", Some(link), Some(State { kind: Kind::Symlink(b"elsewhere".to_vec()), mode: 0o777 })),
        ]
    }

    #[test]
    fn list_has_one_escaped_line_for_each_change() {
        let text = list(&Changes { files: changes(), git: vec![], special: vec![] });
        let expected = "added     a\\u{1b}[2J\\nsandboxvm: x\n\
                        renamed   b\u{fffd} -> c\u{fffd} (600 -> 644)\n\
                        deleted   d/\n\
                        type      e -> to (file -> symlink)\n\
                        modified  f -> elsewhere\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn json_is_pinned() {
        let mut extents = [Extent::Nothing; 5];
        extents[0] = Extent::Lines { added: 2, removed: 1 };
        let files = changes().iter().zip(extents).map(|(change, extent)| ChangeJson::of(change, extent)).collect();
        let all = ChangesJson {
            root: "/home/user/project".into(),
            files,
            git: vec![".git/index".into()],
            branches: vec![BranchJson {
                name: "main".into(),
                commit: "0123456789abcdef0123456789abcdef01234567".into(),
            }],
            left_out: vec!["pipe".into()],
        };
        assert_golden("changes.json", &json::pretty(&all).unwrap());
    }

    #[test]
    fn patch_on_a_terminal_has_no_escape_sequences() {
        let mut shown = Vec::new();
        let mut out = Escaping { out: &mut shown, line: Vec::new() };
        out.write_all(b"+a\x1b[2J\xff\n tail").unwrap();
        out.flush().unwrap();
        assert_eq!(String::from_utf8(shown).unwrap(), "+a\\u{1b}[2J\u{fffd}\n tail");
    }
}
