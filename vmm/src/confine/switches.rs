//! Protections that can be switched off, to show that a drill succeeds without them: only in a build with the feature
//! `escape-drills`, which is made for tests and named otherwise. In every other build all of them are on, and this says so
//! at compile time.

/// What can be off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protection {
    /// Closing what was inherited.
    Descriptors,
    /// Mount namespace and empty root.
    Mount,
    /// Network namespace.
    Network,
    /// Giving up root: user, capabilities, user namespace.
    User,
    /// A user that no other VMM has.
    OwnUser,
    /// Resource limits.
    Limits,
    /// All system call filters.
    Seccomp,
    /// The narrower ones of vCPU threads and writers.
    ThreadSeccomp,
}

/// Never.
#[cfg(not(feature = "escape-drills"))]
pub(super) const fn is_off(_protection: Protection) -> bool {
    false
}

/// Named in `SANDBOXVM_DRILL_WITHOUT`, a list with commas.
#[cfg(feature = "escape-drills")]
pub(super) fn is_off(protection: Protection) -> bool {
    let name = match protection {
        Protection::Descriptors => "descriptors",
        Protection::Mount => "mount",
        Protection::Network => "network",
        Protection::User => "user",
        Protection::OwnUser => "own-user",
        Protection::Limits => "limits",
        Protection::Seccomp => "seccomp",
        Protection::ThreadSeccomp => "thread-seccomp",
    };
    std::env::var("SANDBOXVM_DRILL_WITHOUT").is_ok_and(|off| off.split(',').any(|word| word == name))
}
