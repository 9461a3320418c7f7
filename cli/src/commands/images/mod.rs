//! The commands on images and how they are made.

pub(crate) mod build;
pub(crate) mod commit;
pub(crate) mod image;
pub(crate) mod template;
