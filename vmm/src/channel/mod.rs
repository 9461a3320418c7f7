//! The manager's side of the VMM: what arrives on Unix sockets and what is sent there, each message
//! with its open files. Knows the wire, and not what the messages are for.
//!
//! ```text
//! descriptors       messages with open files
//! launch            the first frame: which machine this is
//! control           one connection of a client, its requests and their answers
//! spare_descriptor  turns clients away when the process has no descriptor left
//! ```

pub mod control;
pub mod descriptors;
pub mod launch;
pub mod spare_descriptor;
