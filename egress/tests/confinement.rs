//! What an egress process and a dialer that were taken over can still do, tried by processes that confine themselves as
//! those do. Each attempt also succeeds in the same process before it is confined: otherwise it would show nothing.

#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they call")]

use sandboxvm_egress::confinement::{confine_dialer, confine_egress_process};
use std::{
    env, fs,
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    process::Command,
    sync::OnceLock,
};

/// Set for the process that tries.
const AS: &str = "EGRESS_DRILL_AS";
/// A user that is not root.
const ORDINARY: u32 = 65_533;

fn result(value: impl Into<i64>) -> io::Result<()> {
    if value.into() < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn call(number: libc::c_long, arguments: [libc::c_long; 4]) -> io::Result<i64> {
    // SAFETY: the calls below take numbers, or pointers that are null or to what lives until they return.
    let value = unsafe { libc::syscall(number, arguments[0], arguments[1], arguments[2], arguments[3], 0, 0) };
    result(value).map(|()| value)
}

fn int(value: libc::c_int) -> libc::c_long {
    value.into()
}

/// An error that shows that the call was made.
fn made(result: io::Result<()>, errors: &[libc::c_int]) -> io::Result<()> {
    result.or_else(
        |error| {
            if error.raw_os_error().is_some_and(|code| errors.contains(&code)) { Ok(()) } else { Err(error) }
        },
    )
}

/// What a process has before it is confined: sockets as the dialer hands them over, and some that it never does.
struct Sockets {
    listener: TcpListener,
    connected: TcpStream,
    datagrams: UdpSocket,
    undone: UdpSocket,
    pair: (std::os::unix::net::UnixStream, std::os::unix::net::UnixStream),
    fresh: [libc::c_int; 4],
}

static SOCKETS: OnceLock<Sockets> = OnceLock::new();

fn sockets() -> &'static Sockets {
    SOCKETS.get_or_init(|| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let connected = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let [datagrams, undone] = [(); 2].map(|()| {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            socket.connect(socket.local_addr().unwrap()).unwrap();
            socket
        });
        // SAFETY: plain numbers.
        let fresh = [(); 4].map(|()| unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) });
        Sockets { listener, connected, datagrams, undone, pair: std::os::unix::net::UnixStream::pair().unwrap(), fresh }
    })
}

fn address(port: u16) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET.try_into().unwrap(),
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(Ipv4Addr::LOCALHOST).to_be() },
        sin_zero: [0; 8],
    }
}

const ADDRESS_LEN: libc::socklen_t = size_of::<libc::sockaddr_in>() as libc::socklen_t;

fn connect(socket: libc::c_int, to: &libc::sockaddr_in) -> io::Result<()> {
    // SAFETY: the address lives until the call returns.
    result(unsafe { libc::connect(socket, (&raw const *to).cast(), ADDRESS_LEN) })
}

fn send_to(socket: libc::c_int, flags: libc::c_int, to: &libc::sockaddr_in) -> io::Result<()> {
    // SAFETY: nothing is read from the empty buffer, and the address lives until the call returns.
    let sent = unsafe { libc::sendto(socket, std::ptr::null(), 0, flags, (&raw const *to).cast(), ADDRESS_LEN) };
    result(i64::try_from(sent).unwrap())
}

fn message_to(to: &libc::sockaddr_in) -> libc::msghdr {
    // SAFETY: all zeroes is an empty message.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = (&raw const *to).cast_mut().cast();
    message.msg_namelen = ADDRESS_LEN;
    message
}

fn set_option(socket: libc::c_int, level: libc::c_int, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option is a number that lives until the call returns.
    result(unsafe { libc::setsockopt(socket, level, option, (&raw const on).cast(), 4) })
}

fn new_socket(family: libc::c_int, kind: libc::c_int, protocol: libc::c_int) -> io::Result<()> {
    let socket = call(libc::SYS_socket, [int(family), int(kind), int(protocol), 0])?;
    call(libc::SYS_close, [socket, 0, 0, 0]).map(drop)
}

fn parent() -> libc::c_long {
    env::var("EGRESS_DRILL_PARENT").unwrap().parse().unwrap()
}

