//! What a front keeps of what a process has, before it reads a byte from the network (see [`sandboxvm_confine`]).

use super::filter;
use sandboxvm_confine::{Confinement, Network, Resource};
use std::{fs, io::Write};

pub use sandboxvm_confine::{ConfineError, User as FrontUser};

/// The system user of fronts, where the host has one.
const SYSTEM_USER: &str = "sandboxvm-http";
/// Added to the launcher's PID, the user of its front where the host has none: above all users of the host and below those of
/// egress processes and VMMs.
const FIRST_USER: u32 = 0x6000_0000;
/// Maximum size of its data in bytes: 5 MiB when idle, and with load the bodies and answers of its requests, whose number and
/// lengths are bounded.
const MAX_DATA: u64 = 8 << 30;
/// Maximum number of threads of all fronts with its user: one for each processor, and 512 for blocking work.
const MAX_THREADS: u64 = 8192;
/// Of all processes of the server, the kernel ends this one first when memory is short: VMMs have 500, and it is replaced.
const ENDS_FIRST: u16 = 1000;

/// Returns the user of the front that this process starts, or none if this process is not root: then both have one user.
#[must_use]
pub fn user_of_front() -> Option<FrontUser> {
    rustix::process::geteuid().is_root().then(|| {
        let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let own = FIRST_USER.saturating_add(std::process::id());
        system_user(&users).unwrap_or(FrontUser { uid: own, gid: own })
    })
}

/// The system user in a passwd(5).
fn system_user(users: &str) -> Option<FrontUser> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let user = FrontUser { uid: uid.parse().ok()?, gid: gid.parse().ok()? };
        (name == SYSTEM_USER && user.uid != 0 && user.gid != 0).then_some(user)
    })
}

/// Confines this process, which must have one thread: see the module. With `user`, this process is root and becomes that user.
/// With `connects`, it may open connections and read files that its user may read: for an exporter of traces.
///
/// # Errors
/// When a step fails that every host allows.
pub fn confine(user: Option<FrontUser>, connects: bool) -> Result<(), ConfineError> {
    let missing = Confinement {
        process: "front",
        users: user.as_slice(),
        // The filter alone keeps the front of another user from files and networks.
        namespaces: user.filter(|_| !connects).map(|_| Network::Empty),
        contents: &[],
        limits: &[(Resource::Data, MAX_DATA)],
        threads: MAX_THREADS,
        ends_first: ENDS_FIRST,
        filter: &filter::calls(connects),
    }
    .apply()?;
    for missing in missing {
        // Lost if the log of the launcher cannot take it: a front has to serve anyway.
        let _ = writeln!(std::io::stderr(), "sandboxvm: warning: the front {missing}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_user_is_found_by_name_and_never_root() {
        let users = "root:x:0:0:root:/root:/bin/bash\nsandboxvm-http2:x:1:1::/:/x\nsandboxvm-http:x:990:991::/:/x\n";
        assert_eq!(system_user(users), Some(FrontUser { uid: 990, gid: 991 }));
        for without in ["", "sandboxvm-http:x:0:5::/:/x", "sandboxvm-http:x:990:0::/:/x", "sandboxvm-http:x:y:1::/:/x"]
        {
            assert_eq!(system_user(without), None, "{without}");
        }
    }
}
