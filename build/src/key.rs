//! Cache keys: a hash of the key before, of the step as it is executed, and of the content that it
//! copies. May never contain a time or a secret.

use sha2::{Digest, Sha256};
use std::fmt;

/// Identifies the state of a machine's disk after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key([u8; 32]);

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Collects the parts of a key. Each part is preceded by its length, so that different parts never
/// hash as the same bytes.
#[derive(Debug, Clone)]
pub struct KeyBuilder(Sha256);

impl KeyBuilder {
    /// Begins a key of this kind.
    #[must_use]
    pub fn new(kind: &str) -> Self {
        let mut builder = Self(Sha256::new());
        builder.part(b"sandboxvm-build 2").part(kind.as_bytes());
        builder
    }

    /// Adds a part.
    pub fn part(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    /// Adds a part that may be absent, which differs from an empty one.
    pub fn optional(&mut self, bytes: Option<&[u8]>) -> &mut Self {
        self.0.update([u8::from(bytes.is_some())]);
        match bytes {
            Some(bytes) => self.part(bytes),
            None => self,
        }
    }

    /// Adds the length of a list. It belongs before its items.
    pub fn count(&mut self, length: usize) -> &mut Self {
        self.0.update((length as u64).to_le_bytes());
        self
    }

    /// Adds a list of parts.
    pub fn parts<T: AsRef<[u8]>>(&mut self, parts: &[T]) -> &mut Self {
        self.count(parts.len());
        for part in parts {
            self.part(part.as_ref());
        }
        self
    }

    /// Adds another key.
    pub fn key(&mut self, key: Key) -> &mut Self {
        self.part(&key.0)
    }

    /// Returns the key.
    #[must_use]
    pub fn finish(self) -> Key {
        Key(self.0.finalize().into())
    }
}
