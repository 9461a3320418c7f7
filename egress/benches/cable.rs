//! What carrying a guest's connections costs the egress process, beside passt and slirp4netns. A guest made of smoltcp
//! is at the other end of their sockets, so nothing of a real guest is measured. `scripts/bench network` runs this.
//! Results are on stdout, a line each: name, unit and values, separated by tabs. Without root, or without one of the
//! other programs, this fails.

#![allow(clippy::unwrap_used, missing_docs, reason = "a failure of a benchmark is its end")]
#![warn(clippy::print_stdout)]

#[path = "../tests/common/mod.rs"]
mod common;

use common::{
    guest::{Framing, Guest, Tcp},
    is_inside, run_in_namespace,
    sandbox::{Sandbox, public},
};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, socketpair,
    sockopt::set_socket_send_buffer_size_force,
};
use sandboxvm_protocol::egress::{EgressLimits, NetworkSettings};
use std::{
    fs,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Bytes of a transfer, and those of slirp4netns, which needs more processor time for each.
const BYTES: usize = 256 << 20;
const FEW_BYTES: usize = 8 << 20;

/// Short connections of a run, and round trips.
const REQUESTS: u32 = 1000;

/// Bytes of a request, and of its answer.
const REQUEST: usize = 100;

/// Bytes of the buffers of the socket of passt: more than the guest's windows.
const PASST_BUFFER: usize = 16 << 20;

/// The network card that passt takes its addresses from. Nothing passes it: all servers are on loopback addresses.
const UPLINK: &str = "ip link add up0 type veth peer name up1 && ip address add 192.0.2.1/24 dev up0 &&
    ip link set up0 up && ip link set up1 up && ip route add default via 192.0.2.254";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if !is_inside() {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        return run_in_namespace(&arguments);
    }
    let runs: usize = arguments.first().map_or(3, |word| word.parse().expect("the number of runs"));
    assert!(Command::new("sh").args(["-c", UPLINK]).status().unwrap().success(), "the benchmark needs root");
    let server = serve();
    let contenders = [
        ("sandboxvm", sandboxvm as fn() -> Contender, BYTES),
        ("passt", passt, BYTES),
        ("slirp4netns", slirp4netns, FEW_BYTES),
    ];
    for (name, start, bytes) in contenders {
        if arguments.get(1).is_none_or(|only| only == name) {
            measure(name, &mut start(), server, runs, bytes);
        }
    }
}

/// A program behind the card of a guest.
struct Contender {
    guest: Guest,
    pids: Vec<u32>,
    _sandbox: Option<Sandbox>,
    _process: Option<Process>,
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn sandboxvm() -> Contender {
    // The limits on new connections are those of a guest, and not what is measured.
    let limits = EgressLimits { flows_per_second: 1_000_000, ..EgressLimits::default() };
    let (sandbox, guest) = Sandbox::start(NetworkSettings { limits, ..public() });
    let pids = sandbox.pids().to_vec();
    Contender { guest, pids, _sandbox: Some(sandbox), _process: None }
}

/// passt opens no descriptor that it was given below 3.
fn passt() -> Contender {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    // It drops what the socket has no room for, and sends it again after seconds: its manual page asks for larger buffers.
    for end in [&ours, &theirs] {
        set_socket_send_buffer_size_force(end, PASST_BUFFER).expect("the benchmark needs root");
    }
    let script = "exec passt --quiet --foreground --ipv4-only --address 192.0.2.10 --netmask 24 \
        --gateway 192.0.2.254 --mtu 65520 --fd 3 3<&0 0</dev/null 2>/dev/null";
    let child = Command::new("sh").args(["-c", script]).stdin(theirs).spawn().unwrap();
    let guest = Guest::attached(ours, Framing::Length, ([192, 0, 2, 10].into(), 24), [192, 0, 2, 254].into());
    let pids = vec![child.id()];
    Contender { guest, pids, _sandbox: None, _process: Some(Process(child)) }
}

/// slirp4netns with a socket in place of a tap device.
fn slirp4netns() -> Contender {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().join("frames");
    let mut command = Command::new("slirp4netns");
    command.args(["--target-type=bess", "--mtu=65520", "--disable-dns"]).arg(&at);
    let child = Process(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let guest = Guest::attached(connected(&at), Framing::Packet, ([10, 0, 2, 100].into(), 24), [10, 0, 2, 2].into());
    let pids = vec![child.0.id()];
    Contender { guest, pids, _sandbox: None, _process: Some(child) }
}

fn connected(at: &Path) -> OwnedFd {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        match connect(&socket, &SocketAddrUnix::new(at).unwrap()) {
            Ok(()) => return socket,
            Err(error) if Instant::now() >= until => panic!("{}: {error}", at.display()),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Serves connections that say with their first byte what they are: `u` for a transfer to here, `d` for one from here, and
/// `e` for requests that are answered. The number of bytes follows.
fn serve() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::new(198, 51, 100, 1), 0)).unwrap();
    let at = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            // One at a time, as the guest makes them. It may end one early.
            let _ = answer(stream.unwrap());
        }
    });
    at
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut kind, mut bytes) = ([0], [0; 8]);
    stream.read_exact(&mut kind)?;
    stream.read_exact(&mut bytes)?;
    let bytes = usize::from_le_bytes(bytes);
    let mut buffer = vec![0; 1 << 20];
    match kind[0] {
        b'u' => {
            let mut left = bytes;
            while left > 0 {
                left -= stream.read(&mut buffer)?.min(left);
            }
            stream.write_all(b"x")
        }
        b'd' => (0..bytes / buffer.len()).try_for_each(|_| stream.write_all(&buffer)),
        _ => loop {
            stream.read_exact(&mut buffer[..REQUEST])?;
            stream.write_all(&buffer[..REQUEST])?;
        },
    }
}

