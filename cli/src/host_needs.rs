//! What sandboxvm needs of a host, and what it lacks where the host does not have it: the one table from which `doctor`
//! takes the names of its checks and docs/host-modes.md its lists. Examines nothing.

use serde::Serialize;
use std::fmt::Write;

/// Result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Ok,
    Warning,
    Failed,
}

/// A property of the host that `doctor` checks.
#[derive(Debug)]
pub(crate) struct Need {
    /// Name of the check.
    pub(crate) check: &'static str,
    /// The worst verdict that the check can have: only `Failed` prevents sandboxes.
    pub(crate) worst: Verdict,
    /// What the host provides.
    what: &'static str,
    /// What happens where it does not.
    without: &'static str,
}

const fn need(check: &'static str, worst: Verdict, what: &'static str, without: &'static str) -> Need {
    Need { check, worst, what, without }
}

pub(crate) const KVM_DEVICE: Need =
    need("/dev/kvm", Verdict::Failed, "x86-64 with KVM, and a user who may open the device", "no sandbox runs");
pub(crate) const HOST_MODE: Need = need(
    "host mode",
    Verdict::Failed,
    "`kvm_intel` (mode vmx) or `kvm_amd` (mode svm), also in a virtual machine with nested virtualisation",
    "with `kvm_pvm` (mode pvm) the guest's kernel is interpreted: slower, and with a weaker boundary",
);
pub(crate) const KVM: Need =
    need("KVM", Verdict::Failed, "the capabilities of KVM that `sandboxvm-vmm --probe` lists", "no sandbox runs");
pub(crate) const KERNEL: Need = need(
    "host kernel",
    Verdict::Failed,
    "Linux 5.10 or newer",
    "`doctor` fails, and nothing was tried there; the next table says what later ones add",
);
pub(crate) const CONFINEMENT: Need = need(
    "confinement",
    Verdict::Warning,
    "root, or user namespaces in which a process may create other namespaces and mount",
    "the VMM keeps the parts of the host that the check names; its system call filter and limits always apply",
);
pub(crate) const MKE2FS: Need =
    need("mke2fs", Verdict::Failed, "the program `mke2fs` (package e2fsprogs)", "no writable disk can be made");
pub(crate) const ENDING: Need = need(
    "ending",
    Verdict::Warning,
    "cgroup version 2 with the controllers memory, pids and cpu, and a group that can be made",
    "processes that a VMM starts are found by their session, and only limits of each process apply (also with version 1)",
);
pub(crate) const SIDE_CHANNELS: Need = need(
    "side channels",
    Verdict::Warning,
    "no SMT or core scheduling, KSM off, all known processor vulnerabilities mitigated",
    "guests may learn from each other through the hardware that they share",
);
pub(crate) const MEMORY: Need = need("memory", Verdict::Warning, "512 MiB of memory", "the host may swap or refuse");
pub(crate) const HOME: Need = need(
    "home",
    Verdict::Failed,
    "a directory that the user can write to, with 1 GiB free",
    "no sandbox can be created; with less space there is a warning",
);

/// All needs, in the order of `doctor`.
pub(crate) const NEEDS: [&Need; 10] =
    [&KVM_DEVICE, &HOST_MODE, &CONFINEMENT, &KVM, &KERNEL, &MKE2FS, &ENDING, &SIDE_CHANNELS, &MEMORY, &HOME];

/// A version of Linux, as far as it matters: 6.1 is `Release(6, 1)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Release(pub(crate) u32, pub(crate) u32);

impl Release {
    /// Reads the beginning of what `uname -r` prints, such as `6.1.0-57-amd64`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        Some(Self(numbers.next()?.ok()?, numbers.next()?.ok()?))
    }
}

/// Something that the host's kernel has since a version.
#[derive(Debug)]
pub(crate) struct Feature {
    pub(crate) since: Release,
    pub(crate) name: &'static str,
    /// What is used instead by an older kernel.
    without: &'static str,
}

