//! `bench network`: what a network costs a sandbox, and how much it carries, in a separate network
//! namespace. `scripts/bench` adds the rows of a frame generator in place of a guest
//! (`egress/benches/cable.rs`), which does not depend on the speed of the guest.

use crate::{
    rig::Runs,
    table::{self, Row},
};
use sandboxvm_tests::{
    home::{Home, SMALL, Sandbox},
    host::{memory::proportional_kib, processes},
    namespace::{self, SERVER},
};
use std::{
    fs,
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

/// Port of the server.
const PORT: u16 = 9000;

/// Bytes of a transfer. The guest is slow where its kernel is interpreted.
const BYTES: usize = 32 << 20;

/// The guest's side: connections that say with their first byte what they are for.
const GUEST: &str = r#"
import socket, sys, time
kind, bytes, to = sys.argv[1], int(sys.argv[2]), (sys.argv[3], int(sys.argv[4]))
def connect():
    s = socket.create_connection(to)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    s.sendall(kind.encode())
    return s
def ask(s):
    s.sendall(b'x' * 100)
    left = 100
    while left: left -= len(s.recv(left))
begun = time.monotonic()
if kind == 'u':
    s, data = connect(), b'x' * (1 << 20)
    for _ in range(bytes >> 20): s.sendall(data)
    s.shutdown(socket.SHUT_WR)
    s.recv(1)
    print(bytes / 1e6 / (time.monotonic() - begun))
elif kind == 'd':
    s, left, room = connect(), bytes, bytearray(1 << 20)
    while left: left -= s.recv_into(room)
    print(bytes / 1e6 / (time.monotonic() - begun))
else:
    s = connect()
    times = []
    for _ in range(200):
        begun = time.monotonic()
        ask(s)
        times.append(time.monotonic() - begun)
    begun = time.monotonic()
    for _ in range(100):
        s = connect()
        ask(s)
        s.close()
    print(sorted(times)[100] * 1e6, 100 / (time.monotonic() - begun))
"#;

#[derive(Debug, clap::Args)]
#[command(mut_arg("runs", |runs| runs.default_value("20")))]
pub struct Arguments {
    #[command(flatten)]
    all: Runs,
    /// Number of transfers in each direction, and of sequences of requests
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    transfers: u16,
    /// A file with rows of the frame generator: name, unit and values, separated by tabs
    #[arg(long, value_name = "FILE")]
    cable: Option<PathBuf>,
}

pub fn run(arguments: &Arguments) {
    assert!(namespace::enter(), "the benchmark makes a network namespace: run it as root");
    serve();
    let home = Home::with_kvm().expect("a benchmark without KVM measures nothing: unset SANDBOXVM_NO_KVM");
    let config = home.scratch("config");
    fs::create_dir_all(config.join("sandboxvm")).expect("the directory of the benchmark can be written");
    fs::write(config.join("sandboxvm/network.toml"), format!("[operator]\nopen = [\"{SERVER}/32\"]\n"))
        .expect("the directory of the benchmark can be written");
    let mut rows = starts(&home, &config, arguments.all.runs);
    rows.extend(traffic(&home, &config, arguments.transfers));
    if let Some(file) = &arguments.cable {
        let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        rows.extend(text.lines().map(row));
    }
    let title = format!("network: {} starts of each kind, {} transfers", arguments.all.runs, arguments.transfers);
    table::report(&title, &rows, arguments.all.json);
}

fn create<'h>(home: &'h Home, config: &Path, with: &[&str]) -> (Sandbox<'h>, f64) {
    let made = home.cli(["create", "-m", SMALL]).args(with).env("XDG_CONFIG_HOME", config).run().succeeds();
    (Sandbox::printed(home, &made), made.elapsed.as_secs_f64() * 1e3)
}

/// The option of a sandbox that reaches the server.
fn allow() -> String {
    format!("--allow={SERVER}:{PORT}")
}

/// Sandboxes of both kinds in turn, so that a busy moment of the machine meets both.
fn starts(home: &Home, config: &Path, runs: u16) -> Vec<Row> {
    let (with, without) = (allow(), []);
    // Each kind has a ready snapshot, which the first one makes.
    create(home, config, &without).0.remove();
    create(home, config, &[&with]).0.remove();
    let (mut alone, mut connected) = (Vec::new(), Vec::new());
    for run in 1..=runs {
        eprintln!("bench: start {run} of {runs}");
        for (options, times) in [(&without[..], &mut alone), (&[with.as_str()], &mut connected)] {
            let (sandbox, millis) = create(home, config, options);
            times.push(millis);
            sandbox.remove();
        }
    }
    let added: Vec<f64> = connected.iter().zip(&alone).map(|(with, without)| with - without).collect();
    vec![
        Row::of("`create` without a network", "ms", alone),
        Row::of("`create` with a network", "ms", connected),
        Row::of("  added by the network", "ms", added),
    ]
}

