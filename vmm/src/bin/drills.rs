//! `sandboxvm-vmm-drills`: a VMM whose guest has already taken it over. It runs a machine as `sandboxvm-vmm` does, and does
//! what the guest writes to two ports asks of it: attacks on its own confinement (`src/drills/`). For tests alone.

use sandboxvm_vmm::{bring_up, log, timeline};
use std::process::ExitCode;

fn main() -> ExitCode {
    match bring_up::run_launched(timeline::now()) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            log::line(error);
            ExitCode::from(125)
        }
    }
}