/// The oldest kernel that is supported. It has close_range(2), without which a VMM would keep descriptors that the
/// starting process left open, clone3(2) into a control group, and openat2(2).
pub(crate) const OLDEST_KERNEL: Release = Release(5, 10);

/// What kernels after [`OLDEST_KERNEL`] add, oldest first.
pub(crate) const FEATURES: [Feature; 7] = [
    Feature {
        since: Release(5, 14),
        name: "cgroup.kill",
        without: "a group is frozen and its processes are killed one by one",
    },
    Feature {
        since: Release(5, 14),
        name: "core scheduling",
        without: "with SMT, two sandboxes can run on one core at the same time",
    },
    Feature {
        since: Release(5, 14),
        name: "counters of KVM",
        without: "`stats` shows zeros, and a guest that halts all vCPUs for good is not always noticed",
    },
    Feature {
        since: Release(5, 18),
        name: "KVM without performance counters",
        without: "the counters are hidden from the guest in CPUID, but KVM's code for them stays reachable",
    },
    Feature {
        since: Release(6, 6),
        name: "fchmodat2(2)",
        without: "a live share sets the mode of a file that its owner may not open by its name",
    },
    Feature {
        since: Release(6, 7),
        name: "tracking of written pages",
        without: "a second snapshot compares all pages that the machine ever wrote",
    },
    Feature {
        since: Release(6, 12),
        name: "time slices per thread",
        without: "in mode pvm, many busy sandboxes slow each other down more",
    },
];

/// What doctor says of a host with the kernel `release`.
pub(crate) fn judge_kernel(release: &str) -> (Verdict, String) {
    let Some(version) = Release::parse(release) else {
        return (Verdict::Warning, format!("cannot read the version {release:?}"));
    };
    if version < OLDEST_KERNEL {
        return (Verdict::Failed, format!("{release} is too old"));
    }
    let missing: Vec<String> = FEATURES
        .iter()
        .filter(|feature| version < feature.since)
        .map(|Feature { since: Release(major, minor), name, .. }| format!("{name} (Linux {major}.{minor})"))
        .collect();
    let missing = if missing.is_empty() { String::new() } else { format!("; does without {}", missing.join(", ")) };
    (Verdict::Ok, format!("{release}{missing}"))
}

/// Returns the tables of docs/host-modes.md.
pub(crate) fn tables() -> String {
    let mut text = String::from("| check of `doctor` | what it looks for | without it |\n|---|---|---|\n");
    for Need { check, worst, what, without } in NEEDS {
        let required = if *worst == Verdict::Failed { " (required)" } else { "" };
        // Writing to a String does not fail.
        let _ = writeln!(text, "| {check}{required} | {what} | {without} |");
    }
    text.push_str("\n| Linux | adds | before |\n|---|---|---|\n");
    for Feature { since: Release(major, minor), name, without } in &FEATURES {
        let _ = writeln!(text, "| {major}.{minor} | {name} | {without} |");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_judged_by_what_they_lack() {
        assert_eq!(judge_kernel("5.4.0-42-generic"), (Verdict::Failed, "5.4.0-42-generic is too old".into()));
        let (verdict, bullseye) = judge_kernel("5.10.0-30-amd64");
        assert_eq!(verdict, Verdict::Ok);
        assert!(FEATURES.iter().all(|feature| bullseye.contains(feature.name)), "{bullseye}");
        let (_, bookworm) = judge_kernel("6.1.0-57-amd64");
        assert!(bookworm.contains("written pages (Linux 6.7)") && !bookworm.contains("cgroup.kill"), "{bookworm}");
        assert_eq!(judge_kernel("6.18.44"), (Verdict::Ok, "6.18.44".into()));
        assert_eq!(judge_kernel("unknown").0, Verdict::Warning);
    }

    #[test]
    fn features_are_listed_oldest_first_and_none_is_older_than_the_oldest_kernel() {
        assert!(FEATURES.is_sorted_by_key(|feature| feature.since) && FEATURES[0].since > OLDEST_KERNEL);
    }
}
