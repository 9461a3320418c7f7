//! flock(2) in this crate. Only `locks`, which names the locks, and the claim of a directory may call this.

pub(crate) use sandboxvm_file_lock::{Sharing, is_named, try_take, wait};
