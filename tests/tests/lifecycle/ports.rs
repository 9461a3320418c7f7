//! Published ports of sandboxes: each direction of a connection ends separately, many connections
//! work at the same time, and no sandbox reaches another one's ports.

use sandboxvm_tests::{
    home::{Home, SMALL, Sandbox, eventually},
    host::processes,
};
use serde_json::Value;
use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    path::Path,
    process::Command,
    thread,
    time::Duration,
};

const SOON: Duration = Duration::from_secs(240);

/// The first byte of a connection selects what the server does: E sends the rest reversed after the
/// client's end of stream, F ends its stream first and counts what it receives afterwards, N reads
/// nothing, R closes the connection, and GET returns numbers over HTTP.
const SERVER: &str = r#"use Socket;
$SIG{PIPE} = "IGNORE";
socket S, PF_INET, SOCK_STREAM, 0;
setsockopt S, SOL_SOCKET, $_->[0], $_->[1] for [SO_REUSEADDR, 1], [SO_RCVBUF, 16384];
bind S, sockaddr_in 7000, INADDR_LOOPBACK or die;
listen S, 128;
syswrite STDOUT, "up\n";
while (accept my $c, S) {
    my ($m, $b, $d) = ("", "", "");
    sysread $c, $m, 1;
    if ($m eq "N") { push @kept, $c; next }
    if ($m eq "F") { syswrite $c, "that is all"; shutdown $c, 1 }
    if ($m eq "G") { while ($d !~ /\r\n\r\n$/ && sysread $c, $b, 4096) { $d .= $b } }
    elsif ($m ne "R") { while (sysread $c, $b, 65536) { $d .= $b } }
    if ($m eq "F") { open F, ">/tmp/got.new"; print F length $d; close F; rename "/tmp/got.new", "/tmp/got" }
    if ($m eq "G") { $d = join "\n", 1 .. 5000; print $c "HTTP/1.0 200 OK\r\nContent-Length: ", length $d, "\r\n\r\n$d" }
    if ($m eq "E") { print $c scalar reverse $d }
    close $c;
}
"#;

/// Starts the server and waits until it listens.
#[track_caller]
fn serve(home: &Home, sandbox: &Sandbox<'_>) {
    let made = sandbox.exec(["-d", "--", "perl", "-e", SERVER]).run().succeeds();
    let up = eventually(SOON, || {
        // Each check is expensive if the guest's kernel is interpreted, and delays the start of the
        // server.
        thread::sleep(Duration::from_secs(1));
        (home.cli(["logs", &sandbox.id, made.out().trim()]).run().succeeds().out() == "up\n").then_some(())
    });
    assert!(up.is_some(), "the server does not start");
}

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the supervisor listens");
    stream.set_read_timeout(Some(SOON)).expect("a stream has a timeout");
    stream.set_write_timeout(Some(SOON)).expect("a stream has a timeout");
    stream
}

/// Reads until the end of the stream. Returns `None` if the connection was reset.
fn read_all(mut stream: impl Read) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    match stream.read_to_end(&mut all) {
        Ok(_) => Some(all),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "no data arrived in time");
            None
        }
    }
}

/// Lets the server return `text` reversed. Returns `None` if nothing listens.
fn backwards(address: &str, text: &[u8]) -> Option<Vec<u8>> {
    let mut stream = connect(address);
    stream.write_all(&[b"E", text].concat()).ok()?;
    stream.shutdown(Shutdown::Write).ok()?;
    read_all(stream).filter(|said| !said.is_empty())
}

#[track_caller]
fn published(home: &Home, sandbox: &str) -> Vec<(u64, String)> {
    let ports = home.cli(["port", "--json", sandbox]).run().succeeds().json();
    let ports = ports.as_array().expect("port --json is an array");
    let pair = |port: &Value| (port["guest_port"].as_u64(), port["host"].as_str().map(str::to_owned));
    ports
        .iter()
        .map(|port| match pair(port) {
            (Some(guest), Some(host)) => (guest, host),
            _ => panic!("no port: {port}"),
        })
        .collect()
}