/// An attack, by name. One that succeeds must leave the process able to try the others.
type Attempt = (&'static str, fn() -> io::Result<()>);

/// What neither process can do.
const BOTH: [Attempt; 21] = [
    ("read a file", || fs::read("/etc/passwd").map(drop)),
    ("list a directory", || fs::read_dir("/proc").map(drop)),
    ("open a file through /proc", || fs::read("/proc/self/environ").map(drop)),
    ("open a file at a descriptor", || {
        let how = [0_u64; 3];
        let path = c"/";
        call(libc::SYS_openat2, [int(libc::AT_FDCWD), path.as_ptr() as i64, how.as_ptr() as i64, 24])
            .and_then(|fd| call(libc::SYS_close, [fd, 0, 0, 0]))
            .map(drop)
    }),
    ("run a program", || Command::new("/bin/true").status().map(drop)),
    ("replace its program", || made(call(libc::SYS_execve, [0, 0, 0, 0]).map(drop), &[libc::EFAULT])),
    ("fork", || {
        let child = call(libc::SYS_clone, [int(libc::SIGCHLD), 0, 0, 0])?;
        if child == 0 {
            // SAFETY: ends the new process.
            unsafe { libc::_exit(0) };
        }
        Ok(())
    }),
    ("trace its parent", || {
        // PTRACE_SEIZE, and its opposite, which fails for a tracee that does not stop.
        call(libc::SYS_ptrace, [0x4206, parent(), 0, 0])?;
        let _ = call(libc::SYS_ptrace, [17, parent(), 0, 0]);
        Ok(())
    }),
    ("signal its parent", || call(libc::SYS_kill, [parent(), 0, 0, 0]).map(drop)),
    ("read another process", || made(call(libc::SYS_process_vm_readv, [parent(), 0, 0, 0]).map(drop), &[libc::EINVAL])),
    ("open a descriptor of another process", || call(libc::SYS_pidfd_open, [1, 0, 0, 0]).map(drop)),
    ("make a Unix socket", || new_socket(libc::AF_UNIX, libc::SOCK_STREAM, 0)),
    ("make a pair of sockets", || {
        let mut pair = [0; 2];
        // SAFETY: the array has room for two descriptors.
        result(unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_DGRAM, 0, pair.as_mut_ptr()) })
    }),
    ("make a raw socket", || new_socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)),
    ("make a packet socket", || new_socket(libc::AF_PACKET, libc::SOCK_RAW, 0)),
    ("listen", || {
        // SAFETY: plain numbers.
        result(unsafe { libc::listen(sockets().listener.as_raw_fd(), 5) })
    }),
    ("set an option of a datagram socket", || {
        set_option(sockets().datagrams.as_raw_fd(), libc::SOL_SOCKET, libc::SO_BROADCAST)
    }),
    ("make a namespace", || call(libc::SYS_unshare, [int(libc::CLONE_NEWUTS), 0, 0, 0]).map(drop)),
    ("change its user", || {
        // SAFETY: asks for the current user.
        let user = unsafe { libc::getuid() }.into();
        call(libc::SYS_setresuid, [user, user, user, 0]).map(drop)
    }),
    ("map executable memory", || {
        let protection = libc::PROT_READ | libc::PROT_EXEC;
        // SAFETY: a new mapping at a place that the kernel chooses.
        let mapped = unsafe {
            libc::mmap(std::ptr::null_mut(), 4096, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        };
        if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }),
    ("use io_uring", || made(call(libc::SYS_io_uring_setup, [0, 0, 0, 0]).map(drop), &[libc::EFAULT, libc::EINVAL])),
];

