//! What a running server tells its operator: a line of log and a measurement for each request. Never a key, a token, a
//! query (signed URLs have signatures in theirs), a header or a body.

pub(crate) mod metrics;
pub(crate) mod request;
