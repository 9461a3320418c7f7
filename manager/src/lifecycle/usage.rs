//! Measures what a sandbox uses of its host: processor time and memory of the process of its VMM,
//! which is the only process it has.

use crate::{
    home::directory::DirectoryError,
    sandbox::Sandbox,
    vmm::{lock, state},
};
use rustix::param::{clock_ticks_per_second, page_size};
use serde::Serialize;
use std::{fs, io, time::Duration};

/// Processor time and memory that the process of a VMM uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Processor time since the VMM's process started, of all its threads together.
    #[serde(rename = "cpu_ns", serialize_with = "nanoseconds")]
    pub cpu: Duration,
    /// Bytes of memory in use, some of which may be shared with copies of the same snapshot.
    pub resident_bytes: u64,
    /// The part of `resident_bytes` that is not shared.
    pub private_bytes: u64,
}

fn nanoseconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
}

impl Sandbox {
    /// Returns what the sandbox uses, or `None` if it does not run.
    ///
    /// # Errors
    /// When the host does not report it.
    pub fn usage(&self) -> Result<Option<Usage>, DirectoryError> {
        let hint = state::status(&self.directory)?.map(|status| status.pid);
        if lock::try_exclude_vmm(&self.directory)?.is_some() {
            return Ok(None);
        }
        let Some(vmm) = lock::find_holder(&self.directory, hint) else { return Ok(None) };
        let pid = vmm.pid();
        let read = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            fs::read_to_string(&path).map_err(|error| DirectoryError::new("read", path, error))
        };
        let texts = read("stat").and_then(|stat| Ok((stat, read("statm")?)));
        let (stat, statm) = match texts {
            // The process has ended meanwhile.
            Err(error) if error.is_not_found() => return Ok(None),
            texts => texts?,
        };
        if !vmm.is_alive() {
            return Ok(None);
        }
        let usage = parse(&stat, &statm);
        let unknown = || DirectoryError::new("understand", format!("/proc/{pid}/stat"), io::Error::other(stat.clone()));
        usage.map(Some).ok_or_else(unknown)
    }
}

/// Parses the two files, see proc(5): fields 14 and 15 of `stat`, counted after the name in
/// parentheses, and the resident and shared pages of `statm`.
fn parse(stat: &str, statm: &str) -> Option<Usage> {
    let mut times = stat.rsplit_once(')')?.1.split_whitespace().skip(11).map(|field| field.parse::<u64>().ok());
    let ticks = times.next()?? + times.next()??;
    let mut pages = statm.split_whitespace().skip(1).map(|field| field.parse::<u64>().ok());
    let (resident, shared) = (pages.next()??, pages.next()??);
    let page = page_size() as u64;
    Some(Usage {
        cpu: Duration::from_millis(ticks.saturating_mul(1000) / clock_ticks_per_second().max(1)),
        resident_bytes: resident * page,
        private_bytes: resident.saturating_sub(shared) * page,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_fields_are_found_after_any_process_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 4 0 99 1 2";
        let usage = parse(stat, "1000 300 100 1 0 9 0").unwrap();
        assert_eq!(usage.cpu, Duration::from_secs(2) * 100 / u32::try_from(clock_ticks_per_second()).unwrap());
        assert_eq!((usage.resident_bytes, usage.private_bytes), (300 * 4096, 200 * 4096));
        assert!(parse("", "").is_none() && parse(stat, "1").is_none() && parse("7 (x) S 1", "1 2 3").is_none());
    }
}
