//! Of what kind a failure of the host is, for the answer to a request.

use sandboxvm_protocol::vmm::RefusalKind;
use std::io;

/// Returns the kind of refusal for a failed call to the host's kernel.
#[must_use]
pub fn kind_of(error: &io::Error) -> RefusalKind {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => RefusalKind::NoSpace,
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EAGAIN) => RefusalKind::Resources,
        _ => RefusalKind::Host,
    }
}
