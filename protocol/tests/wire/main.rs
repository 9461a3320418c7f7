//! The promises of both wires. Every message is the same after it was sent, in whatever pieces it
//! arrives. No bytes of a peer cause a panic, exceed a limit or create an invalid value. And the
//! bytes are those of the golden files.

mod golden;
mod hostile;
mod limits;
mod newtypes;
mod round_trip;
mod samples;
mod strategies;