/// What an egress process cannot do either.
const EGRESS: [Attempt; 14] = [
    ("make a TCP socket", || new_socket(libc::AF_INET, libc::SOCK_STREAM, 0)),
    ("make a UDP socket", || new_socket(libc::AF_INET6, libc::SOCK_DGRAM, 0)),
    ("make a netlink socket", || new_socket(libc::AF_NETLINK, libc::SOCK_RAW, 0)),
    ("connect", || {
        let port = sockets().listener.local_addr().unwrap().port();
        made(connect(sockets().fresh[0], &address(port)), &[libc::EISCONN])
    }),
    ("undo the connection of a datagram socket", || {
        let nowhere = libc::sockaddr_in { sin_family: libc::AF_UNSPEC.try_into().unwrap(), ..address(0) };
        connect(sockets().undone.as_raw_fd(), &nowhere)
    }),
    ("undo the connection of a stream socket", || {
        let nowhere = libc::sockaddr_in { sin_family: libc::AF_UNSPEC.try_into().unwrap(), ..address(0) };
        connect(sockets().fresh[1], &nowhere)
    }),
    ("bind", || {
        let to = address(0);
        // SAFETY: the address lives until the call returns.
        let bound = unsafe { libc::bind(sockets().fresh[2], (&raw const to).cast(), ADDRESS_LEN) };
        made(result(bound), &[libc::EINVAL])
    }),
    ("accept", || {
        let listener = &sockets().listener;
        let _waiting = listener.set_nonblocking(true);
        // SAFETY: null asks for no address.
        let accepted = unsafe { libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), 0) };
        made(result(accepted), &[libc::EAGAIN])
    }),
    ("send a datagram to an address", || {
        send_to(sockets().datagrams.as_raw_fd(), 0, &address(sockets().datagrams.local_addr().unwrap().port()))
    }),
    ("connect by sending", || {
        made(send_to(sockets().fresh[3], libc::MSG_FASTOPEN, &address(1)), &[libc::ECONNREFUSED, libc::EISCONN])
    }),
    ("connect by sending to the address of a connection", || {
        // SAFETY: nothing is read from the empty buffer, and there is no address.
        let sent = unsafe {
            libc::sendto(sockets().datagrams.as_raw_fd(), std::ptr::null(), 0, libc::MSG_FASTOPEN, std::ptr::null(), 0)
        };
        made(result(i64::try_from(sent).unwrap()), &[libc::ECONNREFUSED])
    }),
    ("send a message to an address", || {
        let to = address(sockets().datagrams.local_addr().unwrap().port());
        let message = message_to(&to);
        // SAFETY: the message names an address that lives until the call returns.
        let sent = unsafe { libc::sendmsg(sockets().datagrams.as_raw_fd(), &raw const message, 0) };
        result(i64::try_from(sent).unwrap())
    }),
    ("send messages to addresses", || {
        let to = address(sockets().datagrams.local_addr().unwrap().port());
        let mut message = libc::mmsghdr { msg_hdr: message_to(&to), msg_len: 0 };
        // SAFETY: the message names an address that lives until the call returns.
        result(unsafe { libc::sendmmsg(sockets().datagrams.as_raw_fd(), &raw mut message, 1, 0) })
    }),
    ("set an option of a connection", || {
        set_option(sockets().connected.as_raw_fd(), libc::SOL_SOCKET, libc::SO_KEEPALIVE)
    }),
];

/// What a dialer cannot do either.
const DIALER: [Attempt; 4] = [
    ("accept", EGRESS[7].1),
    ("bind", EGRESS[6].1),
    ("make another netlink socket", || new_socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_SOCK_DIAG)),
    ("read an option of a connection", || {
        let (mut value, mut length) = (0_u32, 4);
        let value = (&raw mut value).cast();
        let socket = sockets().connected.as_raw_fd();
        // SAFETY: both live until the call returns.
        result(unsafe { libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_PEERCRED, value, &raw mut length) })
    }),
];

fn attempts(process: &str) -> Vec<Attempt> {
    let further: &[Attempt] = if process == "dialer" { &DIALER } else { &EGRESS };
    BOTH.iter().chain(further).copied().collect()
}

/// What the host of an attack allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Host {
    /// All of it.
    Plain,
    /// Users below 65,535, as in a container.
    Container,
    /// The same, and no further user namespaces.
    NoUserNamespaces,
}

/// Attacks, and returns what the attacker says.
fn drill(process: &str, user: u32, host: Host) -> String {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can make all of these attempts before");
        return String::new();
    }
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "attacker", "--nocapture", "--include-ignored"]);
    command.env(AS, process).env("EGRESS_DRILL_USER", user.to_string());
    command.env("EGRESS_DRILL_HOST", format!("{host:?}"));
    command.env("EGRESS_DRILL_PARENT", std::process::id().to_string());
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    for (name, _) in attempts(process) {
        // An ordinary user cannot do these, nor can root of a container to its host.
        let is_roots = [
            "make a raw socket",
            "make a packet socket",
            "make a namespace",
            "trace its parent",
            "signal its parent",
            "read another process",
        ];
        if (user == 0 && host == Host::Plain) || !is_roots.contains(&name) {
            assert!(said.contains(&format!("before: {name}: ok")), "{name}: {said}{errors}");
        }
        assert!(said.contains(&format!("confined: {name}: refused")), "{name}: {said}{errors}");
    }
    assert!(said.contains("confined: uses what it has: ok"), "{said}{errors}");
    assert!(said.contains("NoNewPrivs:\t1") && said.contains("Seccomp:\t2"), "{said}");
    for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
        assert!(said.contains(&format!("{set}:\t0000000000000000")), "{set}: {said}");
    }
    assert_eq!(said.contains("missing:"), host != Host::Plain, "{said}");
    said.into_owned()
}

