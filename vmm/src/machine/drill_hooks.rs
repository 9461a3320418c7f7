//! The places where a running machine meets the escape drills (`drills/`). In a build without the feature `escape-drills`,
//! such as that of every bundle, nothing happens here.

#[cfg(feature = "escape-drills")]
pub(crate) use crate::drills::{do_what_is_due, is_asked};

/// Returns true when a write to a port asked for a drill: never.
#[cfg(not(feature = "escape-drills"))]
pub(crate) fn is_asked(_port: u16, _data: &[u8], _shared: &super::phase::Shared) -> bool {
    false
}

/// Does the drill that is due in the event loop: none.
#[cfg(not(feature = "escape-drills"))]
pub(crate) fn do_what_is_due() {}
