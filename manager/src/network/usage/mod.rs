//! What the audit log says about the use of a network, and what follows from it. Everything here comes
//! from guests.
//!
//! ```text
//! traffic  the reports of an egress process, as a bounded number of audit lines
//! advice   what would allow something that was refused
//! suggest  the smallest set of rules that covers what was used
//! ```

mod advice;
mod suggest;
mod traffic;

pub use advice::Advice;
pub use suggest::{SuggestedRule, Suggester, Suggestion};
pub(crate) use traffic::Traffic;
