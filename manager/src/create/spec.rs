//! The specification of a new sandbox, and the checks that need nothing of the host: a
//! specification that passes them can be started.

use crate::{
    audit::Origin, create::error::CreateError, guest::process::spec::check_variable, image_defaults::ImageDefaults,
    limits::kept::WantedLimits, mounts::Mounts, network::spec::NetworkSpec, supervision::SupervisionSpec,
    workspace::WorkspaceSpec,
};
use sandboxvm_images::template::DiskSize;
use sandboxvm_protocol::{
    agent::{MAX_ARGUMENT_COUNT, MAX_ARGUMENTS_TOTAL},
    ids::SandboxName,
    machine::{MIB, MemorySize, VcpuCount},
};
use std::time::Duration;

/// Length of the shortest command in bytes: one letter and its NUL. The variables must leave room
/// for it.
const SHORTEST_COMMAND: usize = 2;
/// Maximum number of characters of a variable's name that an error shows.
const SHOWN: usize = 40;

/// What a new sandbox starts from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum StartFrom {
    /// The ready snapshot of its kind of machine, which is made on first use.
    #[default]
    Ready,
    /// A boot of the kernel.
    Boot,
    /// A named snapshot. vCPUs, memory and disk are those of the snapshot.
    Snapshot(SandboxName),
    /// Only the disk of a named snapshot: the kernel boots from it, and memory and processes are
    /// lost.
    SnapshotDisk(SandboxName),
}

/// What a new sandbox is to be.
#[derive(Debug, Clone)]
pub struct SandboxSpec {
    /// Name of the sandbox, if it gets one.
    pub name: Option<SandboxName>,
    /// Number of vCPUs.
    pub vcpus: VcpuCount,
    /// Size of the guest memory.
    pub memory: MemorySize,
    /// Size of the writable disk.
    pub disk: DiskSize,
    /// What the sandbox starts from.
    pub start_from: StartFrom,
    /// `KEY=VALUE` entries, set for every process that is started in the sandbox.
    pub env: Vec<String>,
    /// The sandbox belongs to the caller: it ends with the caller's process, and a sweep removes
    /// its remains.
    pub ephemeral: bool,
    /// Limits of the sandbox. Those of a snapshot are never used.
    pub limits: WantedLimits,
    /// Services of the sandbox, written down before any other process sees it: if its creator is
    /// killed, the next command that uses the sandbox starts them. The creator starts them by
    /// [`Sandbox::supervise`](crate::Sandbox::supervise).
    pub services: SupervisionSpec,
    /// What the sandbox may reach. `None` for a machine without a network card, or, restored from a
    /// snapshot with one, for a card whose link stays down. Its creator starts the network by
    /// [`Sandbox::supervise`](crate::Sandbox::supervise).
    pub network: Option<NetworkSpec>,
    /// What the image says about processes. A snapshot has its own.
    pub image_defaults: Option<ImageDefaults>,
    /// The workspace of the sandbox. A sandbox that starts from a named snapshot has that of the
    /// snapshot, and may not have another.
    pub workspace: Option<WorkspaceSpec>,
    /// What is mounted beside the root. A volume that does not exist is made. A sandbox that starts from a
    /// named snapshot has the mounts of the snapshot: these are only the directories of the host for its live shares,
    /// one for each.
    pub mounts: Mounts,
    /// Processes cannot write the root: everything outside of the mounts, the workspace and the machine's own
    /// file systems. A sandbox that starts from a named snapshot has that of the snapshot.
    pub read_only_root: bool,
    /// Maximum time from the start until the agent listens.
    pub boot_timeout: Duration,
}

impl Default for SandboxSpec {
    fn default() -> Self {
        Self {
            name: None,
            vcpus: VcpuCount::ONE,
            memory: MemorySize::try_from(256 * MIB).expect("256 MiB lies within the bounds"),
            disk: DiskSize::DEFAULT,
            start_from: StartFrom::default(),
            env: Vec::new(),
            ephemeral: false,
            limits: WantedLimits::default(),
            services: SupervisionSpec::default(),
            network: None,
            image_defaults: None,
            workspace: None,
            mounts: Mounts::default(),
            read_only_root: false,
            boot_timeout: Duration::from_secs(300),
        }
    }
}

/// Rejects variables with which no process could be started.
pub(crate) fn check_env(env: &[String]) -> Result<(), CreateError> {
    let refused = |entry: &str, problem| {
        let name = entry.split('=').next().unwrap_or_default();
        Err(CreateError::Environment { variable: name.chars().take(SHOWN).collect(), problem })
    };
    for entry in env {
        if let Err(problem) = check_variable(entry) {
            return refused(entry, problem.to_string());
        }
    }
    let total: usize = env.iter().map(|entry| entry.len() + 1).sum();
    let most = MAX_ARGUMENTS_TOTAL - SHORTEST_COMMAND;
    if total > most
        && let Some(longest) = env.iter().max_by_key(|entry| entry.len())
    {
        let problem = format!(
            "all variables together take {total} bytes, {} of them this one, and the maximum is {most}",
            longest.len() + 1
        );
        return refused(longest, problem);
    }
    if let Some(entry) = env.get(MAX_ARGUMENT_COUNT) {
        let problem = format!("{MAX_ARGUMENT_COUNT} variables come before it, and that is the maximum");
        return refused(entry, problem);
    }
    Ok(())
}

impl From<&StartFrom> for Origin {
    fn from(start: &StartFrom) -> Self {
        match start {
            StartFrom::Boot => Self::Boot,
            StartFrom::Ready => Self::Ready,
            StartFrom::Snapshot(name) | StartFrom::SnapshotDisk(name) => Self::Snapshot(name.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::process::spec::ProcessSpec;

    #[test]
    fn unusable_environments_are_rejected_without_showing_values() {
        let refused = |env: &[String]| check_env(env).unwrap_err().to_string();
        let long = |name: &str, bytes: usize| format!("{name}={}", "s".repeat(bytes - name.len() - 1));
        let one = refused(&["A=1".into(), long("KEY", 128 << 10)]);
        assert!(one.contains("\"KEY\"") && one.contains("131072 bytes") && !one.contains("sss"), "{one}");
        assert!(refused(&["KEY=\0secret".into()]).starts_with("invalid environment variable \"KEY\": contains a NUL"));
        assert!(refused(&["KEY".into()]).contains("expected KEY=VALUE"));
        assert!(refused(&["=x".into()]).contains("expected KEY=VALUE"));

        // The limit is exact to the byte: the shortest command fits beside the variables that are
        // accepted.
        let mut most: Vec<String> = (0..7).map(|n| long(&format!("K{n}"), 128 * 1024 - 1)).collect();
        most.push(long("LAST", 128 * 1024 - 3));
        check_env(&most).unwrap();
        let command = |program| ProcessSpec::builder([program]).env(&most).build();
        command("a").unwrap();
        command("ab").unwrap_err();
        most.push("X=".into());
        let sum = refused(&most);
        assert!(sum.contains("together take 1048577 bytes") && sum.contains("\"K6\""), "{sum}");

        let many: Vec<String> = (0..=MAX_ARGUMENT_COUNT).map(|n| format!("V{n}=")).collect();
        check_env(&many[1..]).unwrap();
        assert!(refused(&many).contains("\"V65536\": 65536 variables come before it"));
    }
}
