//! The link to the guest: frames in and out, what the gateway answers itself, and the guest's ends of TCP connections.
//! Knows no policy: what a packet leads to is decided in [`flows`](crate::flows).

pub mod addresses;
mod device;
pub mod guest_end;
pub mod guest_stream;
pub mod link;
pub mod outlet;
pub mod packet;
pub mod replies;
