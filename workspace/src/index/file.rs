//! The bytes of an index: a magic number with the version, the data in postcard, and a digest of both.
//! Owns its format. The file is written once and then renamed, so what has its name is complete.

use super::Index;
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::{self, Read, Write},
    path::Path,
};

const MAGIC: &[u8; 8] = b"svmwsix1";
const DIGEST: usize = 32;
/// Maximum size in bytes: about ten million files.
const MAX: u64 = 2 << 30;

/// Why an index cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The system refuses it.
    #[error("cannot {step} the index \"{}\": {error}", .path.escape_ascii())]
    Io {
        /// What failed.
        step: &'static str,
        /// Path of the index.
        path: Vec<u8>,
        /// The reason.
        error: io::Error,
    },
    /// The file is not an index of this version, or was changed.
    #[error("the index \"{}\" is damaged, or of another version", .0.escape_ascii())]
    Damaged(Vec<u8>),
}

fn bytes_of(path: &Path) -> Vec<u8> {
    path.as_os_str().as_encoded_bytes().to_vec()
}

impl Index {
    /// Reads an index.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn read(path: &Path) -> Result<Self, IndexError> {
        let file = File::open(path).map_err(|error| IndexError::Io { step: "open", path: bytes_of(path), error })?;
        Self::read_file(&file, path)
    }

    /// Reads an index from an open file, which errors call `path`.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn read_file(file: &File, path: &Path) -> Result<Self, IndexError> {
        let fail = |error| IndexError::Io { step: "read", path: bytes_of(path), error };
        let damaged = || IndexError::Damaged(bytes_of(path));
        let mut bytes = Vec::new();
        file.take(MAX).read_to_end(&mut bytes).map_err(fail)?;
        let (content, digest) = bytes.split_at_checked(bytes.len().saturating_sub(DIGEST)).ok_or_else(damaged)?;
        let body = content.strip_prefix(MAGIC).ok_or_else(damaged)?;
        if Sha256::digest(content)[..] != *digest {
            return Err(damaged());
        }
        postcard::from_bytes(body).map_err(|_| damaged())
    }

    /// Writes the index to a new file.
    pub(crate) fn write(&self, path: &Path) -> Result<(), IndexError> {
        let fail = |error| IndexError::Io { step: "write", path: bytes_of(path), error };
        let encoded = postcard::to_extend(self, MAGIC.to_vec()).map_err(|error| fail(io::Error::other(error)))?;
        let digest = Sha256::digest(&encoded);
        let mut file = File::create_new(path).map_err(fail)?;
        file.write_all(&encoded).and_then(|()| file.write_all(&digest)).map_err(fail)
    }
}
