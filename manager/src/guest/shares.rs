//! Connections on which a process of the host serves a live share. Their bytes are a guest's, and only that
//! process reads them.

use crate::{
    guest::connection::agent::{AgentError, connect},
    home::directory::SandboxDirectory,
    vmm::wire::WireError,
};
use futures_util::future::BoxFuture;
use sandboxvm_protocol::agent::share::ShareNumber;
use std::os::fd::OwnedFd;

/// Connects to the mount of a share. Fails if it is not mounted (yet).
pub(crate) fn connect_share(
    directory: &SandboxDirectory,
    number: ShareNumber,
) -> BoxFuture<'_, Result<OwnedFd, AgentError>> {
    Box::pin(async move {
        let stream = connect(directory, number.port()).await?.into_std().map_err(WireError::from)?;
        stream.set_nonblocking(false).map_err(WireError::from)?;
        Ok(stream.into())
    })
}
