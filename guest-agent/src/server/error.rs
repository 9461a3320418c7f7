//! Why the server cannot start or continue.

use rustix::io::Errno;

/// Why the server cannot start or continue.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServerError {
    /// It cannot listen.
    #[error("server: cannot listen: {0}; is vsock in the kernel's configuration, and the socket's path free?")]
    Listen(Errno),
    /// A part that the server needs failed.
    #[error("server: cannot {step}: {errno}")]
    Setup {
        /// The step that failed.
        step: &'static str,
        /// The error of the kernel.
        errno: Errno,
    },
}
