//! The egress process and, with the argument `dialer`, its dialer. Started by a sandbox's supervisor, with a socket of
//! `sandboxvm_protocol::egress` as standard input.

use sandboxvm_egress::{
    confinement::{close_inherited_files, confine_dialer, confine_egress_process},
    dialer,
    serving::Beginning,
};
use std::{error::Error, io, os::fd::OwnedFd, process::ExitCode};
use tokio::{runtime::Builder, task::LocalSet};

/// Exit code of failures, as everywhere in sandboxvm.
const FAILED: u8 = 125;

fn main() -> ExitCode {
    close_inherited_files();
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let result = match &arguments[..] {
        [] => egress(),
        [word] if word == "dialer" => dial(),
        _ => Err("started by sandboxvm, and not by hand".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sandboxvm-egress: {error}");
            ExitCode::from(FAILED)
        }
    }
}

fn egress() -> Result<(), Box<dyn Error>> {
    let Some(beginning) = Beginning::receive(supervisor()?)? else { return Ok(()) };
    // A flow whose task failed would stay in the table: a bug ends the process, which the supervisor replaces.
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("sandboxvm-egress: {panic}");
        std::process::exit(FAILED.into());
    }));
    // It makes its own descriptors, which the confinement forbids.
    let runtime = Builder::new_current_thread().enable_all().build()?;
    for missing in confine_egress_process()? {
        eprintln!("sandboxvm-egress: the egress process {missing}");
    }
    Ok(LocalSet::new().block_on(&runtime, beginning.serve())?)
}

fn dial() -> Result<(), Box<dyn Error>> {
    let supervisor = supervisor()?;
    for missing in confine_dialer()? {
        eprintln!("sandboxvm-egress: the dialer {missing}");
    }
    Ok(dialer::serve(supervisor)?)
}

/// Standard input, which is a socket.
fn supervisor() -> io::Result<OwnedFd> {
    use std::os::fd::AsFd;
    io::stdin().as_fd().try_clone_to_owned()
}
