//! The guest agent of sandboxvm: PID 1 of every sandbox.
//!
//! ```text
//! boot       mounts, loopback, hostname; any failure stops the machine  boot::run
//! server     one epoll loop over listener, SIGCHLD, connections, pipes  server::Server
//! process    finds, starts and describes the processes of the host      process::*
//! network    the card at boot, and the connections of a copy            network::Card
//! names      /etc/hostname, /etc/machine-id, /etc/hosts, held open      names::NameFiles
//! hosts      the content of /etc/hosts                                  hosts::naming
//! generation a file that differs between copies of a machine            generation::GenerationFile
//! files      operations on files, each in a forked process              files::start
//! share      relays the messages of a live share, in a forked process   share::Relay
//! identity   what distinguishes a restored machine from other copies    identity::apply
//! shutdown   sync, read-only remount, reset                             shutdown::*
//! notify     one-byte progress reports to the VMM                       notify::NotifyPort
//! ```
//! Two rules apply everywhere. Guest-kernel instructions are the budget: so there is one thread,
//! there are few system calls, processes start by a vfork-like clone, and nothing is looked up that
//! is known. And everything is bounded: no input of host or guest makes the agent allocate, spin,
//! block or panic without limit.
//!
//! `sandboxvm-agent serve SOCKET [UPPER]` runs the agent as an ordinary process instead of PID 1,
//! with the same protocol on a Unix socket. UPPER is the upper directory of an overlay, from which it
//! packs the changes of the disk. Then it only touches the processes that it was asked to start.
//! The tests use it.

mod boot;
mod files;
mod generation;
mod hosts;
mod identity;
mod names;
mod network;
mod notify;
mod process;
mod server;
mod share;
mod shutdown;
mod slab;

use identity::IdentityFiles;
use rustix::fs::{Mode, OFlags, open};
use server::{Role, Server, ServerError, listener::Listener};
use std::ffi::CStr;

/// Runs the agent with the arguments after the program's name. Returns the exit code, if the agent
/// can end.
#[must_use]
pub fn run(arguments: &[&CStr]) -> i32 {
    match arguments {
        [command, socket] if command.to_bytes() == b"serve" => serve(socket, None),
        [command, socket, upper] if command.to_bytes() == b"serve" => serve(socket, Some(upper)),
        _ if rustix::process::getpid().is_init() => run_as_init(),
        _ => {
            eprintln!("sandboxvm-agent: runs as PID 1 of a sandbox, or as: sandboxvm-agent serve SOCKET [UPPER]");
            125
        }
    }
}

/// Boots the machine and serves the host until a shutdown is requested. Never returns, as PID 1
/// must not end.
fn run_as_init() -> ! {
    let mut machine = match boot::run() {
        Ok(machine) => machine,
        Err(error) => shutdown::stop_after(&error),
    };
    let (identity, cgroups) = (std::mem::take(&mut machine.identity), machine.cgroups.take());
    let upper = machine.upper.take();
    let served = Listener::vsock()
        .and_then(|listener| Server::new(Role::Init, listener, identity, cgroups, upper))
        .and_then(|mut server| {
            machine.notify.ready();
            server.run()
        });
    match served {
        Ok(()) => shutdown::in_order(&mut machine.notify),
        Err(error) => shutdown::stop_after(&error),
    }
}

/// Serves on a Unix socket as an ordinary process, until a shutdown is requested.
fn serve(socket: &CStr, upper: Option<&CStr>) -> i32 {
    let served = Listener::unix(socket).and_then(|listener| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let upper = upper.map(|upper| open(upper, flags, Mode::empty())).transpose();
        let upper = upper.map_err(|errno| ServerError::Setup { step: "open the upper directory", errno })?;
        // As PID 1 the agent is in the root directory, and the code that starts processes relies on
        // that.
        rustix::process::chdir("/").map_err(|errno| ServerError::Setup { step: "change to the root", errno })?;
        Server::new(Role::Service, listener, IdentityFiles::default(), None, upper)?.run()
    });
    match served {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("sandboxvm-agent: {error}");
            125
        }
    }
}
