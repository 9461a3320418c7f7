//! HTTP/1 as far as it matters for which host a request is for: where one request ends and the next one begins, and when
//! a connection stops to be HTTP. No I/O. What two readers could understand in two ways is refused.

pub mod body;
pub mod requests;
pub mod responses;
