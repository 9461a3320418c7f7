//! The names of a tree as a tar archive, for a caller that has to know what an image has at which path,
//! and may not read its layers. May not write the content of a file.

use crate::{
    erofs::attributes,
    output::{Output, OutputError},
    tree::{Content, Inode, ROOT, Tree},
};
use sandboxvm_archive::{Entry, Kind, MAX_PATH, Timestamp, Writer};
use std::io::{self, Write};

/// Writes the names, and returns the size of the archive in bytes.
pub(crate) fn write(tree: &Tree, output: Output) -> Result<u64, OutputError> {
    let mut writer = Writer::new(Archive(output));
    // A stack: the entry to write next is the last one.
    let mut pending = vec![(Vec::new(), ROOT)];
    while let Some((path, id)) = pending.pop() {
        let inode = tree.inode(id);
        let shown = if path.is_empty() { b"./".to_vec() } else { path.clone() };
        writer.begin(&entry(shown, inode)).and_then(|()| writer.end()).map_err(failure)?;
        if let Content::Directory(directory) = &inode.content {
            for (name, child) in directory.children.iter().rev() {
                let below = if path.is_empty() { name.to_vec() } else { [&path[..], b"/", name].concat() };
                if below.len() <= MAX_PATH {
                    pending.push((below, child.inode));
                }
            }
        }
    }
    let Archive(output) = writer.finish().map_err(failure)?;
    let bytes = output.position();
    output.finish(&[], 0)?;
    Ok(bytes)
}

fn entry(path: Vec<u8>, inode: &Inode) -> Entry {
    let kind = match &inode.content {
        Content::Directory(_) => Kind::Directory,
        Content::Symlink(target) => Kind::Symlink(target.to_vec()),
        _ => Kind::File { size: 0, extents: None },
    };
    let metadata = &inode.metadata;
    Entry {
        path,
        kind,
        mode: metadata.mode.into(),
        uid: metadata.uid,
        gid: metadata.gid,
        modified: Timestamp { seconds: metadata.seconds, nanoseconds: metadata.nanoseconds },
        attributes: inode.attributes.as_deref().map(attributes::decode).unwrap_or_default(),
    }
}

/// The output as a writer.
struct Archive(Output);

impl Write for Archive {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map(|()| bytes.len()).map_err(io::Error::other)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns the error of the output that a writer passed on.
fn failure(error: io::Error) -> OutputError {
    match error.downcast::<OutputError>() {
        Ok(output) => output,
        Err(other) => OutputError::Io(other),
    }
}

#[cfg(test)]
mod tests {
    use crate::{Layer, Limits, list};
    use sandboxvm_archive::{Entry, Kind, Reader, Timestamp, Writer};
    use std::{fs::File, io::Seek};

    fn layer(entries: &[(&str, Kind)]) -> Layer<std::io::Cursor<Vec<u8>>> {
        let mut writer = Writer::new(Vec::new());
        for (path, kind) in entries {
            let attributes = vec![(b"user.a".to_vec(), b"1".to_vec())];
            let (path, kind) = (path.as_bytes().to_vec(), kind.clone());
            let modified = Timestamp { seconds: 5, nanoseconds: 6 };
            let stored = kind.stored();
            writer.begin(&Entry { path, kind, mode: 0o2711, uid: 7, gid: 8, modified, attributes }).unwrap();
            writer.content(&vec![b'c'; usize::try_from(stored).unwrap()]).unwrap();
            writer.end().unwrap();
        }
        Layer { input: std::io::Cursor::new(writer.finish().unwrap()), format: None, diff_id: None }
    }

    #[test]
    fn a_list_has_the_names_of_all_layers_and_no_content() {
        let file = |size| Kind::File { size, extents: None };
        let layers = [
            layer(&[("etc", Kind::Directory), ("etc/gone", file(5)), ("etc/kept", file(5000))]),
            layer(&[("etc/.wh.gone", file(0)), ("lib", Kind::Symlink(b"usr/lib".to_vec())), ("lib/x", file(1))]),
        ];
        let mut list_file: File = tempfile::tempfile().unwrap();
        let output = list_file.try_clone().unwrap().into();
        let summary = list(layers, &[b"/work".to_vec()], output, &Limits::default(), |_| ()).unwrap();
        assert_eq!(list_file.metadata().unwrap().len(), summary.bytes);
        list_file.rewind().unwrap();
        let mut reader = Reader::new(&list_file);
        let mut names = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            assert_eq!(entry.kind.stored(), 0);
            names.push(String::from_utf8(entry.path.clone()).unwrap());
            if entry.path == b"etc" {
                assert_eq!((entry.mode, entry.uid, entry.gid, entry.modified.nanoseconds), (0o2711, 7, 8, 6));
                assert_eq!(entry.attributes, [(b"user.a".to_vec(), b"1".to_vec())]);
            }
        }
        assert_eq!(names, ["./", "etc", "etc/kept", "lib", "usr", "usr/lib", "usr/lib/x", "work"]);
    }
}