fn traffic(home: &Home, config: &Path, transfers: u16) -> Vec<Row> {
    let (sandbox, _) = create(home, config, &[&allow()]);
    let pids = network_processes(home);
    let vmm = sandbox.vmm_pid();
    // What ran at the start has settled.
    thread::sleep(Duration::from_secs(2));
    let idle = pids.map(|pid| proportional_kib(pid).expect("the process runs") as f64);
    let [mut up, mut down, mut trips, mut requests] = <[Vec<f64>; 4]>::default();
    let [mut up_cpu, mut down_cpu, mut up_vmm, mut down_vmm] = <[Vec<f64>; 4]>::default();
    let cpu = |pids: &[u32]| pids.iter().map(|pid| processes::cpu_time(*pid).as_secs_f64()).sum::<f64>();
    for run in 1..=transfers {
        eprintln!("bench: transfers {run} of {transfers}");
        for (kind, rates, used, of_vmm) in
            [("u", &mut up, &mut up_cpu, &mut up_vmm), ("d", &mut down, &mut down_cpu, &mut down_vmm)]
        {
            let before = (cpu(&pids), cpu(&[vmm]));
            rates.extend(guest(&sandbox, kind));
            let gigabytes = BYTES as f64 / 1e9;
            used.push((cpu(&pids) - before.0) / gigabytes);
            of_vmm.push((cpu(&[vmm]) - before.1) / gigabytes);
        }
        let figures = guest(&sandbox, "e");
        trips.push(figures[0]);
        requests.push(figures[1]);
    }
    sandbox.remove();
    vec![
        Row::of("memory of an idle egress process", "KiB", [idle[0]]),
        Row::of("memory of an idle dialer", "KiB", [idle[1]]),
        Row::of("from the guest", "MB/s", up),
        Row::of("  egress process and dialer, processor time for a GB", "s", up_cpu),
        Row::of("  VMM, processor time for a GB", "s", up_vmm),
        Row::of("to the guest", "MB/s", down),
        Row::of("  egress process and dialer, processor time for a GB", "s", down_cpu),
        Row::of("  VMM, processor time for a GB", "s", down_vmm),
        Row::of("round trip of 100 bytes from the guest", "us", trips),
        Row::of("connections of one request from the guest", "1/s", requests),
    ]
}

/// Runs [`GUEST`] and returns the numbers that it prints.
fn guest(sandbox: &Sandbox<'_>, kind: &str) -> Vec<f64> {
    let (bytes, server, port) = (BYTES.to_string(), SERVER.to_string(), PORT.to_string());
    let ran = sandbox.exec(["--", "python3", "-c", GUEST, kind, &bytes, &server, &port]);
    let out = ran.deadline(Duration::from_secs(600)).run().succeeds().out();
    out.split_whitespace().map(|word| word.parse().expect("a number")).collect()
}

/// Returns the egress process and the dialer of the only sandbox with a network.
fn network_processes(home: &Home) -> [u32; 2] {
    let holders = processes::that_hold(&home.path());
    let children = holders.iter().flat_map(|holder| processes::children(holder.pid));
    let [mut egress, mut dialer] = [None, None];
    for pid in children {
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&str> = command.split_terminator('\0').collect();
        match &words[..] {
            [program] if program.ends_with("sandboxvm-egress") => egress = Some(pid),
            [program, "dialer"] if program.ends_with("sandboxvm-egress") => dialer = Some(pid),
            _ => {}
        }
    }
    [egress.expect("the egress process runs"), dialer.expect("the dialer runs")]
}

fn serve() {
    let listener = TcpListener::bind((SERVER, PORT)).expect("a port of the namespace");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // The guest ends connections as it likes.
            let _ = answer(stream);
        }
    });
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 1 << 20];
    stream.read_exact(&mut buffer[..1])?;
    match buffer[0] {
        b'u' => {
            while stream.read(&mut buffer)? > 0 {}
            stream.write_all(b"x")
        }
        b'd' => (0..BYTES / buffer.len()).try_for_each(|_| stream.write_all(&buffer)),
        _ => loop {
            stream.read_exact(&mut buffer[..100])?;
            stream.write_all(&buffer[..100])?;
        },
    }
}

/// Reads a row of the frame generator.
fn row(line: &str) -> Row {
    let mut fields = line.split('\t');
    let mut field = || fields.next().unwrap_or_else(|| panic!("not a row of a benchmark: {line}"));
    let (name, unit, values) = (field(), field(), field());
    let unit = ["KiB", "MB", "MB/s", "us", "1/s"].into_iter().find(|known| *known == unit);
    let values = values.split(' ').map(|value| value.parse().expect("a number"));
    Row::of(name.to_owned(), unit.expect("a unit of a benchmark"), values)
}
