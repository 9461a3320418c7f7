//! The disk of an image, as names, for steps that are executed without a machine. Their files go into a tar
//! archive, which becomes a layer; nothing is unpacked on the host. Has to do what the agent does with the same
//! archive, or to say that a machine is needed: where a path leads through a symbolic link, only a kernel
//! resolves it.
//!
//! ```text
//! names    the names of the disk, and the layer that is written      leading  the steps before the first machine
//! ```

mod leading;
mod names;

use crate::engine::{
    blocking::blocking,
    error::StepProblem,
    machine::{Disk, Done, Found, MachineError, Owner},
};
use names::{DiskProblem, Names, Outcome};
use std::{fs::File, io::Seek};

/// The disk.
#[derive(Debug, Default)]
pub(super) struct HostDisk {
    names: Names,
    /// Whether the last failure was that a machine is needed.
    needs_machine: bool,
}

impl HostDisk {
    /// Reads the names of an image, as [`Machines::names`](crate::engine::Machines::names) writes them.
    pub(super) async fn open(mut list: File) -> Result<Self, StepProblem> {
        let names = blocking(move || {
            list.rewind()?;
            Names::read(list)
        });
        Ok(Self { names: names.await?, needs_machine: false })
    }

    /// Begins the layer of a step, in an empty file.
    pub(super) fn begin(&mut self, layer: File) {
        self.needs_machine = false;
        self.names.begin(layer);
    }

    /// Ends the layer and returns it.
    pub(super) fn finish(&mut self) -> Result<File, StepProblem> {
        self.names.finish()
    }

    /// Returns true if the step that failed has to be executed in a machine.
    pub(super) fn needs_machine(&self) -> bool {
        self.needs_machine
    }

    /// Makes a problem the error of a machine, and notes what it means.
    fn noted<T>(&mut self, outcome: Outcome<T>) -> Done<T> {
        outcome.map_err(|problem| {
            self.needs_machine = matches!(problem, DiskProblem::NeedsMachine(_));
            MachineError::new(problem)
        })
    }
}

impl Disk for HostDisk {
    async fn find(&mut self, path: &str) -> Done<Option<Found>> {
        let found = self.names.find(path.as_bytes());
        self.noted(found)
    }

    async fn read(&mut self, path: &str, _maximum: usize) -> Done<Option<Vec<u8>>> {
        let found = self.names.find(path.as_bytes()).and_then(|found| match found {
            None => Ok(None),
            Some(_) => Err(DiskProblem::NeedsMachine("a file of the image has to be read")),
        });
        self.noted(found)
    }

    async fn make_directory(&mut self, path: &str, owner: Owner) -> Done<()> {
        let made = self.names.make_directory(path.as_bytes(), owner);
        self.noted(made)
    }

