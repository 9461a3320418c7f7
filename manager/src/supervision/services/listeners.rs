//! Published ports: listens on their ends on the host, and opens a connection to the guest for each
//! incoming connection.
//!
//! A sandbox has at most [`MAX_CONNECTIONS`] at the same time, with two buffers each; further
//! connections wait in the kernel's backlog. Whatever a guest answers may only affect its own
//! connection.

use crate::{
    home::directory::SandboxDirectory,
    sandbox::Sandbox,
    supervision::{
        file::{Port, Supervision},
        publish::HostEnd,
    },
};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt};
use sandboxvm_protocol::agent::port::PortNumber;
use std::{
    fs, io,
    os::{
        fd::AsFd,
        unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
    task::JoinHandle,
    time::{sleep, timeout},
};

/// Maximum number of connections of one sandbox: as many as its agent accepts.
pub(super) const MAX_CONNECTIONS: usize = 256;
/// Size in bytes of the buffer for each direction.
const BUFFER: usize = 32 * 1024;
/// Maximum time until the guest has connected. It is long, because the guest may be booting, with
/// an interpreted kernel.
const CONNECTED_WITHIN: Duration = Duration::from_secs(120);
/// Delay before the next connection is accepted when there is no free descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An end on the host that is listened on. Dropping it stops the listener soon after; open
/// connections continue.
#[derive(Debug)]
pub(super) struct Listening {
    task: JoinHandle<()>,
    /// The path of a Unix socket, and its inode number.
    file: Option<(PathBuf, u64)>,
}

impl Listening {
    /// Stops listening, and returns when the place is free.
    pub(super) async fn close(mut self) {
        self.task.abort();
        // An error reports that the task was stopped.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
        if let Some((path, inode)) = &self.file
            && fs::symlink_metadata(path).is_ok_and(|now| now.ino() == *inode)
        {
            // No caller is left to receive an error.
            let _ = fs::remove_file(path);
        }
    }
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Listens on the end of the port and serves it. Also returns the actual place, which differs if
/// the port was 0.
pub(super) async fn listen(
    port: &Port,
    sandbox: &Arc<Sandbox>,
    room: &Arc<Semaphore>,
) -> io::Result<(Listening, HostEnd)> {
    let (listener, end, file) = match &port.shown.host {
        HostEnd::Tcp(address) => {
            let listener = TcpListener::bind(address).await?;
            let end = HostEnd::Tcp(listener.local_addr()?);
            (Listener::Tcp(listener), end, None)
        }
        HostEnd::Unix(path) => {
            if port.was_ours {
                remove_stale(path);
            }
            let listener = UnixListener::bind(path)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
            let inode = fs::symlink_metadata(path)?.ino();
            (Listener::Unix(listener), HostEnd::Unix(path.clone()), Some((path.clone(), inode)))
        }
    };
    let serving = serve(listener, Arc::clone(sandbox), port.shown.guest_port, Arc::clone(room));
    Ok((Listening { task: tokio::spawn(serving), file }, end))
}

async fn serve(listener: Listener, sandbox: Arc<Sandbox>, guest: PortNumber, room: Arc<Semaphore>) {
    loop {
        // The permit is taken before a connection is accepted: connections for which there is no
        // room wait where they use nothing of this process.
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let sandbox = Arc::clone(&sandbox);
        match &listener {
            Listener::Tcp(listener) => match listener.accept().await {
                Ok((client, _)) => {
                    // Data that one side sends must not wait for the other side's acknowledgement.
                    let _ = client.set_nodelay(true);
                    tokio::spawn(async move {
                        let _permit = permit;
                        forward(&sandbox, guest, client).await;
                    });
                }
                Err(_) => sleep(ACCEPT_PAUSE).await,
            },
            Listener::Unix(listener) => match listener.accept().await {
                Ok((client, _)) => {
                    tokio::spawn(async move {
                        let _permit = permit;
                        forward(&sandbox, guest, client).await;
                    });
                }
                Err(_) => sleep(ACCEPT_PAUSE).await,
            },
        }
    }
}

async fn forward(sandbox: &Sandbox, guest: PortNumber, mut client: impl AsyncRead + AsyncWrite + AsFd + Unpin) {
    match timeout(CONNECTED_WITHIN, sandbox.connect(guest)).await {
        Ok(Ok(mut stream)) => {
            // How the connection ends is between the client and the program.
            let _ = copy_bidirectional_with_sizes(&mut client, &mut stream, BUFFER, BUFFER).await;
        }
        // Resets the connection, as if no program listened, instead of closing it like an empty
        // response. Fails for Unix sockets, which have no resets.
        _ => drop(sockopt::set_socket_linger(&client, Some(Duration::ZERO))),
    }
}

/// Removes a socket that an earlier supervisor left.
fn remove_stale(path: &Path) {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    if is_socket && nobody_listens(path) {
        // If the file stays, the bind that follows fails.
        let _ = fs::remove_file(path);
    }
}

fn nobody_listens(path: &Path) -> bool {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let connected = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .and_then(|socket| connect(&socket, &SocketAddrUnix::new(path)?));
    connected == Err(rustix::io::Errno::CONNREFUSED)
}

/// Removes what a killed supervisor left outside the directory of a sandbox that is being removed.
pub(crate) fn forget(directory: &SandboxDirectory) {
    let Ok(Some(supervision)) = Supervision::read(directory) else { return };
    for port in supervision.ports {
        if let HostEnd::Unix(path) = &port.shown.host
            && port.was_ours
        {
            remove_stale(path);
        }
    }
}
