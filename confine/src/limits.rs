//! Resource limits: what code that took the process over could still use up.

use crate::outcome::{Step, failed};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// No process here needs any of these. A core file would hold what passes through it.
const NONE: [Resource; 5] = [Resource::Core, Resource::Memlock, Resource::Msgqueue, Resource::Rtprio, Resource::Nice];

/// Sets the limits, never above what the process may have. What it has now may be less than it may.
pub(super) fn lower(limits: &[(Resource, u64)]) -> Result<(), Step> {
    for (resource, to) in NONE.iter().map(|resource| (*resource, 0)).chain(limits.iter().copied()) {
        let maximum = getrlimit(resource).maximum;
        let limit = Some(maximum.map_or(to, |maximum| maximum.min(to)));
        setrlimit(resource, Rlimit { current: limit, maximum: limit }).map_err(failed("setting limits"))?;
    }
    Ok(())
}
