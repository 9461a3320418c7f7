//! The process of a share. Started by a program of sandboxvm with the connection as standard input, and a
//! descriptor of the root (O_PATH), or of a volume, as standard output. One that copies a share has the target of
//! the copy as standard input. May read no request before it is confined.

use rustix::stdio::{stdin, stdout};
use sandboxvm_share::{
    Copied, FILES, Limits, Owner, Root, Server, Settings, Volume, boot,
    confinement::{self, Use, close_inherited_files},
    content, copy, serve,
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
    let used = match serves {
        Serves::Share(Settings { read_only, .. }) => Use::Share { read_only },
        Serves::Copied(..) => Use::Share { read_only: false },
        Serves::Copy(_) => Use::Source(stdin()),
        Serves::Volume(_) | Serves::Content(_) | Serves::Removal => Use::Volume,
    };
    confinement::confine(stdout(), used)?;
    let stream = UnixStream::from(stdin().try_clone_to_owned()?);
    let path = confinement::path();
    let files = path.join(FILES);
    match serves {
        Serves::Share(settings) => serve(&Server::new(Root::open(&path)?, settings), &stream)?,
        Serves::Copied(owner, floor) => {
            serve(&Server::of_copy(Root::open(&files)?, owner, Copied::open(&path, floor)?), &stream)?
        }
        Serves::Copy(limits) => copy::copy(&Root::open(&path)?, &confinement::target(), limits)?,
        Serves::Volume(limits) => {
            let volume = Volume::open(&path, limits, boot)?;
            serve(&Server::of_volume(Root::open(&files)?, volume), &stream)?;
        }
        Serves::Removal => content::clear(&path)?,
        Serves::Content(limits) => content::serve(&Volume::open(&path, limits, boot)?, &Root::open(&files)?, &stream)?,
    }
    Ok(())
}

/// What this process does.
enum Serves {
    /// A share, for a guest's kernel.
    Share(Settings),
    /// The copy of a share, for a guest's kernel, which leaves this many bytes of its file system free.
    Copied(Owner, u64),
    /// Nothing: copies a share.
    Copy(Limits),
    /// A volume, for a guest's kernel.
    Volume(Limits),
    /// One request of the content API about a volume.
    Content(Limits),
    /// Removes what is in a volume that was removed.
    Removal,
}

/// Reads the argument, as `ro:1000:1000`, `copied:1000:1000:1073741824` or `volume:1073741824:10000`.
fn serves() -> Option<Serves> {
    let argument = std::env::args().nth(1)?;
    if argument == REMOVAL {
        return Some(Serves::Removal);
    }
    let (what, numbers) = argument.split_once(':')?;
    let (first, second) = numbers.split_once(':')?;
    let owner = |gid: &str| Some(Owner { uid: first.parse().ok()?, gid: gid.parse().ok()? });
    let share = |read_only| Some(Serves::Share(Settings { read_only, owner: owner(second)? }));
    let limits = || Some(Limits { bytes: first.parse().ok()?, names: second.parse().ok()? });
    match what {
        "ro" => share(true),
        "rw" => share(false),
        "copied" => {
            let (gid, floor) = second.split_once(':')?;
            Some(Serves::Copied(owner(gid)?, floor.parse().ok()?))
        }
        "copy" => limits().map(Serves::Copy),
        "volume" => limits().map(Serves::Volume),
        "content" => limits().map(Serves::Content),
        _ => None,
    }
}