#[test]
fn published_ports_are_listed_and_connect_programs_of_the_host_to_the_sandbox() {
    let Some(home) = Home::with_kvm() else { return };
    let socket = home.scratch("web.sock");
    let at_socket = format!("{}:7000", socket.display());
    let flags = ["-m", SMALL, "--name", "demo", "-p", "7000", "-p", "127.0.0.1::7001", "-p", &at_socket];
    let sandbox = home.create(&flags);
    let ports = published(&home, "demo");
    let [(7000, echo), (7001, shut), (7000, unix)] = &ports[..] else { panic!("{ports:?}") };
    assert!(echo.starts_with("127.0.0.1:") && shut.starts_with("127.0.0.1:"), "{ports:?}");
    assert_eq!(Path::new(unix), socket);
    let listed = home.cli(["port", "demo"]).run().succeeds().out();
    assert_eq!(listed, format!("7000/tcp -> {echo}\n7001/tcp -> {shut}\n7000/tcp -> {unix}\n"));
    assert_eq!(home.row(&sandbox.id)["supervision"]["ports"].as_array().map(Vec::len), Some(3));

    // Nothing listens in the guest yet, so the supervisor closes the connection.
    assert_eq!(read_all(connect(shut)).unwrap_or_default(), b"");
    serve(&home, &sandbox);
    assert_eq!(backwards(echo, b"abc").as_deref(), Some(&b"cba"[..]));

    assert_connections_do_not_mix(echo);
    assert_a_program_that_ends_its_stream_keeps_reading(&sandbox, echo);
    assert_stuck_connections_do_not_delay_others(echo, shut);
    assert_curl_reads_numbers(echo, unix);

    // A copy has no published ports, and those of the original keep working.
    let copy = home.cli(["fork", "demo"]).run().succeeds();
    let copy = Sandbox::called(&home, copy.out().trim());
    assert_eq!(published(&home, &copy.id), []);
    assert_eq!(home.row(&copy.id)["supervision"], Value::Null);
    assert_eq!(backwards(echo, b"12").as_deref(), Some(&b"21"[..]));
    copy.remove();

    // After a reset the ports lead to the new machine.
    let mut open = connect(echo);
    open.write_all(b"E").expect("the supervisor reads");
    let _ = home.cli(["reset", "demo"]).run().succeeds();
    assert_eq!(read_all(open).unwrap_or_default(), b"");
    assert_eq!(backwards(echo, b"gone"), None);
    serve(&home, &sandbox);
    assert_eq!(backwards(echo, b"abc").as_deref(), Some(&b"cba"[..]));

    sandbox.remove();
    assert!(!socket.exists() && TcpStream::connect(echo).is_err());
    home.assert_nothing_left();
}

/// Opens many connections at the same time. Each client ends its stream before it reads, and gets
/// its own bytes back.
fn assert_connections_do_not_mix(echo: &str) {
    thread::scope(|scope| {
        for number in 0..50u32 {
            scope.spawn(move || {
                let text: Vec<u8> = (0..1000u32).flat_map(|at| (at.wrapping_mul(number + 1)).to_le_bytes()).collect();
                let said = backwards(echo, &text).expect("the server responds");
                assert!(said.iter().rev().eq(&text), "connection {number} has the bytes of another one");
            });
        }
    });
}

fn assert_a_program_that_ends_its_stream_keeps_reading(sandbox: &Sandbox<'_>, echo: &str) {
    let mut stream = connect(echo);
    stream.write_all(b"F").expect("the supervisor reads");
    assert_eq!(read_all(&stream).as_deref(), Some(&b"that is all"[..]));
    stream.write_all(&vec![b'x'; 70_000]).expect("the supervisor reads");
    drop(stream);
    let got = eventually(SOON, || Some(sandbox.sh("cat /tmp/got")).filter(|got| got.code() == Some(0)));
    assert_eq!(got.map(|got| got.out()).as_deref(), Some("70000"));
}

/// A program that reads nothing, one that closes its connection, and clients that send nothing do
/// not affect others.
fn assert_stuck_connections_do_not_delay_others(echo: &str, shut: &str) {
    let mut stuck = connect(echo);
    stuck.write_all(b"N").expect("the supervisor reads");
    stuck.set_nonblocking(true).expect("a stream can be non-blocking");
    let mut taken = 0;
    let full = eventually(SOON, || match stuck.write(&[0; 65536]) {
        Ok(count) => {
            taken += count;
            assert!(taken < 64 << 20, "the connection accepts data without limit");
            None
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            thread::sleep(Duration::from_millis(300));
            matches!(stuck.write(&[0; 65536]), Err(error) if error.kind() == ErrorKind::WouldBlock).then_some(())
        }
    });
    assert!(full.is_some(), "the connection still accepts data after {taken} bytes");
    let silent: Vec<TcpStream> = (0..8).map(|_| connect(shut)).collect();
    let mut broken = connect(echo);
    broken.write_all(b"Rest").expect("the supervisor reads");
    assert_eq!(read_all(broken).unwrap_or_default(), b"");
    assert_eq!(backwards(echo, b"still there").as_deref(), Some(&b"ereht llits"[..]));
    drop((stuck, silent));
}

