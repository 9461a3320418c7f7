//! Ports of sandboxes on the host: each direction of a connection with its own end, many at once, and nothing of one
//! sandbox's in another.

use sandboxvm_tests::{
    home::{Home, SMALL, Sandbox, eventually},
    processes,
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

/// What it does with a connection is up to the first byte: E says all of the rest backwards once that has ended, F ends
/// its own stream first and counts what comes after, N takes no more, R breaks off, and GET is
/// answered by numbers.
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
        // Asking is dear where the guest's kernel is interpreted, and keeps it from starting.
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

/// All that comes until the end of the stream; `None` when it was broken off.
fn read_all(mut stream: impl Read) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    match stream.read_to_end(&mut all) {
        Ok(_) => Some(all),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "nothing came in time");
            None
        }
    }
}

/// Has the server say `text` backwards; `None` when nothing listens.
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
fn ports_are_found_on_the_host_and_each_direction_has_its_own_end() {
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

    // Nothing listens in the guest: the connection is over at once.
    assert_eq!(read_all(connect(shut)).unwrap_or_default(), b"");
    serve(&home, &sandbox);
    assert_eq!(backwards(echo, b"abc").as_deref(), Some(&b"cba"[..]));

    // Many at once, each with its own; each ends its stream first and has its answer all the same.
    let talks: Vec<_> = (0..50u32)
        .map(|number| {
            let echo = echo.clone();
            thread::spawn(move || {
                let text: Vec<u8> = (0..1000u32).flat_map(|at| (at.wrapping_mul(number + 1)).to_le_bytes()).collect();
                let said = backwards(&echo, &text).expect("an answer");
                assert!(said.iter().rev().eq(&text), "connection {number} has another's bytes");
            })
        })
        .collect();
    talks.into_iter().for_each(|talk| talk.join().expect("all have their answer"));

    // The program ends first, and goes on reading.
    let mut stream = connect(echo);
    stream.write_all(b"F").expect("it is read");
    assert_eq!(read_all(&stream).as_deref(), Some(&b"that is all"[..]));
    stream.write_all(&vec![b'x'; 70_000]).expect("it is read");
    drop(stream);
    let got = eventually(SOON, || Some(sandbox.sh("cat /tmp/got")).filter(|got| got.code() == Some(0)));
    assert_eq!(got.map(|got| got.out()).as_deref(), Some("70000"));

    // A program that takes nothing, one that breaks off, clients that say nothing: others do not notice.
    let mut stuck = connect(echo);
    stuck.write_all(b"N").expect("it is read");
    stuck.set_nonblocking(true).expect("a stream can be so");
    let mut taken = 0;
    let full = eventually(SOON, || match stuck.write(&[0; 65536]) {
        Ok(count) => {
            taken += count;
            assert!(taken < 64 << 20, "somebody takes it all");
            None
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            thread::sleep(Duration::from_millis(300));
            matches!(stuck.write(&[0; 65536]), Err(error) if error.kind() == ErrorKind::WouldBlock).then_some(())
        }
    });
    assert!(full.is_some(), "{taken} bytes and no end");
    let silent: Vec<TcpStream> = (0..8).map(|_| connect(shut)).collect();
    let mut broken = connect(echo);
    broken.write_all(b"Rest").expect("it is read");
    assert_eq!(read_all(broken).unwrap_or_default(), b"");
    assert_eq!(backwards(echo, b"still there").as_deref(), Some(&b"ereht llits"[..]));
    drop((stuck, silent));

    // A client that is no part of this, over both ends.
    let numbers = (1..=5000).map(|number| number.to_string()).collect::<Vec<_>>().join("\n");
    let url = format!("http://{echo}/");
    for arguments in [&[url.as_str()][..], &["--unix-socket", unix, "http://sandbox/"]] {
        let done = Command::new("curl").args(["-sS", "-m", "100"]).args(arguments).output().expect("curl is installed");
        let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        assert!(out == numbers, "{} bytes by {arguments:?}: {err}", out.len());
    }

    // A copy has none of them, and they stay where they were.
    let copy = home.cli(["fork", "demo"]).run().succeeds();
    let copy = Sandbox::called(&home, copy.out().trim());
    assert_eq!(published(&home, &copy.id), []);
    assert_eq!(home.row(&copy.id)["supervision"], Value::Null);
    assert_eq!(backwards(echo, b"12").as_deref(), Some(&b"21"[..]));
    copy.remove();

    // After a reset they lead to the machine as it is then.
    let mut open = connect(echo);
    open.write_all(b"E").expect("it is read");
    let _ = home.cli(["reset", "demo"]).run().succeeds();
    assert_eq!(read_all(open).unwrap_or_default(), b"");
    assert_eq!(backwards(echo, b"gone"), None);
    serve(&home, &sandbox);
    assert_eq!(backwards(echo, b"abc").as_deref(), Some(&b"cba"[..]));

    sandbox.remove();
    assert!(!socket.exists() && TcpStream::connect(echo).is_err());
    home.assert_nothing_left();
}