fn user_of(said: &str) -> u32 {
    said.split("Uid:\t").nth(1).unwrap().split('\t').next().unwrap().parse().unwrap()
}

#[test]
fn a_confined_egress_process_uses_only_what_it_has() {
    let said = drill("egress", 0, Host::Plain);
    assert!(said.is_empty() || (0x6800_0000..0x7000_0000).contains(&user_of(&said)), "{said}");
}

#[test]
fn a_confined_egress_process_of_an_ordinary_user_uses_only_what_it_has() {
    drill("egress", ORDINARY, Host::Plain);
}

#[test]
fn a_confined_dialer_opens_no_file_and_starts_no_process() {
    let said = drill("dialer", 0, Host::Plain);
    assert!(said.is_empty() || (0x6800_0000..0x7000_0000).contains(&user_of(&said)), "{said}");
}

#[test]
fn a_confined_dialer_of_an_ordinary_user_opens_no_file_and_starts_no_process() {
    drill("dialer", ORDINARY, Host::Plain);
}

#[test]
fn what_a_host_refuses_is_reported_and_the_filter_holds() {
    for process in ["egress", "dialer"] {
        let said = drill(process, 0, Host::Container);
        assert!(said.is_empty() || said.contains("missing: the process shares its user"), "{said}");
        assert!(said.is_empty() || user_of(&said) == 64_739, "{said}");
        let said = drill(process, ORDINARY, Host::NoUserNamespaces);
        assert!(said.is_empty() || said.contains("missing: the process keeps the namespaces"), "{said}");
    }
}

/// The process that tries: a child with one thread, since a process with several enters no user namespace.
#[test]
#[ignore = "run by the tests above, in a separate process"]
fn attacker() {
    let Ok(process) = env::var(AS) else { return };
    let user: u32 = env::var("EGRESS_DRILL_USER").unwrap().parse().unwrap();
    let host = env::var("EGRESS_DRILL_HOST").unwrap();
    let of_child = host.clone();
    let (mut ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    // SAFETY: the child has this thread alone, and the harness's other thread waits for this one and holds no lock.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let tried = std::panic::catch_unwind(move || {
            if of_child != "Plain" {
                // SAFETY: plain numbers.
                result(unsafe { libc::unshare(libc::CLONE_NEWUSER) }).unwrap();
            }
            // The parent says who is in the namespace.
            theirs.write_all(b"x").and_then(|()| theirs.read_exact(&mut [0])).unwrap();
            if of_child == "NoUserNamespaces" {
                fs::write("/proc/sys/user/max_user_namespaces", "0").unwrap();
            }
            attack(&process, user);
        });
        // SAFETY: ends the child without what the harness would do at its end.
        unsafe { libc::_exit(tried.is_err().into()) };
    }
    ours.read_exact(&mut [0]).unwrap();
    if host != "Plain" {
        for map in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{child}/{map}"), "0 0 65535").unwrap();
        }
    }
    ours.write_all(b"x").unwrap();
    let mut status = 0;
    // SAFETY: waits for the child of above.
    result(unsafe { libc::waitpid(child, &raw mut status, 0) }).unwrap();
    assert_eq!(status, 0);
}

fn attack(process: &str, user: u32) {
    // SAFETY: plain numbers.
    unsafe { libc::setresgid(user, user, user) };
    // SAFETY: plain numbers.
    unsafe { libc::setresuid(user, user, user) };
    // A change of the user makes a process not dumpable, and its files in /proc root's.
    // SAFETY: plain numbers.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) };
    let status = fs::File::open("/proc/self/status").unwrap();
    sockets();
    let try_all = |when: &str| {
        for (name, attempt) in attempts(process) {
            match attempt() {
                Ok(()) => println!("{when}: {name}: ok"),
                Err(error) => println!("{when}: {name}: refused ({error})"),
            }
        }
    };
    try_all("before");
    let missing = if process == "dialer" { confine_dialer() } else { confine_egress_process() };
    for missing in missing.unwrap() {
        println!("missing: the process {missing}");
    }
    try_all("confined");
    let (ours, theirs) = &sockets().pair;
    let used = (&*ours).write_all(b"x").and_then(|()| (&*theirs).read_exact(&mut [0]));
    println!("confined: uses what it has: {}", if used.is_ok() { "ok" } else { "refused" });
    // Opened before, and read now.
    println!("{}", io::read_to_string(status).unwrap());
}
