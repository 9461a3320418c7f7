//! With whose authority files are accessed: the user's and, where that is not enough, root's. A client that may send such
//! requests may name root as the user, so it gains nothing by this. What root creates here is given to the user.

use crate::sandbox_plane::envd::{connect::Call, paths::home};
use sandboxvm_manager::{CText, FileEntry, FileError, FileErrorKind, FilePath, Files};
use std::{future::Future, pin::Pin};

/// Something under way.
pub(in crate::sandbox_plane::envd) type Work<'c, T> = Pin<Box<dyn Future<Output = Result<T, FileError>> + Send + 'c>>;

/// Deeper paths are made by root for root.
const MAX_DEPTH: usize = 64;

/// Does something as the user, and again as root where the user may not. A path that begins at the user's home begins
/// there both times.
pub(in crate::sandbox_plane::envd) async fn as_root<'c, P: Paths + Clone, T>(
    call: &'c Call,
    paths: P,
    work: impl Fn(Files<'c>, P) -> Work<'c, T>,
) -> Result<T, FileError> {
    match work(call.files(), paths.clone()).await {
        Err(error) if error.kind() == Some(FileErrorKind::PermissionDenied) => match paths.absolute(call).await {
            Some(paths) => work(call.sandbox().files(), paths).await,
            None => Err(error),
        },
        done => done,
    }
}

/// Makes a directory that must be new, and those above it.
pub(super) async fn make_directory(call: &Call, path: FilePath) -> Result<FileEntry, FileError> {
    match call.files().make_directory(path.clone(), None, true).await {
        Err(error) if error.kind() == Some(FileErrorKind::PermissionDenied) => {
            let Some(path) = path.absolute(call).await else { return Err(error) };
            let made = topmost_missing(call, &path).await?;
            call.sandbox().files().make_directory(path.clone(), None, true).await?;
            own_what_was_made(call, made).await?;
            call.sandbox().files().stat(path, false).await
        }
        done => done,
    }
}

/// The first part of a path that is not there yet, as root sees it.
pub(in crate::sandbox_plane::envd) async fn topmost_missing(
    call: &Call,
    path: &FilePath,
) -> Result<Option<FilePath>, FileError> {
    let bytes = path.as_bytes();
    let ends = bytes.iter().enumerate().skip(1).filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    let ends: Vec<usize> = ends.chain([bytes.len()]).take(MAX_DEPTH).collect();
    // From below: most of a path is there.
    let mut missing = None;
    for end in ends.into_iter().rev() {
        let part = FilePath::try_from(bytes[..end].to_vec())?;
        match call.sandbox().files().stat(part.clone(), true).await {
            Ok(_) => break,
            Err(error) if error.kind() == Some(FileErrorKind::NotFound) => missing = Some(part),
            Err(error) => return Err(error),
        }
    }
    Ok(missing)
}

/// Gives the user what root made in its stead.
pub(in crate::sandbox_plane::envd) async fn own_what_was_made(
    call: &Call,
    made: Option<FilePath>,
) -> Result<(), FileError> {
    let Some(made) = made else { return Ok(()) };
    let group = home(call).await.ok().and_then(|home| home.group);
    let with_group =
        |group: u32| CText::try_from([call.user.as_bytes(), b":", group.to_string().as_bytes()].concat()).ok();
    let owner = group.and_then(with_group).unwrap_or_else(|| call.user.clone());
    call.sandbox().files().set_owner(made, owner, true).await?;
    Ok(())
}

/// Paths that may begin at the user's home.
pub(in crate::sandbox_plane::envd) trait Paths: Sized {
    /// The same from the root; nothing where that cannot be said.
    fn absolute(self, call: &Call) -> impl Future<Output = Option<Self>> + Send;
}

impl Paths for FilePath {
    async fn absolute(self, call: &Call) -> Option<Self> {
        if self.as_bytes().starts_with(b"/") {
            return Some(self);
        }
        let home = home(call).await.ok()?;
        Self::try_from([home.path.as_bytes(), b"/", self.as_bytes()].concat()).ok()
    }
}

impl Paths for (FilePath, FilePath) {
    async fn absolute(self, call: &Call) -> Option<Self> {
        Some((self.0.absolute(call).await?, self.1.absolute(call).await?))
    }
}
