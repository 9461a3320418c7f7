//! Images from and to files: a tar archive of `docker save` or of the OCI, or an OCI layout directory.
//! Everything in them is hostile. Nothing is unpacked to paths that they state: members are copied
//! to unfinished files of the store, and looked up by name. May publish nothing before all of an
//! image was checked.

mod daemon;
mod error;
mod input;
mod members;
mod read;
mod save;

pub use error::LoadError;
pub use read::Loaded;
pub use save::SaveError;

pub(crate) use daemon::request;
pub(crate) use members::Members;
pub(crate) use read::{Names, load};
pub(crate) use save::save;
