//! `network.pins`: the addresses that a guest got as answers, for the next egress process: of a fork,
//! and of a machine that replaces another one. It is there for a moment. An egress process named
//! them, and a guest may have taken it over: so they live no longer than it said, and a sandbox
//! whose settings do not open an address below the floor does not take it.

use crate::{
    clock::Deadline,
    home::directory::{DirectoryError, SandboxDirectory},
};
use ipnet::IpNet;
use sandboxvm_egress_policy::{floor::Floor, name::DomainName, pins::MAX_LIFE};
use sandboxvm_protocol::egress::{MAX_SAVED_PINS, SavedPin};
use serde::{Deserialize, Serialize};
use std::{net::IpAddr, time::Duration};

const FILE: &str = "network.pins";
/// Maximum size in bytes: [`MAX_SAVED_PINS`] names and addresses.
const MAX_FILE: u64 = MAX_SAVED_PINS as u64 * 1024;

/// Pins with the times of their ends, which do not depend on when they are read.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct KeptPins(Vec<KeptPin>);

#[derive(Debug, Serialize, Deserialize)]
struct KeptPin {
    name: String,
    address: IpAddr,
    until: Deadline,
}

impl KeptPins {
    /// Returns `pins` that an egress process named just now. Without the clock there are none: the guest
    /// asks for its names again.
    pub(crate) fn of(pins: Vec<SavedPin>) -> Self {
        let kept = pins.into_iter().take(MAX_SAVED_PINS).filter_map(|SavedPin { name, address, seconds }| {
            let left = Duration::from_secs(seconds.into()).min(MAX_LIFE);
            Some(KeptPin { name, address, until: Deadline::after(left).ok()? })
        });
        Self(kept.collect())
    }

    /// Keeps the pins for the next egress process of the sandbox in `directory`.
    pub(crate) fn write(&self, directory: &SandboxDirectory) -> Result<(), DirectoryError> {
        if self.0.is_empty() {
            return directory.unlink(FILE);
        }
        let json = serde_json::to_vec(self).map_err(|error| directory.error("write", FILE, error))?;
        directory.replace(FILE, &json)
    }
}

/// Takes the pins that were kept, for a sandbox for which `opened` is open below the floor. Pins that
/// have expired, that cannot be read or that it does not take are dropped.
pub(crate) fn take(directory: &SandboxDirectory, opened: &[IpNet]) -> Vec<SavedPin> {
    let Ok(text) = directory.read(FILE, MAX_FILE) else { return Vec::new() };
    // If it stays, the next reader drops what has expired by then.
    let _ = directory.unlink(FILE);
    let KeptPins(kept) = serde_json::from_slice(&text).unwrap_or_default();
    // The addresses of the host are the dialer's to know.
    let floor = Floor::new(Vec::new(), opened.to_vec());
    let alive = kept.into_iter().filter_map(|KeptPin { name, address, until }| {
        let seconds = u32::try_from(until.left().as_secs()).ok().filter(|seconds| *seconds > 0)?;
        let is_name = DomainName::parse(name.as_bytes()).is_ok();
        let address = floor.check(address).ok().filter(|_| is_name)?;
        Some(SavedPin { name, address, seconds })
    });
    alive.take(MAX_SAVED_PINS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> (tempfile::TempDir, SandboxDirectory) {
        let home = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory::create(home.path().join("x")).unwrap();
        (home, directory)
    }

    fn pin(name: &str, address: &str, seconds: u32) -> SavedPin {
        SavedPin { name: name.into(), address: address.parse().unwrap(), seconds }
    }

    #[test]
    fn pins_are_taken_once_and_expire() {
        let (_home, directory) = directory();
        assert!(take(&directory, &[]).is_empty());
        let kept = KeptPins::of(vec![pin("a.example", "1.1.1.1", 30), pin("b.example", "1.1.1.1", 0)]);
        // What is written down later lives no longer.
        std::thread::sleep(Duration::from_millis(1100));
        kept.write(&directory).unwrap();
        let taken = take(&directory, &[]);
        assert_eq!(taken.iter().map(|pin| pin.name.as_str()).collect::<Vec<_>>(), ["a.example"]);
        assert!((1..=28).contains(&taken[0].seconds), "{taken:?}");
        assert!(take(&directory, &[]).is_empty());
        directory.replace(FILE, b"[{").unwrap();
        assert!(take(&directory, &[]).is_empty() && !directory.has(FILE));
        kept.write(&directory).unwrap();
        KeptPins::default().write(&directory).unwrap();
        assert!(!directory.has(FILE));
    }

    #[test]
    fn pins_that_a_hostile_process_made_up_are_not_taken() {
        let (_home, directory) = directory();
        let taken = |opened: &[&str]| {
            let pins = vec![
                pin("a.example", "169.254.169.254", 60),
                pin("a.example", "10.20.0.1", 60),
                pin("a.example", "::ffff:10.20.0.1", 60),
                pin("a\n.example", "1.1.1.1", 60),
                pin("b.example", "1.1.1.1", u32::MAX),
            ];
            KeptPins::of(pins).write(&directory).unwrap();
            let opened: Vec<IpNet> = opened.iter().map(|net| net.parse().unwrap()).collect();
            let taken = take(&directory, &opened);
            assert!(taken.iter().all(|pin| u64::from(pin.seconds) <= MAX_LIFE.as_secs()));
            taken.into_iter().map(|pin| format!("{} {}", pin.name, pin.address)).collect::<Vec<_>>()
        };
        assert_eq!(taken(&[]), ["b.example 1.1.1.1"]);
        let opened = ["a.example 10.20.0.1", "a.example 10.20.0.1", "b.example 1.1.1.1"];
        assert_eq!(taken(&["10.20.0.0/16"]), opened);
    }
}
