//! How many bytes the egress process carries in a second of its processor time. Ignored: run it with
//! `cargo test --release -p sandboxvm-egress --test throughput -- --ignored --nocapture`.

#![allow(clippy::unwrap_used, reason = "a failure of a helper is a failure of its test")]

mod common;

use common::{
    in_namespace,
    sandbox::{Sandbox, public},
};
use std::{
    io::{Read, Write},
    net::TcpListener,
    thread,
    time::{Duration, Instant},
};

const BYTES: usize = 1 << 30;

#[test]
#[ignore = "a measurement"]
fn bytes_per_second_of_processor_time() {
    if !in_namespace("bytes_per_second_of_processor_time") {
        return;
    }
    let (sandbox, mut guest) = Sandbox::start(public());
    guest.set_buffer(2 << 20);
    let listener = TcpListener::bind(("198.51.100.1", 0)).unwrap();
    let at = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut up, _) = listener.accept().unwrap();
        let mut buffer = vec![0; 1 << 20];
        let mut left = BYTES;
        while left > 0 {
            left -= up.read(&mut buffer).unwrap();
        }
        up.write_all(b"x").unwrap();
        let (mut down, _) = listener.accept().unwrap();
        for _ in 0..BYTES / buffer.len() {
            down.write_all(&buffer).unwrap();
        }
        let (mut short, _) = listener.accept().unwrap();
        while short.read_exact(&mut buffer[..1]).is_ok() {
            short.write_all(&buffer[..1]).unwrap();
        }
    });
    let report = |what: &str, begun: Instant, before: Duration| {
        let (wall, used) = (begun.elapsed().as_secs_f64(), (sandbox.cpu_time() - before).as_secs_f64());
        println!(
            "{what}: {:.2} GB/s, {:.2} GB per second of CPU",
            BYTES as f64 / wall / 1e9,
            BYTES as f64 / used / 1e9
        );
    };
    let tcp = guest.connect(at).unwrap();
    let (begun, before) = (Instant::now(), sandbox.cpu_time());
    let data = vec![0; 1 << 20];
    for _ in 0..BYTES / data.len() {
        guest.send(tcp, &data).unwrap();
    }
    guest.read_exact(tcp, 1).unwrap();
    report("from the guest", begun, before);

    let tcp = guest.connect(at).unwrap();
    let (begun, before) = (Instant::now(), sandbox.cpu_time());
    let mut left = BYTES;
    while left > 0 {
        left -= guest.read(tcp, 1 << 18).unwrap().len();
    }
    report("to the guest", begun, before);

    let tcp = guest.connect(at).unwrap();
    let (begun, before) = (Instant::now(), sandbox.cpu_time());
    for _ in 0..20_000 {
        guest.send(tcp, b"x").unwrap();
        guest.read_exact(tcp, 1).unwrap();
    }
    let (wall, used) = (begun.elapsed(), sandbox.cpu_time() - before);
    println!("a round trip of one byte: {:?}, {:?} of CPU", wall / 20_000, used / 20_000);
}