fn measure(name: &str, contender: &mut Contender, server: SocketAddr, runs: usize, bytes: usize) {
    let Contender { guest, pids, .. } = contender;
    let report = |what: &str, unit: &str, values: &[f64]| {
        let values: Vec<String> = values.iter().map(|value| format!("{value:.3}")).collect();
        writeln!(io::stdout(), "{name}: {what}\t{unit}\t{}", values.join(" ")).expect("stdout is open");
    };
    // One connection first: the others find every page and table in place.
    let warm = connect_for(guest, server, b'e', 0);
    exchange(guest, warm);
    guest.abort(warm);
    let idle: Vec<f64> = pids.iter().map(|pid| proportional_kib(*pid)).collect();
    report("memory of the idle process that has the frames", "KiB", &idle[..1]);
    if idle.len() > 1 {
        report("memory of its dialer", "KiB", &idle[1..]);
    }

    guest.set_buffer(2 << 20);
    let [mut up, mut down, mut up_rate, mut down_rate]: [Vec<f64>; 4] = Default::default();
    for _ in 0..runs {
        let (begun, before) = (Instant::now(), cpu_seconds(pids));
        send(guest, server, bytes);
        up.push(bytes as f64 / 1e6 / (cpu_seconds(pids) - before));
        up_rate.push(bytes as f64 / 1e6 / begun.elapsed().as_secs_f64());
        let (begun, before) = (Instant::now(), cpu_seconds(pids));
        receive(guest, server, bytes);
        down.push(bytes as f64 / 1e6 / (cpu_seconds(pids) - before));
        down_rate.push(bytes as f64 / 1e6 / begun.elapsed().as_secs_f64());
    }
    report("from the guest, for a second of processor time", "MB", &up);
    report("to the guest, for a second of processor time", "MB", &down);
    report("from the guest", "MB/s", &up_rate);
    report("to the guest", "MB/s", &down_rate);

    guest.set_buffer(16 << 10);
    let [mut trips, mut trip_cpu, mut connections, mut connection_cpu]: [Vec<f64>; 4] = Default::default();
    for _ in 0..runs {
        let tcp = connect_for(guest, server, b'e', 0);
        let (begun, before) = (Instant::now(), cpu_seconds(pids));
        (0..REQUESTS).for_each(|_| exchange(guest, tcp));
        trips.push(begun.elapsed().as_secs_f64() * 1e6 / f64::from(REQUESTS));
        trip_cpu.push((cpu_seconds(pids) - before) * 1e6 / f64::from(REQUESTS));
        guest.abort(tcp);
        let (begun, before) = (Instant::now(), cpu_seconds(pids));
        for _ in 0..REQUESTS {
            let tcp = connect_for(guest, server, b'e', 0);
            exchange(guest, tcp);
            guest.abort(tcp);
            guest.forget(tcp);
        }
        connections.push(f64::from(REQUESTS) / begun.elapsed().as_secs_f64());
        connection_cpu.push((cpu_seconds(pids) - before) * 1e6 / f64::from(REQUESTS));
    }
    report("round trip of 100 bytes", "us", &trips);
    report("round trip of 100 bytes, processor time", "us", &trip_cpu);
    report("connections of one request", "1/s", &connections);
    report("connection of one request, processor time", "us", &connection_cpu);
}

fn connect_for(guest: &mut Guest, server: SocketAddr, kind: u8, bytes: usize) -> Tcp {
    let tcp = guest.connect(server).unwrap();
    guest.send(tcp, &[&[kind][..], &bytes.to_le_bytes()].concat()).unwrap();
    tcp
}

fn exchange(guest: &mut Guest, tcp: Tcp) {
    guest.send(tcp, &[0; REQUEST]).unwrap();
    guest.read_exact(tcp, REQUEST).unwrap();
}

fn send(guest: &mut Guest, server: SocketAddr, bytes: usize) {
    let tcp = connect_for(guest, server, b'u', bytes);
    let data = vec![0; 1 << 20];
    for _ in 0..bytes / data.len() {
        guest.send(tcp, &data).unwrap();
    }
    guest.read_exact(tcp, 1).unwrap();
    guest.abort(tcp);
    guest.forget(tcp);
}

fn receive(guest: &mut Guest, server: SocketAddr, bytes: usize) {
    let tcp = connect_for(guest, server, b'd', bytes);
    let mut left = bytes;
    while left > 0 {
        left -= guest.read(tcp, 1 << 18).unwrap().len();
    }
    guest.abort(tcp);
    guest.forget(tcp);
}

/// Returns the processor time of processes with one thread, kernel time included.
fn cpu_seconds(pids: &[u32]) -> f64 {
    let of = |pid: &u32| -> f64 {
        let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
        text.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
    };
    pids.iter().map(of).sum()
}

/// Returns the memory of a process, where each page counts for its share.
fn proportional_kib(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}
