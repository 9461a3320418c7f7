//! Machines whose kernel is a [`sandboxvm_bare_guest`], in the real VMM, launched as the manager
//! launches it: with the same frame over the same kind of channel. So its namespaces, user and
//! system call filter are those of a sandbox. There is no agent and nothing else of the manager:
//! nothing is between the script and the devices.
//!
//! - [`machine`]: such a machine, from its start to the checks of its end.
//! - [`shape`]: the configuration of a machine.
//! - [`launch`]: the process and its launch frame.
//! - [`forgery`]: a changed state of a saved machine.
//! - [`cable`]: the other end of the network card.
//! - [`channel`]: the launch channel after the launch.
//! - [`vitals`]: the use of resources by the VMM, from `/proc`.
//! - [`driver`]: the steps of a virtio driver, as parts of a script.
//! - [`socket_driver`]: the guest's end of vsock connections, as parts of a script.

mod cable;
mod channel;
pub mod driver;
mod forgery;
mod launch;
pub mod machine;
mod shape;
pub mod socket_driver;
mod vitals;

pub use cable::Cable;
pub use launch::Saved;
pub use machine::{BareMachine, Ending};
pub use shape::Shape;
pub use vitals::Bounds;