    async fn extract_to_disk(&mut self, archive: File) -> Done<()> {
        let mut names = std::mem::take(&mut self.names);
        let extracted = blocking(move || {
            let extracted = names.extract(archive);
            Ok::<_, StepProblem>((names, extracted))
        });
        let (names, extracted) = extracted.await.map_err(MachineError::new)?;
        self.names = names;
        self.noted(extracted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandboxvm_archive::{Entry, Kind, Reader, Timestamp, Writer};

    fn entry(path: &str, kind: Kind) -> Entry {
        let modified = Timestamp { seconds: 9, nanoseconds: 0 };
        Entry { path: path.into(), kind, mode: 0o2750, uid: 3, gid: 4, modified, attributes: Vec::new() }
    }

    fn archive(entries: &[(&str, Kind)]) -> File {
        let mut writer = Writer::new(tempfile::tempfile().unwrap());
        for (path, kind) in entries {
            writer.begin(&entry(path, kind.clone())).unwrap();
            writer.content(&vec![b'c'; usize::try_from(kind.stored()).unwrap()]).unwrap();
            writer.end().unwrap();
        }
        let mut file = writer.finish().unwrap();
        file.rewind().unwrap();
        file
    }

    fn file() -> Kind {
        Kind::File { size: 3, extents: None }
    }

    fn link(target: &str) -> Kind {
        Kind::Symlink(target.into())
    }

    fn wait<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    fn disk(image: &[(&str, Kind)]) -> HostDisk {
        wait(HostDisk::open(archive(image))).unwrap()
    }

    /// Writes the entries of a layer as mode, owner, name and time.
    fn listed(mut layer: File) -> Vec<String> {
        layer.rewind().unwrap();
        let mut reader = Reader::new(layer);
        let mut lines = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            let Entry { mode, uid, gid, modified, path, .. } = entry;
            let path = String::from_utf8(path).unwrap();
            assert_eq!(path.ends_with('/'), entry.kind == Kind::Directory);
            lines.push(format!("{mode:o} {uid}:{gid} {} {}", modified.seconds, path.trim_end_matches('/')));
        }
        lines
    }

    #[test]
    fn a_layer_states_directories_above_its_files_as_the_image_has_them() {
        let image = [("./", Kind::Directory), ("usr", Kind::Directory), ("usr/bin", Kind::Directory)];
        let mut disk = disk(&image);
        disk.begin(tempfile::tempfile().unwrap());
        let new = archive(&[("usr/bin/x", file()), ("usr/bin/y", file()), ("opt/a/b", file())]);
        wait(disk.extract_to_disk(new)).unwrap();
        wait(disk.make_directory("/srv/www/", Owner { uid: 7, gid: 8 })).unwrap();
        let layer = listed(disk.finish().unwrap());
        let expected = [
            "2750 3:4 9 usr",
            "2750 3:4 9 usr/bin",
            "2750 3:4 9 usr/bin/x",
            "2750 3:4 9 usr/bin/y",
            "755 0:0 0 opt",
            "755 0:0 0 opt/a",
            "2750 3:4 9 opt/a/b",
            "755 7:8 0 srv",
            "755 7:8 0 srv/www",
        ];
        assert_eq!(layer, expected);
        // The next layer has what it needs again, and an existing directory keeps its metadata.
        disk.begin(tempfile::tempfile().unwrap());
        wait(disk.extract_to_disk(archive(&[("opt", Kind::Directory), ("opt/c", file()), ("usr/bin/x", file())])))
            .unwrap();
        let expected =
            ["755 0:0 0 opt", "2750 3:4 9 opt/c", "2750 3:4 9 usr", "2750 3:4 9 usr/bin", "2750 3:4 9 usr/bin/x"];
        assert_eq!(listed(disk.finish().unwrap()), expected);
        assert_eq!(wait(disk.find("/opt/c")).unwrap(), Some(Found::File));
        assert_eq!(wait(disk.find("/srv/www/")).unwrap(), Some(Found::Directory));
        assert_eq!(
            (wait(disk.find("/")).unwrap(), wait(disk.find("/opt/c/d")).unwrap()),
            (Some(Found::Directory), None)
        );
        assert_eq!(wait(disk.read("/etc/passwd", 10)).unwrap(), None);
    }

    #[test]
    fn what_only_a_kernel_resolves_is_left_to_a_machine() {
        let image = [("d", Kind::Directory), ("l", link("d")), ("f", file()), ("d/inner", file())];
        let null = Kind::Device { is_block: false, major: 0, minor: 0 };
        for entries in [
            vec![("l/x", file())],
            vec![("l", Kind::Directory)],
            vec![("f/x", file())],
            vec![("f", Kind::Directory)],
            vec![("d", file())],
            vec![("d", link("x"))],
            vec![("new", link("d")), ("new/x", file())],
            vec![(".wh.d", file())],
            vec![("d/.wh..wh..opq", file())],
            vec![("a/../d/x", file())],
            vec![("run/sandboxvm/agent", file())],
            vec![("h", Kind::HardLink(b"d/inner".to_vec()))],
            vec![("h", Kind::HardLink(b"l/inner".to_vec()))],
            vec![("zero", null)],
            vec![("sparse", Kind::File { size: 1 << 40, extents: Some(Vec::new()) })],
            vec![("", file())],
        ] {
            let mut disk = disk(&image);
            disk.begin(tempfile::tempfile().unwrap());
            wait(disk.extract_to_disk(archive(&entries))).unwrap_err();
            assert!(disk.needs_machine(), "{entries:?}");
        }
        let mut disk = disk(&image);
        for path in ["/l", "/l/x", "/d/../x"] {
            wait(disk.find(path)).unwrap_err();
            assert!(std::mem::take(&mut disk.needs_machine), "{path}");
        }
        disk.begin(tempfile::tempfile().unwrap());
        for path in ["/l/x", "/f", "/f/x"] {
            wait(disk.make_directory(path, Owner::default())).unwrap_err();
            assert!(std::mem::take(&mut disk.needs_machine), "{path}");
        }
        wait(disk.read("/f", 10)).unwrap_err();
        assert!(disk.needs_machine());
    }

    #[test]
    fn files_and_links_replace_each_other_as_in_a_machine() {
        let mut disk = disk(&[("f", file()), ("l", link("f"))]);
        disk.begin(tempfile::tempfile().unwrap());
        let null = Kind::Device { is_block: false, major: 1, minor: 3 };
        let new =
            [("f", link("l")), ("l", file()), ("h", Kind::HardLink(b"l".to_vec())), ("null", null), ("p", Kind::Fifo)];
        wait(disk.extract_to_disk(archive(&new))).unwrap();
        assert_eq!(listed(disk.finish().unwrap()).len(), 5);
        wait(disk.find("/f")).unwrap_err();
        assert_eq!(wait(disk.find("/l")).unwrap(), Some(Found::File));
    }
}
