//! What a new sandbox is to be, and the checks that need no host: a specification that passes them can be started.

use crate::{
    audit::Origin, create::error::CreateError, guest::process_spec::check_variable, limits::kept::WantedLimits,
};
use sandboxvm_images::template::DiskSize;
use sandboxvm_protocol::{
    agent::{MAX_ARGUMENT_COUNT, MAX_ARGUMENTS_TOTAL},
    ids::SandboxName,
    machine::{MIB, MemorySize, VcpuCount},
};
use std::time::Duration;

/// A name of one letter, with its NUL: what the variables must leave room for.
const SHORTEST_COMMAND: usize = 2;
/// Characters of a variable's name that are shown.
const SHOWN: usize = 40;

/// What a new sandbox goes on from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum StartFrom {
    /// A snapshot of such a machine just booted, made on first use.
    #[default]
    Ready,
    /// Nothing: its kernel boots.
    Boot,
    /// A snapshot that was made before; vCPUs, memory and disk are then those of the snapshot.
    Snapshot(SandboxName),
    /// The disk of such a snapshot alone: its kernel boots from it, and nothing of memory and processes comes back.
    SnapshotDisk(SandboxName),
}

/// What a sandbox is to be.
#[derive(Debug, Clone)]
pub struct SandboxSpec {
    /// Its name, when it gets one.
    pub name: Option<SandboxName>,
    /// vCPUs.
    pub vcpus: VcpuCount,
    /// Guest memory.
    pub memory: MemorySize,
    /// Writable disk.
    pub disk: DiskSize,
    /// What it goes on from.
    pub start_from: StartFrom,
    /// `KEY=VALUE`, given to every process started in it.
    pub env: Vec<String>,
    /// It belongs to the caller: it ends when the caller does, and a sweep removes what is left of it.
    pub ephemeral: bool,
    /// What it may have; never those of the snapshot it goes on from.
    pub limits: WantedLimits,
    /// How long the guest may take from start to listening agent.
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
            boot_timeout: Duration::from_secs(300),
        }
    }
}

/// Refuses what no process could be started with.
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
            "all variables together take {total} bytes, of which {} are this one's; at most {most} are possible",
            longest.len() + 1
        );
        return refused(longest, problem);
    }
    if let Some(entry) = env.get(MAX_ARGUMENT_COUNT) {
        let problem = format!("{MAX_ARGUMENT_COUNT} variables come before it, and no more are possible");
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
    use crate::guest::process_spec::ProcessSpec;

    #[test]
    fn an_environment_with_which_nothing_can_run_is_refused_by_the_variables_name_alone() {
        let refused = |env: &[String]| check_env(env).unwrap_err().to_string();
        let long = |name: &str, bytes: usize| format!("{name}={}", "s".repeat(bytes - name.len() - 1));
        let one = refused(&["A=1".into(), long("KEY", 128 << 10)]);
        assert!(one.contains("\"KEY\"") && one.contains("131072 bytes") && !one.contains("sss"), "{one}");
        assert!(refused(&["KEY=\0secret".into()]).starts_with("environment variable \"KEY\": contains a NUL"));
        assert!(refused(&["KEY".into()]).contains("is not KEY=VALUE"));
        assert!(refused(&["=x".into()]).contains("is not KEY=VALUE"));

        // To the byte: the shortest command fits beside what is accepted.
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
