//! What all trials share: a temporary home, and programs that run in its sandboxes. May not use any other home.

use crate::failure::Failure;
use sandboxvm_images::{bundle::Bundle, template::DiskSize};
use sandboxvm_manager::{
    MIB, Manager, MemorySize, Output, ProcessSpec, Sandbox, SandboxSpec, StartFrom, StartedSandbox,
};
use std::{fmt::Display, path::Path, time::Duration};
use tempfile::TempDir;
use tokio::time::timeout;

/// Guest memory of all machines, in MiB.
pub(super) const MEMORY_MIB: u64 = 128;
/// Size of their disks, in MiB.
pub(super) const DISK_MIB: u64 = 64;
/// Maximum time for one program in a guest. Where the guest's kernel is interpreted, a program that uses all memory
/// takes a minute.
const PATIENCE: Duration = Duration::from_secs(240);

/// Why a trial failed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Fault(String);

impl Fault {
    pub(super) fn new(message: impl Display) -> Self {
        Self(message.to_string())
    }
}

/// Turns any error into a fault, with what was being done.
pub(super) trait Doing<T> {
    fn doing(self, what: &str) -> Result<T, Fault>;
}

impl<T, E: Display> Doing<T> for Result<T, E> {
    fn doing(self, what: &str) -> Result<T, Fault> {
        self.map_err(|error| Fault::new(format_args!("{what}: {error}")))
    }
}

/// A home in a new directory, and what sandboxes are made of.
#[derive(Debug)]
pub(super) struct Rig {
    pub(super) manager: Manager,
    pub(super) bundle: Bundle,
    directory: Option<TempDir>,
}

impl Rig {
    pub(super) fn new(bundle: &Bundle) -> Result<Self, Failure> {
        let directory = tempfile::Builder::new().prefix("sandboxvm-self-test-").tempdir();
        let directory = directory
            .map_err(|error| Failure::new(format_args!("cannot make a directory for the self-test: {error}")))?;
        let manager = Manager::open(&directory.path().join("home"))?;
        Ok(Self { manager, bundle: bundle.clone(), directory: Some(directory) })
    }

    /// Returns the directory of the rig: a place on the host that no guest may see.
    pub(super) fn directory(&self) -> Result<&Path, Fault> {
        self.directory.as_ref().map(TempDir::path).ok_or_else(|| Fault::new("the self-test has ended"))
    }

    /// Starts a sandbox that ends with this program.
    pub(super) async fn start(&self, start_from: StartFrom) -> Result<StartedSandbox, Fault> {
        self.start_as(SandboxSpec { start_from, ..Self::spec()? }).await
    }

    pub(super) async fn start_as(&self, spec: SandboxSpec) -> Result<StartedSandbox, Fault> {
        let mut started = self.manager.start(&self.bundle, &spec).await.doing("start")?;
        started.settled().await.doing("wait for the guest")?;
        Ok(started)
    }

    pub(super) fn spec() -> Result<SandboxSpec, Fault> {
        let memory = MemorySize::try_from(MEMORY_MIB * MIB).doing("size of the memory")?;
        let disk = DiskSize::try_from(DISK_MIB * MIB).doing("size of the disk")?;
        Ok(SandboxSpec { memory, disk, ephemeral: true, ..SandboxSpec::default() })
    }

    /// Removes the home, in which no sandbox may be left.
    pub(super) async fn close(&mut self) -> Result<String, Fault> {
        let left = self.manager.list().doing("list the sandboxes")?;
        for sandbox in &left {
            let _ = self.manager.remove(sandbox.record.id.as_str(), true).await;
        }
        let Some(directory) = self.directory.take() else { return Err(Fault::new("it was closed before")) };
        directory.close().doing("remove the directory of the self-test")?;
        if left.is_empty() {
            Ok("all sandboxes and files are removed".to_owned())
        } else {
            Err(Fault::new(format_args!("{} sandboxes were left", left.len())))
        }
    }
}

/// Runs a shell script as root in a sandbox. Returns what it printed, or a fault if it failed or took too long.
pub(super) async fn shell(sandbox: &Sandbox, script: &str) -> Result<String, Fault> {
    let (code, text) = ended(sandbox, script).await?;
    if code == 0 { Ok(text) } else { Err(Fault::new(format_args!("`{script}` ended with {code}: {text}"))) }
}

/// As [`shell`], but whatever its exit code is.
pub(super) async fn ended(sandbox: &Sandbox, script: &str) -> Result<(u8, String), Fault> {
    let run = async {
        let spec = ProcessSpec::builder(["/bin/sh", "-c", script]).build().doing("describe a program")?;
        let mut process = sandbox.exec(spec).await.doing("start a program")?;
        let mut printed = Vec::new();
        while let Some(output) = process.output.next().await.doing("read from a program")? {
            match output {
                // Of a hostile guest, only the beginning.
                Output::Stdout(bytes) | Output::Stderr(bytes) if printed.len() < 4096 => printed.extend(bytes),
                Output::Exited(status) => {
                    return Ok((status.shell_code(), String::from_utf8_lossy(&printed).trim().to_owned()));
                }
                _ => {}
            }
        }
        Err(Fault::new("a program ended without a status"))
    };
    timeout(PATIENCE, run)
        .await
        .unwrap_or_else(|_| Err(Fault::new(format_args!("a program has not ended after {} s", PATIENCE.as_secs()))))
}
