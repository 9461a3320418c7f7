//! The process of a share. Started by a program of sandboxvm with the connection as standard input, and a
//! descriptor of the root (O_PATH) as standard output. May read no request before it is confined.

use rustix::stdio::{stdin, stdout};
use sandboxvm_share::{
    Owner, Root, Server, Settings,
    confinement::{self, close_inherited_files},
    serve,
};
use std::{error::Error, os::unix::net::UnixStream, process::ExitCode};

/// Exit code of failures, as everywhere in sandboxvm.
const FAILED: u8 = 125;

fn main() -> ExitCode {
    close_inherited_files();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sandboxvm-share: {error}");
            ExitCode::from(FAILED)
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let settings = settings().ok_or("this program is started by sandboxvm, not by a user")?;
    confinement::confine(stdout(), settings.read_only)?;
    let server = Server::new(Root::open(confinement::path())?, settings);
    let stream = UnixStream::from(stdin().try_clone_to_owned()?);
    Ok(serve(&server, &stream)?)
}

/// Reads the argument, as `ro:1000:1000`.
fn settings() -> Option<Settings> {
    let argument = std::env::args().nth(1)?;
    let mut parts = argument.split(':');
    let read_only = match parts.next()? {
        "ro" => true,
        "rw" => false,
        _ => return None,
    };
    let owner = Owner { uid: parts.next()?.parse().ok()?, gid: parts.next()?.parse().ok()? };
    parts.next().is_none().then_some(Settings { read_only, owner })
}
