//! The system calls of a front: reading, writing and closing what it has, accepting connections, memory, threads and time. It
//! opens no file, makes no socket, starts no program, and signals no process.

use sandboxvm_confine::{Argument, Filter};

/// For an exporter of traces, which looks up the name of its collector and connects to it.
const CONNECTS: &[libc::c_long] = &[
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    libc::SYS_openat,
    libc::SYS_open,
    libc::SYS_statx,
    libc::SYS_newfstatat,
    libc::SYS_readlink,
    libc::SYS_access,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_pipe2,
    // Libraries that look up names are loaded when they are needed.
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
];

/// Returns the calls that a front keeps.
pub(super) fn calls(connects: bool) -> Filter {
    let filter = Filter::new()
        .allow_threads()
        // A listener that was shut down could connect by sending, in the network that it was made in.
        .allow_connected_sockets()
        .allow_if(libc::SYS_sendmsg, &[Argument::lacks(2, libc::MSG_FASTOPEN)])
        .allow(&[libc::SYS_accept4])
        // Not a pair for datagrams, which can be sent to the path of any socket.
        .allow_if(libc::SYS_socketpair, &[Argument::is(0, libc::AF_UNIX), Argument::has(1, 0xf, STREAM)])
        // Others last as long as the listener, which the next front is to have.
        .allow_if(libc::SYS_setsockopt, &[Argument::is(1, libc::IPPROTO_TCP), Argument::is(2, libc::TCP_NODELAY)]);
    if connects { filter.allow(CONNECTS) } else { filter }
}

/// The type of a socket without its flags.
const STREAM: u64 = libc::SOCK_STREAM.unsigned_abs() as u64;
