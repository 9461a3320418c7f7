//! A guest that opens a connection with any bytes, in pieces of any length.
//!
//! Input: the bytes of the client. The target panics unless a decision stays the same when more
//! bytes arrive, and unless a decision is made before the limit of bytes.

use sandboxvm_egress_policy::inspect::{MAX_OPENING, Progress, look};

/// Looks at the opening, and at beginnings of it.
pub fn connection_opening(data: &[u8]) {
    let whole = look(data);
    for end in [1, 2, 5, 9, 43, data.len() / 3, data.len() / 2, data.len().saturating_sub(1)] {
        if let Some(beginning) = data.get(..end) {
            let decided = look(beginning);
            assert!(decided == Progress::More || decided == whole, "{decided:?} became {whole:?}");
        }
    }
    assert!(whole != Progress::More || data.len() < MAX_OPENING, "no decision at the limit");
}
