//! Why the server cannot start or continue.

use rustix::io::Errno;

/// Why the server cannot start or continue.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServerError {
    /// No listening socket.
    #[error("server: cannot listen: {0}; is vsock in the kernel's configuration, and the socket's path free?")]
    Listen(Errno),
    /// Something every turn needs.
    #[error("server: cannot {step}: {errno}")]
    Setup {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        errno: Errno,
    },
}
