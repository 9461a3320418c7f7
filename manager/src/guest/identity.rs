//! Gives a machine its identity before anything else runs in it: clock, entropy, hostname,
//! machine-id and limits.
//!
//! A machine that was restored, forked or reset is a copy: until it receives its identity, it has
//! the random numbers of another machine. The file `identity.due` in its directory means that it
//! has not received its identity yet. The file is created before the machine can run. A client that
//! wants to run a process while the file exists has to send the identity first, on the same
//! connection. Sending it twice is harmless.

use crate::{
    home::{
        directory::{DirectoryError, SandboxDirectory},
        ids::fill_random,
    },
    limits::kept::Limits,
    record::SandboxRecord,
};
use sandboxvm_protocol::{
    agent::{GuestIdentity, HostMessage},
    identity::SandboxName,
};
use sha2::{Digest, Sha256};
use std::{
    io,
    time::{SystemTime, UNIX_EPOCH},
};

const DUE: &str = "identity.due";

/// The identity of a machine, and its limits.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    hostname: SandboxName,
    machine_id: [u8; 16],
    limits: Limits,
}

impl Identity {
    pub(crate) fn of(record: &SandboxRecord) -> Self {
        // An ID is always a valid name: names allow its characters and lengths.
        let own = SandboxName::try_from(record.id.to_string()).expect("every ID is a valid name");
        let digest = Sha256::digest(format!("sandboxvm machine-id {}", record.id));
        let mut machine_id = [0; 16];
        machine_id.copy_from_slice(&digest[..16]);
        Self { hostname: record.name.clone().unwrap_or(own), machine_id, limits: record.limits }
    }

    /// Returns the limits of its processes.
    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Returns the message, which must be sent immediately, because it contains the time. An agent
    /// that can ask its VMM for the time does so, since it may be slow to read the message.
    pub(crate) fn message(&self) -> io::Result<HostMessage> {
        let mut entropy = [0; 32];
        fill_random(&mut entropy)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
        Ok(HostMessage::SetIdentity(GuestIdentity {
            wall_clock_ns: u64::try_from(now.as_nanos()).map_err(io::Error::other)?,
            entropy,
            hostname: self.hostname.clone(),
            machine_id: self.machine_id,
        }))
    }
}

/// Records that the machine of `directory` has to receive its identity.
pub(crate) fn make_due(directory: &SandboxDirectory) -> Result<(), DirectoryError> {
    if directory.has(DUE) { Ok(()) } else { directory.create_file(DUE).map(drop) }
}

/// Returns the identity that has to be sent first, if there is one.
pub(crate) fn due(directory: &SandboxDirectory, record: &SandboxRecord) -> Option<Identity> {
    directory.has(DUE).then(|| Identity::of(record))
}

/// Records that the machine has received its identity.
pub(crate) fn is_set(directory: &SandboxDirectory) -> Result<(), DirectoryError> {
    directory.unlink(DUE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::example;

    #[test]
    fn identities_differ_between_sandboxes_and_are_stable() {
        let (mut a, b) = (example("aaaaaaaa"), example("bbbbbbbb"));
        assert_ne!(Identity::of(&a).machine_id, Identity::of(&b).machine_id);
        assert_eq!(Identity::of(&a).machine_id, Identity::of(&a).machine_id);
        assert_eq!(Identity::of(&a).hostname.as_str(), "demo");
        a.name = None;
        assert_eq!(Identity::of(&a).hostname.as_str(), "aaaaaaaa");
        let messages = [Identity::of(&b).message().unwrap(), Identity::of(&b).message().unwrap()];
        let [HostMessage::SetIdentity(first), HostMessage::SetIdentity(second)] = messages else { panic!() };
        assert_ne!(first.entropy, second.entropy);
        assert!(second.wall_clock_ns >= first.wall_clock_ns);
    }

    #[test]
    fn identity_is_due_until_it_is_set() {
        let home = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory::create(home.path().join("x")).unwrap();
        let record = example("abcdefgh");
        assert!(due(&directory, &record).is_none());
        make_due(&directory).unwrap();
        make_due(&directory).unwrap();
        assert!(due(&directory, &record).is_some());
        is_set(&directory).unwrap();
        assert!(due(&directory, &record).is_none());
    }
}
