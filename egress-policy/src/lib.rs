//! What a sandbox may reach on the network, as decisions on data: rules, the policy made of them, the hard floor, the
//! addresses that were answers to its questions, and the names that its connections show.
//!
//! This crate knows no virtual machine, opens no socket and reads no file. Everything that it is given of a guest is
//! hostile, and everything that it cannot decide is refused.
//!
//! ```text
//! question ── name ──> policy.asked        connection ── floor ──> policy.begun ── inspect ──> policy.named
//!                        └── answer ──> pins ─────────────────────────┘
//! ```

pub mod floor;
pub mod inspect;
pub mod name;
pub mod pins;
pub mod policy;
pub mod rule;
