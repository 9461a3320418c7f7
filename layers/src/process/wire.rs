//! Messages between the process and its caller: one packet of a `SOCK_SEQPACKET` socket is one frame
//! with one message.

use crate::{
    format::Format,
    limits::Limits,
    unpack::{DiffId, LayerError, Progress, Summary, UnpackError},
};
use sandboxvm_protocol::frame::{Message, Wire};
use serde::{Deserialize, Serialize};

/// The wire. Both ends are of one build, so it has one version.
pub(super) const WIRE: Wire = Wire { magic: *b"SL", version: 2, oldest: 2 };

/// Maximum size of a message in bytes: the digests of all layers and what belongs to them.
pub(super) const MAX_MESSAGE: usize = 32 * 1024;

/// Maximum length of a text in a message in bytes.
const MAX_TEXT: usize = 8 * 1024;

/// What the caller knows of a layer beside its descriptor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerSource {
    /// The format that its media type states. Without one, the content decides.
    pub format: Option<Format>,
    /// The digest that its uncompressed bytes must have.
    pub diff_id: Option<DiffId>,
}

/// What the process writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Product {
    /// The image, as [`unpack`](crate::unpack) does.
    Image,
    /// The names in the image, as [`list`](crate::list) does.
    List,
}

/// The only request. Its descriptors are those of the layers, the lowest one first, and then that of the
/// product, an empty file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) product: Product,
    pub(super) layers: Vec<LayerSource>,
    /// Directories that are made where no layer has them.
    pub(super) directories: Vec<Vec<u8>>,
    pub(super) limits: Limits,
}

/// What the process says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// It is confined. The list says what of the confinement the host refused.
    Confined(Vec<String>),
    /// It has read more.
    Progress(Progress),
    /// The image is complete.
    Finished(Summary),
    /// There is no image.
    Failed(Failure),
}

/// What a failure is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// A layer is invalid.
    Layer,
    /// A layer has another digest than expected.
    Digest,
    /// A limit was exceeded.
    Limit,
    /// The image cannot be written, or a layer cannot be read.
    Io,
    /// The process could not be confined, or was started incorrectly.
    Process,
}

/// A failure, with a message of one line for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What it is about.
    pub kind: FailureKind,
    /// What is wrong.
    pub message: String,
}

impl Message for Request {}
impl Message for Event {}

impl Failure {
    /// Returns a failure with this message, which is cut if it is very long.
    pub(super) fn new(kind: FailureKind, message: &dyn std::fmt::Display) -> Self {
        let mut message = message.to_string();
        message.truncate(message.floor_char_boundary(MAX_TEXT));
        Self { kind, message }
    }
}

impl Event {
    /// Returns the event with texts that cannot control a terminal.
    pub(super) fn escaped(self) -> Self {
        match self {
            Self::Confined(missing) => Self::Confined(missing.iter().map(|text| escape(text)).collect()),
            Self::Failed(failure) => Self::Failed(Failure { message: escape(&failure.message), ..failure }),
            Self::Progress(_) | Self::Finished(_) => self,
        }
    }
}

fn escape(text: &str) -> String {
    let escape =
        |char: char| -> String { if char.is_control() { char.escape_default().collect() } else { char.to_string() } };
    text.chars().map(escape).collect()
}

impl From<&UnpackError> for Failure {
    fn from(error: &UnpackError) -> Self {
        Self::new(kind(error), error)
    }
}

fn kind(error: &UnpackError) -> FailureKind {
    use crate::{output::OutputError, tree::TreeError, unpack::EntryError};
    use sandboxvm_archive::ReadError;
    match error {
        UnpackError::Limit(_) | UnpackError::Output(OutputError::TooLarge(_)) => FailureKind::Limit,
        UnpackError::Output(OutputError::Io(_)) => FailureKind::Io,
        UnpackError::Layer { problem, .. } => match problem {
            LayerError::Limit(_) | LayerError::Output(OutputError::TooLarge(_)) => FailureKind::Limit,
            LayerError::Entry { problem: EntryError::Tree(TreeError::Limit(_)), .. } => FailureKind::Limit,
            LayerError::Output(OutputError::Io(_)) => FailureKind::Io,
            LayerError::Digest { .. } => FailureKind::Digest,
            LayerError::Archive(ReadError::Input(error)) => match error.kind() {
                // What the decoders say of damaged content.
                std::io::ErrorKind::InvalidData
                | std::io::ErrorKind::InvalidInput
                | std::io::ErrorKind::UnexpectedEof => FailureKind::Layer,
                _ if error.get_ref().is_some_and(|inner| inner.is::<crate::Exceeded>()) => FailureKind::Limit,
                _ => FailureKind::Io,
            },
            LayerError::Archive(_) | LayerError::Format(_) | LayerError::Entry { .. } => FailureKind::Layer,
        },
    }
}
