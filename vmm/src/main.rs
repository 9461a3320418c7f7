//! `sandboxvm-vmm`: confines itself, takes one launch frame on standard input, builds the machine it describes, runs
//! the guest, and exits when it is over. Started by the manager; with `--probe` it only says what KVM offers.

use sandboxvm_vmm::{bring_up, log, probe, timeline};
use std::{
    io::{self, Write},
    process::ExitCode,
};

/// Our own failure, as for every command of sandboxvm.
const FAILURE: u8 = 125;

fn main() -> ExitCode {
    let process_start = timeline::now();
    match std::env::args().nth(1).as_deref() {
        None => run(process_start),
        Some("--probe") => print_probe(),
        Some("--version") => print(concat!("sandboxvm-vmm ", env!("CARGO_PKG_VERSION"))),
        Some(other) => fail(&format!("unknown argument {other:?}; it is started by sandboxvm, or with --probe")),
    }
}

fn print_probe() -> ExitCode {
    let probe = probe::probe();
    let printed = match serde_json::to_string(&probe) {
        Ok(text) => print(&text),
        Err(error) => fail(&format!("cannot print the probe: {error}")),
    };
    if probe.problems.is_empty() { printed } else { ExitCode::from(FAILURE) }
}

/// Writes a line that was asked for.
fn print(line: &str) -> ExitCode {
    match writeln!(io::stdout(), "{line}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("cannot write to standard output: {error}")),
    }
}

/// A panic in one thread would leave the others to a machine that is half there: a vCPU that never comes to the gate, a
/// device whose state is torn. So it ends the process, whichever thread it is in, forked children included.
fn end_with_any_panic() {
    std::panic::set_hook(Box::new(|panic| {
        log::line(format_args!("this is a bug: {panic}"));
        std::process::exit(FAILURE.into());
    }));
}

fn run(process_start: u64) -> ExitCode {
    end_with_any_panic();
    match bring_up::run_launched(process_start) {
        Ok(reason) if reason.is_orderly() => ExitCode::SUCCESS,
        Ok(reason) => fail(&reason.to_string()),
        Err(error) => fail(&error.to_string()),
    }
}

fn fail(message: &str) -> ExitCode {
    log::line(message);
    ExitCode::from(FAILURE)
}
