//! The state file's container: what it is, which version, how long, and a checksum, before anything is decoded.
//!
//! ```text
//! offset  size  field
//! 0       8     magic "SVMSTATE"
//! 8       4     format version, little endian: 1 or 2
//! 12      4     body length in bytes, at most MAX_BODY
//! 16      4     CRC-32 (IEEE) of the body
//! 20      4     CRC-32 of the 20 bytes before
//! 24      ...   body: postcard of `SnapshotState`
//! ```
//! The body holds KVM's structures as byte strings. Their sizes and the version move together: the assertions below
//! stop a build in which they would not.

use super::SnapshotState;
use crate::process::failure::kind_of;
use sandboxvm_protocol::vmm::RefusalKind;
use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
};

/// First bytes of every state file.
pub const MAGIC: [u8; 8] = *b"SVMSTATE";
/// Version written. 2 has the balloon among the devices: a build that knows version 1 only has none to restore.
pub const VERSION: u32 = 2;
/// Oldest version read. The body of version 1 is the same, and says itself which devices there are.
pub const OLDEST_VERSION: u32 = 1;
/// Bytes before the body.
pub const HEADER_LEN: usize = 24;
/// Largest body in bytes: eight vCPUs, all devices and a memory map of the most extents are well below.
pub const MAX_BODY: usize = 4 << 20;

// A change in one of these changes the body's meaning: raise VERSION together with the number.
const _: () = assert!(size_of::<kvm_bindings::kvm_regs>() == 144);
const _: () = assert!(size_of::<kvm_bindings::kvm_sregs>() == 312);
const _: () = assert!(size_of::<kvm_bindings::kvm_xsave>() == 4096);
const _: () = assert!(size_of::<kvm_bindings::kvm_lapic_state>() == 1024);
const _: () = assert!(size_of::<kvm_bindings::kvm_vcpu_events>() == 64);
const _: () = assert!(size_of::<kvm_bindings::kvm_irqchip>() == 520);
const _: () = assert!(size_of::<kvm_bindings::kvm_clock_data>() == 48);

/// Why a state file cannot be used, or not be written.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The file cannot be read or written.
    #[error("cannot access the snapshot's state file: {0}")]
    Io(#[from] io::Error),
    /// Too short for a header.
    #[error("the snapshot's state file is truncated ({0} bytes); make the snapshot again")]
    Truncated(usize),
    /// Not a state file.
    #[error("this is not a sandboxvm snapshot state file")]
    Magic,
    /// Written by an older build.
    #[error(
        "the snapshot has format version {0}, which is older than version {OLDEST_VERSION}, the oldest that this build \
         reads: a machine only continues with the devices of its time; make it again with this build"
    )]
    Older(u32),
    /// Written by a newer build.
    #[error(
        "the snapshot has format version {0}, which is newer than version {VERSION} that this build reads; upgrade \
         sandboxvm, or make it again with this build"
    )]
    Newer(u32),
    /// Header or body were changed.
    #[error("the snapshot's state file is damaged ({0} checksum differs); make the snapshot again")]
    Checksum(&'static str),
    /// Stated length.
    #[error("the snapshot's state is {0} bytes long, more than the {MAX_BODY} there can be")]
    TooLong(usize),
    /// The body is nonsense although its checksum is right.
    #[error("the snapshot's state does not decode: {0}")]
    Body(postcard::Error),
}

impl FormatError {
    /// Returns the kind of refusal for a state file that cannot be read.
    #[must_use]
    pub fn kind(&self) -> RefusalKind {
        match self {
            Self::Io(source) => kind_of(source),
            _ => RefusalKind::BadSnapshot,
        }
    }

    /// Returns the kind of refusal for a state file that cannot be written.
    #[must_use]
    pub fn kind_of_write(&self) -> RefusalKind {
        match self {
            Self::Io(source) => kind_of(source),
            _ => RefusalKind::Host,
        }
    }
}

/// Encodes `state` as a whole file.
///
/// # Errors
/// When it does not fit [`MAX_BODY`].
pub fn encode(state: &SnapshotState) -> Result<Vec<u8>, FormatError> {
    let body = postcard::to_stdvec(state).map_err(FormatError::Body)?;
    let length = match u32::try_from(body.len()) {
        Ok(length) if body.len() <= MAX_BODY => length,
        _ => return Err(FormatError::TooLong(body.len())),
    };
    let mut bytes = Vec::with_capacity(HEADER_LEN + body.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// Reads and checks a state file from its beginning.
///
/// # Errors
/// See [`FormatError`]; nothing of a file that fails a check is used.
pub fn read(file: &File) -> Result<SnapshotState, FormatError> {
    let at_most = (HEADER_LEN + MAX_BODY) as u64 + 1;
    // One read where the file is as long as it says; a stated length is believed only for what it costs to try.
    let len = file.metadata()?.len().min(at_most);
    let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0) + 1);
    ReadAt { file, offset: 0 }.take(at_most).read_to_end(&mut bytes)?;
    decode(&bytes)
}

/// Decodes the bytes of a whole file.
///
/// # Errors
/// See [`FormatError`].
pub fn decode(bytes: &[u8]) -> Result<SnapshotState, FormatError> {
    let Some((header, body)) = bytes.split_first_chunk::<HEADER_LEN>() else {
        return Err(FormatError::Truncated(bytes.len()));
    };
    if header[..8] != MAGIC {
        return Err(FormatError::Magic);
    }
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    match word(8) {
        version if version < OLDEST_VERSION => return Err(FormatError::Older(version)),
        version if version > VERSION => return Err(FormatError::Newer(version)),
        _ => {}
    }
    if crc32fast::hash(&header[..20]) != word(20) {
        return Err(FormatError::Checksum("header"));
    }
    let length = word(12) as usize;
    if length > MAX_BODY {
        return Err(FormatError::TooLong(length));
    }
    if body.len() != length {
        return Err(FormatError::Truncated(bytes.len()));
    }
    if crc32fast::hash(body) != word(16) {
        return Err(FormatError::Checksum("body"));
    }
    let (state, rest) = postcard::take_from_bytes(body).map_err(FormatError::Body)?;
    if rest.is_empty() { Ok(state) } else { Err(FormatError::Body(postcard::Error::DeserializeBadEncoding)) }
}

/// Reads a shared file with a separate offset.
struct ReadAt<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for ReadAt<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(into, self.offset)?;
        self.offset += n as u64;
        Ok(n)
    }
}
