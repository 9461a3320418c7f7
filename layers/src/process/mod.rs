//! The process that reads layers. Its caller starts it with a socket as standard input, and sends one
//! request with descriptors of all layers and of the image. The process confines itself before it
//! reads the first byte of a layer, and then reports until it ends.
//!
//! ```text
//! Unpacking ── Request, descriptors ──> serving::serve
//!           <── Event ────────────────
//! ```
//! The process may be taken over by a layer, so its caller holds everything that it says for hostile.

mod client;
pub mod confinement;
mod packets;
pub mod serving;
mod wire;

pub use client::{ProcessError, Unpacker, Unpacking};
pub use wire::{Event, Failure, FailureKind, LayerSource, Product};
