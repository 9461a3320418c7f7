//! Points in time that other processes, and this one after a restart, agree on: by the clock that
//! counts from the host's boot and cannot be set, or after another boot by the wall clock.

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Returns the time since the host's boot, including time asleep.
pub(crate) fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    // The kernel's values are never negative.
    Duration::try_from(now).unwrap_or_default()
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// A point in time in the future.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Deadline {
    boot_id: String,
    since_boot_ms: u64,
    unix_ms: u64,
}

impl Deadline {
    /// Returns the point in time after `wait`.
    pub(crate) fn after(wait: Duration) -> io::Result<Self> {
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Ok(Self {
            boot_id: boot_id()?,
            since_boot_ms: milliseconds(since_boot().saturating_add(wait)),
            unix_ms: milliseconds(wall().saturating_add(wait)),
        })
    }

    /// Returns the time until then, or zero afterwards.
    pub(crate) fn left(&self) -> Duration {
        let (then, now) = match boot_id() {
            Ok(id) if id == self.boot_id => (self.since_boot_ms, since_boot()),
            _ => (self.unix_ms, wall()),
        };
        Duration::from_millis(then).saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_the_clock_does_not_move_a_deadline_of_this_boot() {
        let hour = Duration::from_secs(3600);
        let mut deadline = Deadline::after(hour).unwrap();
        assert!(deadline.left() <= hour && deadline.left() > hour - Duration::from_secs(60));
        deadline.unix_ms = 0;
        assert!(deadline.left() > hour - Duration::from_secs(60));
        deadline.boot_id = "another".into();
        assert_eq!(deadline.left(), Duration::ZERO);
        assert_eq!(Deadline::after(Duration::ZERO).unwrap().left(), Duration::ZERO);
        assert!(Deadline::after(Duration::MAX).unwrap().left() > hour);
    }
}
