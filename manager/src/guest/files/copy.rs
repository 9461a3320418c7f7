//! Copies between host and sandbox, by docker's rules: into an existing directory, or else in place
//! of the path. Of a source that ends in `/.`, only the content is copied.
//!
//! A separate thread packs or unpacks, since file operations block; two pieces of 64 KiB are
//! between the thread and the connection. Cancelling a copy closes the channel and waits for the
//! thread to remove the file that it had started.

use super::{CopyError, FileError, Files, HostTarget, target::Copied};
use rustix::fs::CWD;
use sandboxvm_protocol::agent::files::{FileErrorKind, FileKind, FilePath, FileTotals};
use sandboxvm_tree::{
    PackError, PackOptions, Reader, Totals, Trust, UnpackError, UnpackPolicy, Writer, pack, unpack, unpack_single,
};
use std::{
    fs,
    future::Future,
    io::{self, Read, Write},
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::{Arc, atomic::AtomicU64},
};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, spawn_blocking},
};

/// Size in bytes of a piece between the thread and the connection.
const PIECE: usize = 64 * 1024;
/// Maximum number of bytes after the end of an archive that are read and ignored.
const MAX_TRAILING: usize = 1 << 20;

/// Limits for a copy out of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyLimits {
    /// Maximum number of bytes of all files together, with holes counted.
    pub max_bytes: u64,
    /// Maximum number of files, directories and links.
    pub max_entries: u64,
    /// Mode bits that no file on the host gets, as in umask(2).
    pub umask: u32,
}

impl Default for CopyLimits {
    /// Returns limits of 16 GiB and 100,000 files that only their owner may write to.
    fn default() -> Self {
        Self { max_bytes: 16 << 30, max_entries: 100_000, umask: 0o022 }
    }
}

/// The result of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyReport {
    /// Totals, counted on the side that wrote the files.
    pub totals: FileTotals,
}

/// A piece of an archive, or its end.
enum Piece {
    Data(Vec<u8>),
    /// The archive is complete.
    End,
}

