//! `COPY` and `ADD`: which archive a disk receives. Files of the context never reach a name on
//! the host, and neither do those of another machine.

mod archive_names;
pub(crate) mod arrange;

use crate::engine::{
    Build,
    blocking::blocking,
    downloads::{self, As},
    error::StepProblem,
    machine::{Disk, Found, Machine, Machines, Owner},
    users::{self, NoGroup},
};
use crate::{
    context::{ContextError, Target},
    dockerfile::Inline,
    plan::{Action, is_remote},
};
use arrange::{Arranged, Pattern, Place};
use flate2::read::MultiGzDecoder;
use sandboxvm_archive::{Entry, Kind, Timestamp, Writer};
use sandboxvm_oci::Digest;
use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
};

/// Offset of the magic of a tar archive.
const TAR_MAGIC: usize = 257;

/// Maximum size in bytes of an archive of `ADD`, not compressed.
const MAX_ARCHIVE: u64 = 16 << 30;

impl<M: Machines> Build<'_, M> {
    pub(super) async fn copy<D: Disk>(&mut self, machine: &mut D, action: &Action) -> Result<(), StepProblem> {
        let Action::Copy { from, sources, inline, target, chown, chmod, checksum, is_add } = action else {
            // `execute` passes each action to the function for its kind.
            unreachable!("called for COPY")
        };
        let owner = match chown {
            Some(chown) => Some(users::owner(machine, chown, NoGroup::SameNumber).await?),
            None => None,
        };
        let found = machine.find(target).await?;
        let is_directory = target.ends_with('/') || found == Some(Found::Directory);
        if !is_directory && sources.len() + inline.len() > 1 {
            return Err(StepProblem::NotADirectory(target.clone()));
        }
        let place = Place { target, is_directory, owner, chmod: *chmod };
        if !inline.is_empty() {
            let archive = self.documents(inline, place)?;
            deliver(machine, place, is_directory, archive).await?;
        }
        match from {
            None if sources.is_empty() => Ok(()),
            None if *is_add => {
                for source in sources {
                    if is_remote(source) {
                        self.add_remote(machine, source, *checksum, place).await?;
                    } else {
                        self.add(machine, source, place).await?;
                    }
                }
                Ok(())
            }
            None => {
                let (archive, into_directory) = self.selected(sources.clone(), place).await?;
                deliver(machine, place, into_directory, archive).await
            }
            Some(from) => {
                let staging = self.staging;
                let from = staging.source(from)?;
                for source in sources {
                    let pattern = Pattern::of(source);
                    let mut whole = self.machines.scratch()?;
                    if !self.source(from.clone()).await?.archive(&pattern.root, &mut whole).await? {
                        return Err(StepProblem::Missing(source.clone()));
                    }
                    let (archive, arranged) = self.arranged(whole, source.clone(), pattern, place).await?;
                    deliver(machine, place, arranged.into_directory, archive).await?;
                }
                Ok(())
            }
        }
    }

    pub(super) async fn arranged(
        &self,
        mut whole: File,
        source: String,
        pattern: Pattern,
        place: Place<'_>,
    ) -> Result<(File, Arranged), StepProblem> {
        let (output, target, place) = (self.machines.scratch()?, place.target.to_owned(), place.of(""));
        blocking(move || arrange::arrange(&mut whole, &source, &pattern, place.of(&target), output)).await
    }

    /// Writes files of the context as an archive. Returns whether the target is a directory afterwards.
    pub(super) async fn selected(&self, sources: Vec<String>, place: Place<'_>) -> Result<(File, bool), StepProblem> {
        let (context, output) = (self.request.context.clone(), self.machines.scratch()?);
        let (target, Place { is_directory, owner, chmod, .. }) = (place.target.to_owned(), place.of(""));
        blocking(move || {
            let selected = context.select(&sources, Target { path: &target, is_directory })?;
            let archive = selected.write(owner.unwrap_or_default(), chmod, output)?;
            Ok::<_, ContextError>((archive, selected.into_directory()))
        })
        .await
    }

    /// Copies the file at a URL. Archives are not extracted.
    async fn add_remote<D: Disk>(
        &self,
        machine: &mut D,
        url: &str,
        checksum: Option<Digest>,
        place: Place<'_>,
    ) -> Result<(), StepProblem> {
        let target = place.target.trim_matches('/');
        let path = match place.is_directory {
            true => format!("{target}/{}", downloads::name(url)?),
            false => target.to_owned(),
        };
        let path = path.trim_start_matches('/');
        let there = As { path, owner: place.owner.unwrap_or_default(), chmod: place.chmod };
        let archive = self.staging.downloads.archive(self.machines, url, checksum, there).await?;
        deliver(machine, place, place.is_directory, archive).await
    }

    /// Copies a source of `ADD`, or extracts it if it is a tar archive.
    async fn add<D: Disk>(&self, machine: &mut D, source: &str, place: Place<'_>) -> Result<(), StepProblem> {
        let Place { target, is_directory, .. } = place;
        let (sources, name) = (vec![source.to_owned()], format!("ADD of {source}"));
        let selected = self.request.context.select(&sources, Target { path: target, is_directory })?;
        if let Some(file) = selected.only_file()?
            && as_tar(file, &name)?.is_some()
        {
            let (archive, output) = (self.machines.scratch()?, self.machines.scratch()?);
            let (context, target, place_there) = (self.request.context.clone(), target.to_owned(), place.of(""));
            let archive = blocking(move || {
                let selected = context.select(&sources, Target { path: &target, is_directory })?;
                let Some(tar) = as_tar(selected.copy_only_file(archive)?, &name)? else {
                    return Err(ContextError::Changed(sources.concat()).into());
                };
                arrange::extracted(Limited::new(tar, MAX_ARCHIVE), place_there.of(&target), output)
            })
            .await?;
            return deliver(machine, place, true, archive).await;
        }
        let (archive, into_directory) = self.selected(sources, place).await?;
        deliver(machine, place, into_directory, archive).await
    }

    /// Writes the here-documents of a `COPY`.
    fn documents(&self, inline: &[Inline], place: Place<'_>) -> Result<File, StepProblem> {
        let mut writer = Writer::new(self.machines.scratch()?);
        for Inline { name, content, .. } in inline {
            let base = place.target.trim_matches('/');
            let path = if place.is_directory { format!("{base}/{name}") } else { base.to_owned() };
            let (Owner { uid, gid }, modified) = (place.owner.unwrap_or_default(), Timestamp::default());
            let kind = Kind::File { size: content.len() as u64, extents: None };
            let (path, mode) = (path.trim_matches('/').as_bytes().to_vec(), place.chmod.unwrap_or(0o644));
            writer.begin(&Entry { path, kind, mode, uid, gid, modified, attributes: Vec::new() })?;
            writer.content(content.as_bytes())?;
            writer.end()?;
        }
        Ok(writer.finish()?)
    }
}

