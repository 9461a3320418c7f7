//! The egress process and, with the argument `dialer`, its dialer. Started by a sandbox's supervisor, with a socket of
//! `sandboxvm_protocol::egress` as standard input.

#![warn(clippy::print_stderr, clippy::print_stdout)]

use sandboxvm_egress::{
    confinement::{close_inherited_files, confine_dialer, confine_egress_process},
    dialer,
    serving::Beginning,
};
use std::{
    error::Error,
    fmt::Display,
    io::{self, Write},
    os::fd::OwnedFd,
    process::ExitCode,
};
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
            report(error);
            ExitCode::from(FAILED)
        }
    }
}

fn egress() -> Result<(), Box<dyn Error>> {
    let Some(beginning) = Beginning::receive(supervisor()?)? else { return Ok(()) };
    // A flow whose task failed would stay in the table: a bug ends the process, which the supervisor replaces.
    std::panic::set_hook(Box::new(|panic| {
        report(panic);
        std::process::exit(FAILED.into());
    }));
    // It makes its own descriptors, which the confinement forbids.
    let runtime = Builder::new_current_thread().enable_all().build()?;
    for missing in confine_egress_process()? {
        report(format_args!("the egress process {missing}"));
    }
    Ok(LocalSet::new().block_on(&runtime, beginning.serve())?)
}

fn dial() -> Result<(), Box<dyn Error>> {
    let supervisor = supervisor()?;
    for missing in confine_dialer()? {
        report(format_args!("the dialer {missing}"));
    }
    Ok(dialer::serve(supervisor)?)
}

/// Writes a message to the log of the supervisor. It is lost if that cannot be written, as on a full disk: the network of the
/// sandbox has to work anyway.
fn report(message: impl Display) {
    let _ = writeln!(io::stderr(), "sandboxvm-egress: {message}");
}

/// Standard input, which is a socket.
fn supervisor() -> io::Result<OwnedFd> {
    use std::os::fd::AsFd;
    io::stdin().as_fd().try_clone_to_owned()
}
