//! `sandboxvm-vmm`: confines itself, takes one launch frame on standard input, builds the machine it describes, runs
//! the guest, and exits when it is over. Started by the manager; with `--probe` it only says what KVM offers.

use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    stdio::stdin,
};
use sandboxvm_vmm::{probe, session, timeline};
use std::{os::unix::net::UnixStream, process::ExitCode};

/// Our own failure, as for every command of sandboxvm.
const FAILURE: u8 = 125;

fn main() -> ExitCode {
    let process_start = timeline::now();
    match std::env::args().nth(1).as_deref() {
        None => run(process_start),
        Some("--probe") => print_probe(),
        Some("--version") => {
            println!("sandboxvm-vmm {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Some(other) => fail(&format!("unknown argument {other:?}; it is started by sandboxvm, or with --probe")),
    }
}

fn print_probe() -> ExitCode {
    let probe = probe::probe();
    match serde_json::to_string(&probe) {
        Ok(text) => println!("{text}"),
        Err(error) => eprintln!("sandboxvm-vmm: cannot print the probe: {error}"),
    }
    if probe.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FAILURE) }
}

/// A panic in one thread would leave the others to a machine that is half there: a vCPU that never comes to the gate, a
/// device whose state is torn. So it ends the process, whichever thread it is in, forked children included.
fn end_with_any_panic() {
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("sandboxvm-vmm: this is a bug: {panic}");
        std::process::exit(FAILURE.into());
    }));
}

/// A machine has a descriptor for each connection to its guest, a thousand at most, and the usual limit of 1024 is there
/// for programs that do not know how many they want.
fn want_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    // Where it is refused the usual number has to do.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

fn run(process_start: u64) -> ExitCode {
    end_with_any_panic();
    want_descriptors();
    // A session of its own: the signals of a terminal are not for a machine that outlives the command it was typed in.
    // It fails where this process leads its group already, which is as good.
    let _ = rustix::process::setsid();
    let channel = match stdin().try_clone_to_owned() {
        Ok(fd) => UnixStream::from(fd),
        Err(error) => return fail(&format!("cannot use standard input as the launch channel: {error}")),
    };
    match session::launch(channel, process_start).and_then(session::Session::run) {
        Ok(reason) if reason.is_orderly() => ExitCode::SUCCESS,
        Ok(reason) => fail(&reason.to_string()),
        Err(error) => fail(&error.to_string()),
    }
}

fn fail(message: &str) -> ExitCode {
    eprintln!("sandboxvm-vmm: {message}");
    ExitCode::from(FAILURE)
}