/// Makes the directory that the files need, and extracts the archive.
pub(super) async fn deliver<D: Disk>(
    disk: &mut D,
    place: Place<'_>,
    into_directory: bool,
    mut archive: File,
) -> Result<(), StepProblem> {
    prepare(disk, place, into_directory).await?;
    archive.seek(SeekFrom::Start(0))?;
    Ok(disk.extract_to_disk(archive).await?)
}

/// Makes the directory that copied files need.
pub(crate) async fn prepare<D: Disk>(disk: &mut D, place: Place<'_>, into_directory: bool) -> Result<(), StepProblem> {
    let target = place.target.trim_end_matches('/');
    let directory = if into_directory { target } else { target.rsplit_once('/').map_or("", |(above, _)| above) };
    if !directory.is_empty() {
        disk.make_directory(directory, place.owner.unwrap_or_default()).await?;
    }
    Ok(())
}

/// Returns a reader of the plain archive if the file is one.
fn as_tar(mut file: File, source: &str) -> Result<Option<Box<dyn Read + Send>>, StepProblem> {
    let mut begin = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.by_ref().take(1024).read_to_end(&mut begin)?;
    file.seek(SeekFrom::Start(0))?;
    // Docker extracts it if an archive is inside, which only reading it could tell.
    let other = |name| Err(StepProblem::Unsupported(format!("{source}, which is compressed with {name},")));
    let is_tar = |bytes: &[u8]| bytes.get(TAR_MAGIC..TAR_MAGIC + 5) == Some(b"ustar");
    match &begin[..] {
        [0x1f, 0x8b, ..] => {
            let mut plain = Vec::new();
            // A file that only begins like gzip is copied.
            let _ = MultiGzDecoder::new(&mut file).take(1024).read_to_end(&mut plain);
            file.seek(SeekFrom::Start(0))?;
            Ok(is_tar(&plain).then(|| Box::new(MultiGzDecoder::new(io::BufReader::new(file))) as Box<dyn Read + Send>))
        }
        [b'B', b'Z', b'h', ..] => other("bzip2"),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => other("xz"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => other("zstd"),
        begin => Ok(is_tar(begin).then(|| Box::new(io::BufReader::new(file)) as Box<dyn Read + Send>)),
    }
}

/// A reader that fails after a number of bytes. A short compressed file could otherwise become any
/// number of them.
struct Limited<R> {
    inner: R,
    left: u64,
    maximum: u64,
}

impl<R: Read> Limited<R> {
    fn new(inner: R, maximum: u64) -> Self {
        Self { inner, left: maximum, maximum }
    }
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let left = self.left.checked_sub(count as u64);
        self.left = left.ok_or_else(|| {
            io::Error::other(format!("an archive of more than {} bytes is not supported", self.maximum))
        })?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_compressions_are_refused_by_name() {
        let problem = |begin: &[u8]| {
            let mut file = tempfile::tempfile().unwrap();
            io::Write::write_all(&mut file, begin).unwrap();
            as_tar(file, "ADD of a").map(|tar| tar.is_some()).map_err(|problem| problem.to_string())
        };
        for (begin, name) in [(&b"BZh9"[..], "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd")] {
            assert_eq!(problem(begin), Err(format!("ADD of a, which is compressed with {name}, is not supported")));
        }
        assert_eq!(problem(b"plain"), Ok(false));
        assert_eq!(problem(b"\x1f\x8b but not gzip"), Ok(false));
    }

    #[test]
    fn compressed_archives_have_a_limit() {
        let mut writer = Writer::new(Vec::new());
        let (kind, modified) = (Kind::File { size: 1 << 20, extents: None }, Timestamp::default());
        let (path, attributes) = (b"zero".to_vec(), Vec::new());
        writer.begin(&Entry { path, kind, mode: 0o644, uid: 0, gid: 0, modified, attributes }).unwrap();
        writer.content(&vec![0; 1 << 20]).unwrap();
        writer.end().unwrap();
        let tar = writer.finish().unwrap();
        let mut gzip = flate2::write::GzEncoder::new(tempfile::tempfile().unwrap(), flate2::Compression::best());
        io::Write::write_all(&mut gzip, &tar).unwrap();
        let mut file = gzip.finish().unwrap();
        assert!(file.stream_position().unwrap() < 10_000);
        let place = Place { target: "/", is_directory: true, owner: None, chmod: None };
        let mut run = |maximum| {
            file.rewind().unwrap();
            let tar = as_tar(file.try_clone().unwrap(), "a.tgz").unwrap().unwrap();
            arrange::extracted(Limited::new(tar, maximum), place, Vec::new())
        };
        assert!(run(tar.len() as u64).is_ok());
        let error = run(1 << 20).unwrap_err().to_string();
        assert!(error.contains("more than 1048576 bytes"), "{error}");
    }
}