/// A client of another project reads from the TCP port and from the Unix socket.
fn assert_curl_reads_numbers(echo: &str, unix: &str) {
    let numbers = (1..=5000).map(|number| number.to_string()).collect::<Vec<_>>().join("\n");
    let url = format!("http://{echo}/");
    for arguments in [&[url.as_str()][..], &["--unix-socket", unix, "http://sandbox/"]] {
        let done = Command::new("curl").args(["-sS", "-m", "100"]).args(arguments).output().expect("curl is installed");
        let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        assert!(out == numbers, "{} bytes by {arguments:?}: {err}", out.len());
    }
}

#[test]
fn ports_are_published_and_withdrawn_while_the_sandbox_runs() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL, "--name", "demo"]);
    assert_eq!(published(&home, "demo"), []);
    let supervisors = || {
        let all = processes::that_hold(&home.path());
        all.into_iter().filter(|process| process.command.contains(" supervise ")).count()
    };
    assert_eq!(supervisors(), 0, "a supervisor runs without a reason");
    serve(&home, &sandbox);

    let first = home.cli(["port", "demo", "7000"]).run().succeeds().out();
    let first = first.trim();
    assert_eq!(
        home.cli(["port", "demo", "7000"]).run().succeeds().out().trim(),
        first,
        "the port is published already, so its address is printed again"
    );
    assert_eq!(backwards(first, b"ab").as_deref(), Some(&b"ba"[..]));
    // The same port is published a second time. Invalid requests are refused.
    let second = home.cli(["port", "demo", "localhost:0:7000"]).run().succeeds().out();
    assert_eq!(published(&home, "demo"), [(7000, first.to_owned())], "printed again: {second}");
    let socket = home.scratch("p.sock");
    let at_socket = format!("{}:7000", socket.display());
    let _ = home.cli(["port", "demo", &at_socket]).run().succeeds();
    assert_eq!(published(&home, "demo").len(), 2);
    let host_port = first.rsplit_once(':').map(|(_, port)| port).unwrap_or_default();
    let _ = home.cli(["port", "demo", &format!("{host_port}:7001")]).run().fails_with(&["already published"]);
    let _ = home.cli(["create", "-m", SMALL, "-p", &format!("{host_port}:80")]).run().fails_with(&["in use"]);
    assert_eq!(home.listed(), std::slice::from_ref(&sandbox.id), "a sandbox whose host port is in use was left behind");
    let _ =
        home.cli(["port", "demo", "0.0.0.0:0:7001"]).run().succeeds().err().find("other machines").expect("a warning");
    for bad in ["0", "70000", "x:80", "80/udp"] {
        let _ = home.cli(["port", "demo", bad]).run().fails_with(&["GUEST"]);
    }

    // One end of the port is withdrawn, then all.
    let _ = home.cli(["port", "--rm", "demo", &at_socket]).run().succeeds();
    assert!(!socket.exists() && backwards(first, b"ab").is_some());
    assert_eq!(home.cli(["port", "--rm", "demo", "7000"]).run().succeeds().out().trim(), first);
    assert!(TcpStream::connect(first).is_err());
    let _ = home.cli(["port", "--rm", "demo", "7000"]).run().fails_with(&["7000", "not published"]);
    let _ = home.cli(["port", "--rm", "demo", "7001"]).run().succeeds();
    let ended = eventually(SOON, || (supervisors() == 0).then_some(()));
    assert!(ended.is_some(), "a supervisor still runs without a reason");
    // The next published port starts another supervisor.
    let _ = home.cli(["port", "demo", "7000"]).run().succeeds();
    assert_eq!(supervisors(), 1);

    let _ = home.cli(["stop", "demo"]).run().succeeds();
    let ended = eventually(SOON, || (supervisors() == 0).then_some(()));
    assert!(ended.is_some(), "a supervisor outlives its sandbox");
    let _ = home.cli(["port", "demo", "7002"]).run().fails_with(&["not running", "ports"]);
    let _ = home.cli(["rm", "demo"]).run().succeeds();
    home.assert_nothing_left();
}
