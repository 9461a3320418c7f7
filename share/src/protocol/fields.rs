//! Reads the fields of a request.

use super::{name::Name, refusal::Refusal};

/// The bytes of a request that were not read yet.
#[derive(Debug)]
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or(Refusal::Malformed)?;
        self.0 = rest;
        Ok(*field)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Refusal> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Refusal> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    /// Skips fields that mean nothing here.
    pub(super) fn skip(&mut self, bytes: usize) -> Result<(), Refusal> {
        self.0 = self.0.get(bytes..).ok_or(Refusal::Malformed)?;
        Ok(())
    }

    /// Reads bytes up to a NUL.
    pub(super) fn text(&mut self) -> Result<&'a [u8], Refusal> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or(Refusal::Malformed)?;
        let (text, rest) = self.0.split_at(end);
        self.0 = &rest[1..];
        Ok(text)
    }

    /// Reads this number of bytes.
    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Refusal> {
        let (bytes, rest) = self.0.split_at_checked(count).ok_or(Refusal::Malformed)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// Reads the name of an entry of a directory.
    pub(super) fn name(&mut self) -> Result<Name<'a>, Refusal> {
        Name::new(self.text()?)
    }

    /// Returns everything that is left.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Checks that nothing is left.
    pub(super) fn end(self) -> Result<(), Refusal> {
        if self.0.is_empty() { Ok(()) } else { Err(Refusal::Malformed) }
    }
}
