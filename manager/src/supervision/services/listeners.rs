//! Published ports: listening on their ends on the host, and a connection to the guest for each that comes in.
//!
//! Bounds: [`MAX_CONNECTIONS`] of one sandbox at a time, two buffers each; more wait in the kernel's backlog. What a guest
//! answers, or does not, ends its own connection and nothing else.

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

/// Of one sandbox: what its agent takes.
pub(super) const MAX_CONNECTIONS: usize = 256;
/// In each direction.
const BUFFER: usize = 32 * 1024;
/// How long a guest may take to connect. Generous: it may be booting, its kernel interpreted.
const CONNECTED_WITHIN: Duration = Duration::from_secs(120);
/// How long accepting rests when there is no descriptor for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An end on the host that is listened on. Dropping it stops that soon; connections that are open go on.
#[derive(Debug)]
pub(super) struct Listening {
    task: JoinHandle<()>,
    /// A Unix socket's path, and which file it is.
    file: Option<(PathBuf, u64)>,
}

impl Listening {
    /// Stops it, and returns when its place is free.
    pub(super) async fn close(mut self) {
        self.task.abort();
        // An error says that it was stopped.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
        if let Some((path, inode)) = &self.file
            && fs::symlink_metadata(path).is_ok_and(|now| now.ino() == *inode)
        {
            // Nobody is left to tell.
            let _ = fs::remove_file(path);
        }
    }
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Listens on the port's end and serves it. The value's second part is where it turned out to be.
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
        // Taken before a connection is accepted: those there is no room for wait where they hold nothing of ours.
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let sandbox = Arc::clone(&sandbox);
        match &listener {
            Listener::Tcp(listener) => match listener.accept().await {
                Ok((client, _)) => {
                    // What one side sends in one piece is not to wait for the other's acknowledgement.
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
            // How it ends is between the two.
            let _ = copy_bidirectional_with_sizes(&mut client, &mut stream, BUFFER, BUFFER).await;
        }
        // As if nothing listened: a reset, not an answer without content. Fails for Unix sockets, which know none.
        _ => drop(sockopt::set_socket_linger(&client, Some(Duration::ZERO))),
    }
}

/// Takes a socket away that one before us left.
fn remove_stale(path: &Path) {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    if is_socket && nobody_listens(path) {
        // What remains shows in the bind that follows.
        let _ = fs::remove_file(path);
    }
}

fn nobody_listens(path: &Path) -> bool {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let connected = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .and_then(|socket| connect(&socket, &SocketAddrUnix::new(path)?));
    connected == Err(rustix::io::Errno::CONNREFUSED)
}

/// Takes away what a killed supervisor of a sandbox that is being removed left outside its directory.
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