#[test]
fn ports_are_published_and_taken_back_while_it_runs() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", SMALL, "--name", "demo"]);
    assert_eq!(published(&home, "demo"), []);
    let supervisors = || {
        let all = processes::that_hold(&home.path());
        all.into_iter().filter(|process| process.command.contains(" supervise ")).count()
    };
    assert_eq!(supervisors(), 0, "nothing is to be kept up");
    serve(&home, &sandbox);

    let first = home.cli(["port", "demo", "7000"]).run().succeeds().out();
    let first = first.trim();
    assert_eq!(home.cli(["port", "demo", "7000"]).run().succeeds().out().trim(), first, "it is published already");
    assert_eq!(backwards(first, b"ab").as_deref(), Some(&b"ba"[..]));
    // A second end of the same port, and what cannot be.
    let second = home.cli(["port", "demo", "localhost:0:7000"]).run().succeeds().out();
    assert_eq!(published(&home, "demo"), [(7000, first.to_owned())], "printed again: {second}");
    let socket = home.scratch("p.sock");
    let at_socket = format!("{}:7000", socket.display());
    let _ = home.cli(["port", "demo", &at_socket]).run().succeeds();
    assert_eq!(published(&home, "demo").len(), 2);
    let host_port = first.rsplit_once(':').map(|(_, port)| port).unwrap_or_default();
    let _ = home.cli(["port", "demo", &format!("{host_port}:7001")]).run().fails_with(&["already published"]);
    let _ = home.cli(["create", "-m", SMALL, "-p", &format!("{host_port}:80")]).run().fails_with(&["in use"]);
    assert_eq!(home.listed(), std::slice::from_ref(&sandbox.id), "a sandbox whose port is taken stays");
    let _ =
        home.cli(["port", "demo", "0.0.0.0:0:7001"]).run().succeeds().err().find("other machines").expect("a warning");
    for bad in ["0", "70000", "x:80", "80/udp"] {
        let _ = home.cli(["port", "demo", bad]).run().fails_with(&["GUEST"]);
    }

    // Taken back: one end, then all.
    let _ = home.cli(["port", "--rm", "demo", &at_socket]).run().succeeds();
    assert!(!socket.exists() && backwards(first, b"ab").is_some());
    assert_eq!(home.cli(["port", "--rm", "demo", "7000"]).run().succeeds().out().trim(), first);
    assert!(TcpStream::connect(first).is_err());
    let _ = home.cli(["port", "--rm", "demo", "7000"]).run().fails_with(&["7000", "not published"]);
    let _ = home.cli(["port", "--rm", "demo", "7001"]).run().succeeds();
    let ended = eventually(SOON, || (supervisors() == 0).then_some(()));
    assert!(ended.is_some(), "a supervisor with nothing to keep up stays");
    // And another for the next.
    let _ = home.cli(["port", "demo", "7000"]).run().succeeds();
    assert_eq!(supervisors(), 1);

    let _ = home.cli(["stop", "demo"]).run().succeeds();
    let ended = eventually(SOON, || (supervisors() == 0).then_some(()));
    assert!(ended.is_some(), "a supervisor outlives its sandbox");
    let _ = home.cli(["port", "demo", "7002"]).run().fails_with(&["not running", "ports"]);
    let _ = home.cli(["rm", "demo"]).run().succeeds();
    home.assert_nothing_left();
}
