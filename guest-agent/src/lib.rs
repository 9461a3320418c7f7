//! The guest agent of sandboxvm: PID 1 of every sandbox.
//!
//! ```text
//! boot     mounts, loopback, hostname; any failure stops the machine          boot::run
//! server   one epoll loop over listener, SIGCHLD, connections and pipes       server::Server
//! process  finds, starts and describes the processes run for the host         process::*
//! names    /etc/hostname, /etc/machine-id and /etc/hosts, held open          names::NameFiles
//! hosts    the content of the last                                           hosts::naming
//! generation a file that differs between copies of a machine               generation::GenerationFile
//! files    work on files, each request in a forked process                   files::start
//! identity what makes a restored machine unlike its siblings                  identity::apply
//! shutdown sync, read-only remount, reset                                     shutdown::*
//! notify   one-byte progress reports to the VMM                               notify::NotifyPort
//! ```
//! Two rules shape all of it. Guest-kernel instructions are the budget: one thread, few system calls, a vfork-like
//! clone, nothing looked up that can be known. And everything is bounded: no host or guest input makes the agent
//! allocate, spin, block or panic without limit.
//!
//! Besides PID 1 there is one other way to run: `sandboxvm-agent serve SOCKET` answers the same protocol on a Unix
//! socket as an ordinary process. It touches nothing but the processes it is asked to start; the tests use it.

mod boot;
mod files;
mod generation;
mod hosts;
mod identity;
mod names;
mod notify;
mod process;
mod server;
mod shutdown;
mod slab;

use identity::IdentityFiles;
use server::{Role, Server, ServerError, listener::Listener};
use std::ffi::CStr;

/// Runs the agent with the arguments after the program's name; the value is the exit code, where one is possible.
#[must_use]
pub fn run(arguments: &[&CStr]) -> i32 {
    match arguments {
        [command, socket] if command.to_bytes() == b"serve" => serve(socket),
        _ if rustix::process::getpid().is_init() => run_as_init(),
        _ => {
            eprintln!("sandboxvm-agent: runs as PID 1 of a sandbox, or as: sandboxvm-agent serve SOCKET");
            125
        }
    }
}

/// Boots the machine and serves the host until told to shut down. Never returns: PID 1 must not.
fn run_as_init() -> ! {
    let mut machine = match boot::run() {
        Ok(machine) => machine,
        Err(error) => shutdown::stop_after(&error),
    };
    let (identity, cgroups) = (std::mem::take(&mut machine.identity), machine.cgroups.take());
    let served = Listener::vsock().and_then(|listener| Server::new(Role::Init, listener, identity, cgroups)).and_then(
        |mut server| {
            machine.notify.ready();
            server.run()
        },
    );
    match served {
        Ok(()) => shutdown::in_order(&mut machine.notify),
        Err(error) => shutdown::stop_after(&error),
    }
}

/// Serves on a Unix socket as an ordinary process, until told to shut down.
fn serve(socket: &CStr) -> i32 {
    let served = Listener::unix(socket).and_then(|listener| {
        // As PID 1 the agent is at the root, and the spawning of processes counts on it.
        rustix::process::chdir("/").map_err(|errno| ServerError::Setup { step: "change to the root", errno })?;
        Server::new(Role::Service, listener, IdentityFiles::default(), None)?.run()
    });
    match served {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("sandboxvm-agent: {error}");
            125
        }
    }
}
