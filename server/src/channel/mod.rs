//! What passes between the process that parses requests from the network (the *front*) and the process that holds the home (the
//! *launcher*): one socket that was made before the front gave up its privileges.
//!
//! ```text
//! front:     control_plane, sandbox_plane ──> client ──┐ requests: IDs, names, bounded parameters, the caller's credential
//!                                                      ├ wire
//! launcher:  registry <── operations, doors <── serve ─┘ answers: JSON, and connections to guests as descriptors
//! ```
//! The launcher never receives a descriptor, a path or a command line, and believes nothing that the front says about who owns
//! what: each request carries the credential of its client, and the launcher checks it.

pub(crate) mod client;
pub(crate) mod failure;
pub(crate) mod opening;
pub(crate) mod paths;
pub(crate) mod reached;
pub(crate) mod request;
pub(crate) mod wire;