impl Files<'_> {
    /// Copies a file or tree of the sandbox to `to` on the host. The data is treated as hostile: it
    /// stays below that path, follows no links, and is limited by `limits`. Files belong to the
    /// caller and have no set-user-ID bits. With `follow`, the target of a symbolic link is copied.
    /// Adds the written bytes to `progress`. If `given_up` resolves, the copy is cancelled, and no
    /// incomplete file is left.
    ///
    /// # Errors
    /// Every [`CopyError`]. Files that were copied before stay.
    pub async fn copy_out(
        &self,
        from: &FilePath,
        to: &Path,
        follow: bool,
        limits: CopyLimits,
        progress: Arc<AtomicU64>,
        given_up: impl Future<Output = ()>,
    ) -> Result<CopyReport, CopyError> {
        let (path, name) = source(from.as_bytes());
        let path = FilePath::try_from(path.to_vec()).map_err(FileError::from)?;
        let content = FilePath::try_from(".").map_err(FileError::from)?;
        tokio::pin!(given_up);
        let begin = self.archive(path, content, follow);
        let mut stream = tokio::select! {
            stream = begin => stream?,
            () = &mut given_up => return Err(CopyError::GivenUp),
        };
        let is_directory = stream.entry().kind == FileKind::Directory;
        let target = HostTarget::find(to, Copied { name, is_directory })?;
        let (sender, receiver) = mpsc::channel(1);
        let thread = spawn_blocking(move || take(PieceReader::new(receiver), target, limits, &progress));
        let pump = async {
            let mut trailing = 0;
            while let Some(bytes) = stream.next().await? {
                if sender.is_closed() || sender.send(Piece::Data(bytes)).await.is_err() {
                    // The thread has the whole archive or rejected it; its result below says which.
                    trailing += PIECE;
                    if trailing > MAX_TRAILING {
                        break;
                    }
                }
            }
            let _ = sender.send(Piece::End).await;
            Ok::<_, FileError>(stream.totals())
        };
        let pumped = tokio::select! {
            pumped = pump => Some(pumped),
            () = &mut given_up => None,
        };
        drop(sender);
        let unpacked = thread.await;
        let sent = match pumped {
            None => return Err(CopyError::GivenUp),
            Some(sent) => sent,
        };
        let unpacked = unpacked.unwrap_or(Err(UnpackError::NotSingle));
        let totals = match (sent, unpacked) {
            // If the stream broke, its side has the reason; if the archive was rejected, ours has
            // it.
            (Err(error), Ok(_) | Err(UnpackError::Archive(_))) => return Err(error.into()),
            (_, Err(error)) => return Err(error.into()),
            (Ok(sent), Ok(totals)) => of(totals, sent.map_or(0, |sent| sent.left_out)),
        };
        Ok(CopyReport { totals })
    }

    /// Copies a file or tree of the host to `to` in the sandbox. With `keep_owner`, owners and
    /// set-user-ID bits are those of the host; otherwise files belong to the user of these
    /// [`Files`]. The other parameters are as in [`Self::copy_out`].
    ///
    /// # Errors
    /// Every [`CopyError`]. Files that were copied before stay.
    pub async fn copy_in(
        &self,
        from: &Path,
        to: &FilePath,
        follow: bool,
        keep_owner: bool,
        progress: Arc<AtomicU64>,
        given_up: impl Future<Output = ()>,
    ) -> Result<CopyReport, CopyError> {
        let (path, name) = source(from.as_os_str().as_bytes());
        let path = path.to_vec();
        let name = name.map(<[u8]>::to_vec);
        let from_path = Path::new(std::ffi::OsStr::from_bytes(&path));
        let about = if follow { fs::metadata(from_path) } else { fs::symlink_metadata(from_path) };
        let about = about.map_err(|error| CopyError::Host { step: "look at", path: from.to_owned(), error })?;
        tokio::pin!(given_up);
        let begin = async {
            let place = self.guest_place(to, name.as_deref(), about.is_dir()).await?;
            let sink = self.extract(place.directory, place.create, keep_owner).await?;
            Ok::<_, CopyError>((place.name, sink))
        };
        let (name, mut sink) = tokio::select! {
            begun = begin => begun?,
            () = &mut given_up => return Err(CopyError::GivenUp),
        };
        let (sender, mut receiver) = mpsc::channel(1);
        let thread: JoinHandle<Result<Totals, PackError>> = spawn_blocking(move || {
            let mut writer = Writer::new(PieceWriter { sender, buffer: Vec::with_capacity(PIECE) });
            let options = PackOptions { follow, one_filesystem: false, progress: Some(&progress) };
            let totals = pack(&mut writer, CWD, &path, &name, options)?;
            writer.finish()?.end()?;
            Ok(totals)
        });
        let pump = async {
            while let Some(piece) = receiver.recv().await {
                match piece {
                    Piece::Data(bytes) => sink.write(&bytes).await?,
                    Piece::End => return sink.finish().await.map(Some),
                }
            }
            // The archive has no end: the result of the thread says why.
            Ok(None)
        };
        let pumped = tokio::select! {
            pumped = pump => Some(pumped),
            () = &mut given_up => None,
        };
        drop(receiver);
        let packed = thread.await;
        match (pumped, packed) {
            (None, _) => Err(CopyError::GivenUp),
            (Some(Err(error)), _) => Err(error.into()),
            (_, Ok(Err(error))) => Err(error.into()),
            (Some(Ok(Some(done))), Ok(Ok(packed))) => {
                Ok(CopyReport { totals: FileTotals { left_out: packed.left_out, ..done.totals() } })
            }
            (Some(Ok(_)), _) => Err(CopyError::GivenUp),
        }
    }

    /// Returns the place in the guest to which a copy goes.
    async fn guest_place(&self, to: &FilePath, name: Option<&[u8]>, is_directory: bool) -> Result<Place, CopyError> {
        let text = to.as_bytes();
        let must_be_directory = text.ends_with(b"/") || text.ends_with(b"/.");
        let there = match self.stat(to.clone(), true).await {
            Ok(entry) => Some(entry.kind),
            Err(error) if error.kind() == Some(FileErrorKind::NotFound) => None,
            Err(error) => return Err(error.into()),
        };
        let problem = |problem| {
            let shown = crate::printable(&String::from_utf8_lossy(text));
            Err(CopyError::Target { path: format!("{shown} in the sandbox").into(), problem })
        };
        let place = |path: &[u8], name: &[u8], create| {
            let directory = FilePath::try_from(path.to_vec()).map_err(FileError::from)?;
            Ok(Place { directory, name: name.to_vec(), create })
        };
        let (above, last) = above(text);
        match (there, is_directory) {
            (Some(FileKind::Directory), true) => place(text, name.unwrap_or(b"."), false),
            (Some(FileKind::Directory), false) => place(text, name.unwrap_or(b"file"), false),
            (Some(_), true) => problem("a directory cannot take the place of a file; name another place"),
            (Some(FileKind::File), false) if !must_be_directory => place(above, last, false),
            (Some(FileKind::File), false) => problem("is no directory; leave out the '/' at its end"),
            (Some(_), false) => problem("is no regular file"),
            (None, false) if must_be_directory => problem("there is no such directory; make it first"),
            (None, false) => place(above, last, false),
            (None, true) => {
                // Missing directories above it are more often a mistake than intended.
                let above = FilePath::try_from(above.to_vec()).map_err(FileError::from)?;
                self.stat(above, true).await?;
                place(text, b".", true)
            }
        }
    }
}

