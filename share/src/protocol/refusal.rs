//! Why a request is not carried out.

use rustix::io::Errno;

/// Why a request is not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It is not what a kernel sends.
    Malformed,
    /// This server does not have the operation.
    Unsupported,
    /// A name is too long.
    NameTooLong,
}

impl From<Refusal> for Errno {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Malformed => Self::INVAL,
            Refusal::Unsupported => Self::NOSYS,
            Refusal::NameTooLong => Self::NAMETOOLONG,
        }
    }
}
