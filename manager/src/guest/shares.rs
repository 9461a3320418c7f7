//! Connections to the live shares of a guest: those on which a process of the host serves one, whose bytes only that
//! process reads, and those that hold one while the memory of the machine is copied.

use crate::{
    guest::connection::agent::{AgentError, connect},
    home::directory::{DirectoryError, SandboxDirectory},
    mounts::{MountPath, Share},
    sandbox::Sandbox,
    vmm::{state::State, wire::WireError},
};
use futures_util::future::{BoxFuture, try_join_all};
use sandboxvm_protocol::agent::share::{HELD, ShareNumber};
use std::{os::fd::OwnedFd, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

/// Maximum time until no request to a share is under way. A write may wait for a slow disk of the host.
const HELD_WITHIN: Duration = Duration::from_secs(30);
/// What releases a share: any byte.
const RELEASE: u8 = 0;

/// Why the shares of a sandbox cannot be held.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// Its guest cannot finish anything.
    #[error("sandbox {0} is paused, and cannot finish its requests to the host's files")]
    Paused(String),
    /// A request does not end, or the guest does not answer.
    #[error("the sandbox did not finish its requests to the share at {at} within {} s", HELD_WITHIN.as_secs())]
    Late {
        /// Where the share is in the guest.
        at: MountPath,
    },
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

/// Shares of a machine that sends no requests to them. Dropping the value makes it continue after a moment.
#[derive(Debug)]
pub(crate) struct HeldShares(Vec<UnixStream>);

impl HeldShares {
    /// Makes the machine continue immediately.
    pub(crate) async fn release(self) {
        for mut share in self.0 {
            // The agent notices the end of the connection as well.
            let _ = share.write_all(&[RELEASE]).await;
        }
    }
}

impl Sandbox {
    /// Waits until no request to a live share is under way, and until the guest has a record of what its kernel
    /// refers to. A share that nothing in the guest relays needs no hold.
    pub(crate) fn hold_shares(&self) -> BoxFuture<'_, Result<HeldShares, HoldError>> {
        Box::pin(async move {
            let mounts = &self.record.mounts;
            if mounts.has_shares() && self.state()? == State::Paused {
                return Err(HoldError::Paused(self.label()));
            }
            let held = mounts.shares().map(|share| hold(&self.directory, share));
            Ok(HeldShares(try_join_all(held).await?.into_iter().flatten().collect()))
        })
    }
}

async fn hold(directory: &SandboxDirectory, share: Share<'_>) -> Result<Option<UnixStream>, HoldError> {
    let holding = async {
        let mut stream = connect(directory, share.number.hold_port()).await?;
        let mut answer = [0];
        let count = stream.read(&mut answer).await.map_err(WireError::from)?;
        Ok::<_, AgentError>((count == 1 && answer == [HELD]).then_some(stream))
    };
    match timeout(HELD_WITHIN, holding).await {
        Ok(Ok(stream)) => Ok(stream),
        // It is not mounted yet, or its relay was killed: then the guest has nothing of it that could be kept. It is
        // not an agent that cannot hold shares: agents before wire 8 mount none, and those of wire 8 listen here as
        // long as they relay one.
        Ok(Err(AgentError::NotListening)) => Ok(None),
        Ok(Err(error)) if error.is_disconnect() => Ok(None),
        Ok(Err(_)) | Err(_) => Err(HoldError::Late { at: share.at.clone() }),
    }
}

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
