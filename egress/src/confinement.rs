//! What the egress process and its dialer keep of what a process has. Both confine themselves before they read a byte of a
//! guest or of the network. Neither opens a file or starts a process afterwards, and only the dialer opens sockets.

use sandboxvm_confine::{Argument, Confinement, Filter, Missing, Network, Resource, User};

pub use sandboxvm_confine::{ConfineError, close_inherited_files};

/// Added to its PID, the user of a process that root starts: above those of the server's fronts and below those of VMMs.
const FIRST_USER: u32 = 0x6800_0000;
/// The user if the host lacks such a range, as in a container with some 65536 users.
const SHARED_USER: u32 = 64_739;

/// Maximum number of descriptors of an egress process: one for each flow, and few others.
pub const MAX_FILES: u64 = 16_384;
/// Maximum size of an egress process in bytes. Flows have bounded buffers; this ends a process that no longer keeps to that.
const MAX_SIZE: u64 = 4 << 30;
/// Maximum number of descriptors of a dialer: those that are being dialled, as many whose answer waits, and few others.
const DIALER_FILES: u64 = 1024;
/// Maximum size of a dialer in bytes. It uses 3 MiB.
const DIALER_SIZE: u64 = 512 << 20;

/// How much sooner than others the kernel ends them when memory is short: before VMMs, which have 500, because they are
/// replaced.
const ENDS_FIRST: u16 = 800;

/// A socket's type without SOCK_NONBLOCK and SOCK_CLOEXEC.
const TYPE: u64 = Argument::INT & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC).unsigned_abs() as u64;

/// Confines the egress process. It must have one thread. Returns what the host refused of it.
///
/// # Errors
/// When it is not confined, and must not serve.
pub fn confine_egress_process() -> Result<Vec<Missing>, ConfineError> {
    let limits = [(Resource::Nofile, MAX_FILES), (Resource::As, MAX_SIZE)];
    confine("egress process", Network::Empty, &limits, &egress_calls())
}

/// Confines the dialer, which keeps the network of the host. It must have one thread. Returns what the host refused of it.
///
/// # Errors
/// When it is not confined, and must not serve.
pub fn confine_dialer() -> Result<Vec<Missing>, ConfineError> {
    let limits = [(Resource::Nofile, DIALER_FILES), (Resource::As, DIALER_SIZE)];
    confine("dialer", Network::OfHost, &limits, &dialer_calls())
}

fn confine(
    process: &'static str,
    network: Network,
    limits: &[(Resource, u64)],
    filter: &Filter,
) -> Result<Vec<Missing>, ConfineError> {
    let user = |id| User { uid: id, gid: id };
    let users = [user(FIRST_USER + std::process::id()), user(SHARED_USER)];
    let (namespaces, threads, ends_first) = (Some(network), 1, ENDS_FIRST);
    Confinement { process, users: &users, namespaces, contents: &[], limits, threads, ends_first, filter }.apply()
}

/// The egress process reads and writes what it has. It makes no socket, connects none, and sends to no address: sockets of
/// its dialer lead to their peer and nowhere else. It sends no descriptors.
fn egress_calls() -> Filter {
    Filter::new()
        .allow_connected_sockets()
        .allow(&[libc::SYS_recvmmsg])
        .allow_if(libc::SYS_setsockopt, &[Argument::is(1, libc::IPPROTO_TCP), Argument::is(2, libc::TCP_NODELAY)])
        // How it resets a connection.
        .allow_if(libc::SYS_setsockopt, &[Argument::is(1, libc::SOL_SOCKET), Argument::is(2, libc::SO_LINGER)])
}

/// The dialer makes sockets of three kinds, asks the kernel for routes, connects, and hands descriptors over.
fn dialer_calls() -> Filter {
    let mut filter = Filter::new()
        .allow(&[
            libc::SYS_connect,
            libc::SYS_recvfrom,
            libc::SYS_recvmsg,
            libc::SYS_getsockname,
            libc::SYS_getpeername,
        ])
        .allow_if(libc::SYS_sendto, &[Argument::lacks(3, libc::MSG_FASTOPEN), Argument::is_all_of(4, 0)])
        .allow_if(libc::SYS_sendmsg, &[Argument::lacks(2, libc::MSG_FASTOPEN)])
        .allow_if(libc::SYS_getsockopt, &[Argument::is(1, libc::SOL_SOCKET), Argument::is(2, libc::SO_ERROR)])
        .allow_if(libc::SYS_setsockopt, &[Argument::is(1, libc::IPPROTO_TCP), Argument::is(2, libc::TCP_NODELAY)]);
    for (family, kind, protocol) in [
        (libc::AF_INET, libc::SOCK_STREAM, 0),
        (libc::AF_INET, libc::SOCK_DGRAM, 0),
        (libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP),
        (libc::AF_INET6, libc::SOCK_STREAM, 0),
        (libc::AF_INET6, libc::SOCK_DGRAM, 0),
        (libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_ICMPV6),
        (libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE),
    ] {
        let kind = Argument::has(1, TYPE, kind.unsigned_abs().into());
        filter = filter.allow_if(libc::SYS_socket, &[Argument::is(0, family), kind, Argument::is(2, protocol)]);
    }
    filter
}