/// A place in the guest for an archive, and the name of its tree in the archive.
struct Place {
    directory: FilePath,
    name: Vec<u8>,
    create: bool,
}

/// Returns the path to copy, and its name. The name is `None` for a directory of which only the
/// content is copied.
fn source(path: &[u8]) -> (&[u8], Option<&[u8]>) {
    let mut trimmed = path;
    while trimmed.len() > 1 && trimmed.ends_with(b"/") {
        trimmed = &trimmed[..trimmed.len() - 1];
    }
    let (_, last) = above(trimmed);
    // For `/`, `.` and `dir/.` the content is copied.
    if matches!(last, b"" | b"." | b"..") { (path, None) } else { (trimmed, Some(last)) }
}

/// Returns the directory above a path, and the last component.
fn above(path: &[u8]) -> (&[u8], &[u8]) {
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |at| at + 1);
    let path = &path[..end];
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(0) => (b"/", &path[1..]),
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b".", path),
    }
}

fn of(totals: Totals, left_out: u64) -> FileTotals {
    let Totals { entries, bytes, attributes_lost, .. } = totals;
    FileTotals { entries, bytes, left_out, attributes_lost }
}

/// Unpacks a copy out of the sandbox, on the thread.
fn take(
    pieces: PieceReader,
    target: HostTarget,
    limits: CopyLimits,
    progress: &AtomicU64,
) -> Result<Totals, UnpackError> {
    let policy = UnpackPolicy {
        trust: Trust::Nothing,
        max_bytes: limits.max_bytes,
        max_entries: limits.max_entries,
        keep_owner: false,
        adopt_root: target.is_new,
        umask: limits.umask,
        progress: Some(progress),
    };
    let mut reader = Reader::new(pieces);
    match &target.name {
        Some(name) => unpack_single(&mut reader, target.directory, name.as_bytes(), &policy),
        None => unpack(&mut reader, target.directory, &policy),
    }
}

/// Reads the content of the pieces.
struct PieceReader {
    pieces: mpsc::Receiver<Piece>,
    piece: Vec<u8>,
    taken: usize,
    ended: bool,
}

impl PieceReader {
    fn new(pieces: mpsc::Receiver<Piece>) -> Self {
        Self { pieces, piece: Vec::new(), taken: 0, ended: false }
    }
}

impl Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.piece.len() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Data(bytes)) => (self.piece, self.taken) = (bytes, 0),
                Some(Piece::End) => self.ended = true,
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let rest = &self.piece[self.taken..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.taken += count;
        Ok(count)
    }
}

/// Writes into pieces.
struct PieceWriter {
    sender: mpsc::Sender<Piece>,
    buffer: Vec<u8>,
}

impl PieceWriter {
    fn send(&mut self, piece: Piece) -> io::Result<()> {
        self.sender.blocking_send(piece).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn end(mut self) -> io::Result<()> {
        self.flush()?;
        self.send(Piece::End)
    }
}

impl Write for PieceWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(PIECE - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..count]);
        if self.buffer.len() == PIECE {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE));
        self.send(Piece::Data(full))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_is_a_path_or_its_content() {
        for (path, expected, name) in [
            ("/a/b", "/a/b", Some("b")),
            ("/a/b//", "/a/b", Some("b")),
            ("b", "b", Some("b")),
            ("/a/b/.", "/a/b/.", None),
            ("/", "/", None),
            (".", ".", None),
            ("../..", "../..", None),
        ] {
            let found = source(path.as_bytes());
            assert_eq!(found, (expected.as_bytes(), name.map(str::as_bytes)), "{path}");
        }
        assert_eq!(above(b"/a"), (&b"/"[..], &b"a"[..]));
        assert_eq!(above(b"/a/b/"), (&b"/a"[..], &b"b"[..]));
        assert_eq!(above(b"a"), (&b"."[..], &b"a"[..]));
    }

    #[test]
    fn reader_fails_if_the_writer_is_dropped_before_the_end() {
        let (sender, receiver) = mpsc::channel(2);
        let writer = std::thread::spawn(move || {
            let mut writer = PieceWriter { sender, buffer: Vec::new() };
            writer.write_all(&vec![7; 3 * PIECE + 5]).unwrap();
            writer.end().unwrap();
        });
        let mut all = Vec::new();
        PieceReader::new(receiver).read_to_end(&mut all).unwrap();
        assert_eq!(all, vec![7; 3 * PIECE + 5]);
        writer.join().unwrap();

        let (sender, receiver) = mpsc::channel(2);
        sender.try_send(Piece::Data(vec![1])).ok().unwrap();
        drop(sender);
        assert!(PieceReader::new(receiver).read_to_end(&mut all).is_err());
        let (sender, receiver) = mpsc::channel(2);
        drop(receiver);
        assert!(PieceWriter { sender, buffer: vec![1] }.end().is_err());
    }
}
