//! What both wires promise: every message survives the trip, whatever the transport cuts it into; nothing a peer sends
//! panics, passes a cap or makes an invalid value; and the bytes are the golden file's.

mod golden;
mod hostile;
mod limits;
mod newtypes;
mod round_trip;
mod samples;
mod strategies;
