//! Telling a machine who it is before anything else runs in it: clock, entropy, hostname, machine-id, limits.
//!
//! A machine that was restored, forked or reset is a copy: until it is told, its random numbers are another's. The file
//! `identity.due` in its directory says that it was not told yet; it is made before the machine can run, and whoever
//! wants to run something while it is there tells the machine first, on the same connection. Telling it twice is
//! harmless.

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
    ids::SandboxName,
};
use sha2::{Digest, Sha256};
use std::{
    io,
    time::{SystemTime, UNIX_EPOCH},
};

const DUE: &str = "identity.due";

/// What a machine is to be called, and what it may have.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    hostname: SandboxName,
    machine_id: [u8; 16],
    limits: Limits,
}

impl Identity {
    pub(crate) fn of(record: &SandboxRecord) -> Self {
        // An ID is a valid name: its characters and lengths are among those of names.
        let own = SandboxName::try_from(record.id.to_string()).expect("every ID is a valid name");
        let digest = Sha256::digest(format!("sandboxvm machine-id {}", record.id));
        let mut machine_id = [0; 16];
        machine_id.copy_from_slice(&digest[..16]);
        Self { hostname: record.name.clone().unwrap_or(own), machine_id, limits: record.limits }
    }

    /// What its processes may have.
    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// To be sent at once: it holds the time. An agent that can ask its VMM for that does, since it may be slow to hear.
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

/// Says that the machine of `directory` is to be told who it is.
pub(crate) fn make_due(directory: &SandboxDirectory) -> Result<(), DirectoryError> {
    if directory.has(DUE) { Ok(()) } else { directory.create_file(DUE).map(drop) }
}

/// The identity that is to be set first, if one is.
pub(crate) fn due(directory: &SandboxDirectory, record: &SandboxRecord) -> Option<Identity> {
    directory.has(DUE).then(|| Identity::of(record))
}

/// It was told.
pub(crate) fn is_set(directory: &SandboxDirectory) -> Result<(), DirectoryError> {
    directory.unlink(DUE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::example;

    #[test]
    fn two_sandboxes_have_nothing_in_common_and_one_is_always_itself() {
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
    fn it_is_due_until_it_is_set() {
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
