//! The process of a share. Started by a program of sandboxvm with the connection as standard input, and a
//! descriptor of the root (O_PATH), or of a volume, as standard output. May read no request before it is confined.

use rustix::stdio::{stdin, stdout};
use sandboxvm_share::{
    FILES, Limits, Owner, Root, Server, Settings, Volume, boot,
    confinement::{self, close_inherited_files},
    content, serve,
};
use std::{error::Error, os::unix::net::UnixStream, process::ExitCode};

/// Exit code of failures, as everywhere in sandboxvm.
const FAILED: u8 = 125;
/// The argument of a process that removes what is in a volume.
const REMOVAL: &str = "removal";

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
    let serves = serves().ok_or("this program is started by sandboxvm, not by a user")?;
    let boot = boot();
    let read_only = matches!(serves, Serves::Share(Settings { read_only: true, .. }));
    confinement::confine(stdout(), read_only, !matches!(serves, Serves::Share(_)))?;
    let stream = UnixStream::from(stdin().try_clone_to_owned()?);
    let (path, files) = (confinement::path(), confinement::path().join(FILES));
    match serves {
        Serves::Share(settings) => serve(&Server::new(Root::open(path)?, settings), &stream)?,
        Serves::Volume(limits) => {
            let volume = Volume::open(path, limits, boot)?;
            serve(&Server::of_volume(Root::open(&files)?, volume), &stream)?;
        }
        Serves::Removal => content::clear(path)?,
        Serves::Content(limits) => content::serve(&Volume::open(path, limits, boot)?, &Root::open(&files)?, &stream)?,
    }
    Ok(())
}

/// What this process does.
enum Serves {
    /// A share, for a guest's kernel.
    Share(Settings),
    /// A volume, for a guest's kernel.
    Volume(Limits),
    /// One request of the content API about a volume.
    Content(Limits),
    /// Removes what is in a volume that was removed.
    Removal,
}

/// Reads the argument, as `ro:1000:1000` or `volume:1073741824:10000`.
fn serves() -> Option<Serves> {
    let argument = std::env::args().nth(1)?;
    if argument == REMOVAL {
        return Some(Serves::Removal);
    }
    let (what, numbers) = argument.split_once(':')?;
    let (first, second) = numbers.split_once(':')?;
    let share = |read_only| {
        let owner = Owner { uid: first.parse().ok()?, gid: second.parse().ok()? };
        Some(Serves::Share(Settings { read_only, owner }))
    };
    let limits = || Some(Limits { bytes: first.parse().ok()?, names: second.parse().ok()? });
    match what {
        "ro" => share(true),
        "rw" => share(false),
        "volume" => limits().map(Serves::Volume),
        "content" => limits().map(Serves::Content),
        _ => None,
    }
}
