//! What a guest and its peers send through the network of a sandbox.

mod connection_opening;
mod dns_answer;
mod dns_query;
mod egress_frames;

pub use connection_opening::connection_opening;
pub use dns_answer::dns_answer;
pub use dns_query::dns_query;
pub use egress_frames::egress_frames;
