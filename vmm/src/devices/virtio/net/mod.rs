//! virtio-net (virtio 1.2, 5.1): the network card, whose cable is a Unix socket.
//!
//! ```text
//!  guest <--receive, transmit queue--> device --[header + Ethernet frame], one packet each--> socket <-- egress process
//! ```
//!
//! Carries whole frames and looks at nothing in them but the type in their Ethernet header. It never opens a socket: the
//! manager attaches one whenever it has one ([`NetworkCard::attach`]), in place of the one before. Without a socket the
//! card has no link. The guest's driver is notified of that, and all that the guest sends is dropped. A socket that fails or
//! whose peer left is dropped as well, so a new machine, a restore, a copy and the death of the egress process are one
//! case. A reset of the machine keeps the socket.
//!
//! Nothing is kept between two calls but what the driver knows about the link: a frame that the socket or the guest
//! has no room for stays where it is, in the guest's queue or in the socket, and waits without a spin. Each call does a
//! bounded amount of work and leaves the rest to the next. What guest and peer send is hostile: a wrong frame is dropped
//! and counted, and a wrong ring costs the guest the device.
//!
//! There is no segmentation offload. Instead packets may be as large as IP allows, which costs no more and is far
//! less to get wrong.

mod counters;
mod device;
mod frame;
mod kind;
mod link;
mod receive;
#[cfg(test)]
mod tests;

pub use device::NetDevice;
pub use kind::NetKind;
pub use link::{AttachError, NetworkCard};
