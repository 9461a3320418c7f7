//! What a sandbox may reach on the network: what a user asks for, what the operator permits, the
//! record of it in the sandbox's directory, and what the audit log says about its use.
//!
//! ```text
//! spec         what is asked for: reach, rules, resolvers, names, limits
//! policy_file  named sets of rules, and a whole policy, in a file of the user
//! operator     what the operator permits and provides, and what of it is in force now
//! secrets      secrets and header rules, and their values
//! proxy        the upstream proxy of a sandbox
//! download     what this process may connect to when it downloads what a build names
//! record       `network.json`: what is in force
//! pins         `network.pins`: the answers that a copy starts with
//! trust        whose certificates are accepted of servers whose TLS is ended
//! usage        reports of an egress process as audit lines, and rules that cover them
//! ```
//! The module decides nothing about a guest's packets: the egress process does, with the settings
//! that [`supervision`](crate::supervision) hands it. May not start a process.

pub(crate) mod download;
pub(crate) mod operator;
pub(crate) mod pins;
pub(crate) mod policy_file;
pub(crate) mod proxy;
pub(crate) mod record;
mod rules;
mod sandbox;
pub(crate) mod secrets;
pub(crate) mod spec;
pub(crate) mod trust;
pub(crate) mod usage;
