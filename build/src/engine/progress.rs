//! What a build reports while it runs. Texts come from Dockerfiles and guests, and may not be
//! printed to a terminal as they are.

use super::machine::Stream;

/// Something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// A step begins.
    Step {
        /// Position of the stage in the Dockerfile.
        stage: usize,
        /// Position of the step in its stage, from 1.
        number: usize,
        /// Number of steps of the stage.
        of: usize,
        /// First line of the instruction.
        text: &'a str,
        /// Whether its result is known, so that it is not executed.
        cached: bool,
    },
    /// A process wrote something. Secrets are masked.
    Output(Stream, &'a [u8]),
    /// Something that the user should know.
    Note(&'a str),
    /// The image is stored: this is the digest of its manifest.
    Stored(&'a str),
}

/// Receives events. It is called on the path of the build, so it may not block for long.
pub trait Progress: Sync {
    /// Receives an event.
    fn notify(&self, event: Event<'_>);
}
