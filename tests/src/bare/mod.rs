//! Machines whose kernel is a [`sandboxvm_bare_guest`], in the real VMM process, launched as the manager launches it: the
//! same frame over the same kind of channel, so its namespaces, identity and system call filter are those of a sandbox.
//! What the manager adds, the agent above all, is not there: nothing stands between the script and the devices.
//!
//! - [`machine`]: one such machine, from its start to what is said about its end.
//! - [`shape`]: what kind of machine it is.
//! - [`launch`]: the process and its launch frame.
//! - [`forgery`]: what a file of a saved machine says, changed.
//! - [`channel`]: the launch channel, from then on.
//! - [`vitals`]: what the process uses, as `/proc` has it.
//! - [`driver`]: the steps of a virtio driver, as parts of a script.
//! - [`socket_driver`]: the guest's end of vsock connections, likewise.

mod channel;
pub mod driver;
mod forgery;
mod launch;
pub mod machine;
mod shape;
pub mod socket_driver;
mod vitals;

pub use launch::Saved;
pub use machine::{BareMachine, Ending};
pub use shape::Shape;
pub use vitals::Bounds;
