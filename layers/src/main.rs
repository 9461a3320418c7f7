//! The layer process: reads the layers of a container image, and writes an EROFS image. Started by a
//! program of sandboxvm, with a socket as standard input. May never open a file.

#![warn(clippy::print_stderr, clippy::print_stdout)]

use sandboxvm_layers::process::{confinement::close_inherited_files, serving::serve};
use std::{
    error::Error,
    io::{self, Write},
    os::fd::AsFd,
    process::ExitCode,
};

/// Exit code of failures, as everywhere in sandboxvm.
const FAILED: u8 = 125;

fn main() -> ExitCode {
    close_inherited_files();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The caller has the failure over its socket, or sees the exit code.
            let _ = writeln!(io::stderr(), "sandboxvm-layers: {error}");
            ExitCode::from(FAILED)
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    if std::env::args_os().len() > 1 {
        return Err("started by sandboxvm, and not by hand".into());
    }
    Ok(serve(&io::stdin().as_fd().try_clone_to_owned()?)?)
}
