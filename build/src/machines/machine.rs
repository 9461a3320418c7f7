//! A sandbox as a machine of the engine. Every byte from its guest is hostile: it is counted where
//! it could fill the disk of the host, and never becomes a path there.

use super::{
    MachineOptions,
    guest_program::{self, Call},
};
use crate::{
    engine::{Disk, Done, Found, Machine, MachineError, Mounted, Owner, Process, Stream},
    key::Key,
};
use sandboxvm_manager::{
    CText, ExitStatus, FileError, FileErrorKind, FileKind, FilePath, FileSink, Manager, OnDisconnect, Output,
    ProcessSpec, ProcessSpecBuilder, Sandbox, SandboxName, SnapshotError, StartedSandbox,
};
use std::{
    fs::File,
    io::{Read, Write},
    sync::Arc,
};

/// What the root of an archive is called, as [`Machine::archive`] says.
const ROOT: &str = "x";
/// Bytes that are sent to a guest at a time.
const CHUNK: usize = 64 << 10;

/// A sandbox in which steps are executed.
#[derive(Debug)]
pub struct SandboxMachine {
    started: StartedSandbox,
    manager: Manager,
    options: Arc<MachineOptions>,
}

impl SandboxMachine {
    pub(super) fn new(started: StartedSandbox, manager: Manager, options: Arc<MachineOptions>) -> Self {
        Self { started, manager, options }
    }

    /// Returns the sandbox.
    pub(super) fn sandbox(&self) -> &Sandbox {
        self.started.sandbox()
    }

    /// Starts a process that runs on without its caller. Its output is kept in the guest, as far as the
    /// guest keeps output.
    ///
    /// # Errors
    /// Fails if it does not start.
    pub async fn start_process(&mut self, process: &Process) -> Done<()> {
        let spec = spec(process).on_disconnect(OnDisconnect::RunOn).build().map_err(MachineError::new)?;
        self.sandbox().exec(spec).await.map(drop).map_err(MachineError::new)
    }

    /// Takes a snapshot of the machine with its processes, under a name that no other one has.
    ///
    /// # Errors
    /// Fails if the host does not admit it, or cannot write it.
    pub async fn snapshot(&mut self, name: SandboxName) -> Done<()> {
        self.sandbox().snapshot(name).await.map(drop).map_err(MachineError::new)
    }

    /// Takes a snapshot like [`Self::snapshot`], in place of an earlier one of this name.
    ///
    /// # Errors
    /// Fails if the host does not admit it, or cannot write it.
    pub async fn replace_snapshot(&mut self, name: SandboxName) -> Done<()> {
        self.sandbox().replace_snapshot(name).await.map(drop).map_err(MachineError::new)
    }

    /// Makes system calls in the guest. Returns the number of the first error, or 0.
    async fn make_calls(&mut self, calls: &[Call<'_>]) -> Done<u8> {
        let files = self.sandbox().files();
        let mut sink = files.write(path(guest_program::PATH)?, Some(0o700), true).await.map_err(MachineError::new)?;
        sink.write(&guest_program::program(calls)).await.map_err(MachineError::new)?;
        sink.finish().await.map_err(MachineError::new)?;
        let process = Process {
            command: vec![guest_program::PATH.to_owned()],
            env: Vec::new(),
            user: String::new(),
            workdir: "/".into(),
            no_network: false,
        };
        self.run(&process, &mut |_, _| ()).await
    }

    /// Removes the oldest states of the home that exceed the maximum. The last one is of this build.
    fn remove_old_states(&self) {
        let Ok(snapshots) = self.manager.snapshots() else { return };
        let named = snapshots.into_iter().filter_map(|manifest| Some((manifest.created_at, manifest.name?)));
        for name in excess_states(named.collect(), &self.options.states, self.options.max_states) {
            // A state that stays costs disk space, and is removed by a later build.
            let _ = self.manager.remove_snapshot(name.as_str());
        }
    }
}

/// Returns the oldest states above the maximum, of snapshots with the times at which they were made.
fn excess_states<T: Ord>(mut snapshots: Vec<(T, SandboxName)>, prefix: &str, maximum: usize) -> Vec<SandboxName> {
    snapshots.retain(|(_, name)| super::is_state(name.as_str(), prefix));
    snapshots.sort();
    let excess = snapshots.len().saturating_sub(maximum.max(1));
    snapshots.into_iter().take(excess).map(|(_, name)| name).collect()
}

fn spec(process: &Process) -> ProcessSpecBuilder {
    let user = if process.user.is_empty() { "0" } else { process.user.as_str() };
    ProcessSpec::builder(&process.command).env(&process.env).working_directory(&process.workdir).user(user)
}

fn path(text: &str) -> Done<FilePath> {
    FilePath::try_from(text).map_err(MachineError::new)
}

fn is_missing(error: &FileError) -> bool {
    matches!(error.kind(), Some(FileErrorKind::NotFound | FileErrorKind::NotADirectory))
}

/// Returns `None` for what does not exist.
fn unless_missing<T>(result: Result<T, FileError>) -> Done<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(MachineError::new(error)),
    }
}

/// Sends an archive to a guest.
async fn send(mut sink: FileSink<'_>, archive: &mut (dyn Read + Send)) -> Done<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match archive.read(&mut buffer).map_err(MachineError::new)? {
            0 => break,
            count => sink.write(&buffer[..count]).await.map_err(MachineError::new)?,
        }
    }
    sink.finish().await.map(drop).map_err(MachineError::new)
}

impl Disk for SandboxMachine {
    async fn find(&mut self, at: &str) -> Done<Option<Found>> {
        let entry = unless_missing(self.sandbox().files().stat(path(at)?, true).await)?;
        Ok(entry.map(|entry| if entry.kind == FileKind::Directory { Found::Directory } else { Found::File }))
    }

    async fn read(&mut self, at: &str, maximum: usize) -> Done<Option<Vec<u8>>> {
        let files = self.sandbox().files();
        let Some(mut stream) = unless_missing(files.read(path(at)?).await)? else { return Ok(None) };
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.next().await.map_err(MachineError::new)? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > maximum {
                return Err(MachineError::new(format!("{at} has more than {maximum} bytes")));
            }
        }
        Ok(Some(bytes))
    }

    async fn make_directory(&mut self, at: &str, owner: Owner) -> Done<()> {
        let at = format!("/{}", at.trim_matches('/'));
        let mut first_new = None;
        let mut above = at.as_str();
        while above != "/" && !above.is_empty() && self.find(above).await?.is_none() {
            first_new = Some(above.to_owned());
            above = above.rsplit_once('/').map_or("", |(above, _)| above);
        }
        let files = self.sandbox().files();
        let Some(first_new) = first_new else {
            // It exists. This reports a file in its place.
            return files.make_directory(path(&at)?, Some(0o755), false).await.map(drop).map_err(MachineError::new);
        };
        files.make_directory(path(&at)?, Some(0o755), false).await.map_err(MachineError::new)?;
        if owner != Owner::default() {
            let text = CText::try_from(format!("{}:{}", owner.uid, owner.gid).as_str()).map_err(MachineError::new)?;
            files.set_owner(path(&first_new)?, text, true).await.map_err(MachineError::new)?;
        }
        Ok(())
    }

    async fn extract_to_disk(&mut self, mut archive: File) -> Done<()> {
        match self.sandbox().files().extract_below_mounts().await {
            Ok(sink) => send(sink, &mut archive).await,
            // A template of an earlier version has an agent that cannot.
            Err(FileError::Sandbox(error)) if error.is_of_old_agent() => self.extract(&mut archive).await,
            Err(error) => Err(MachineError::new(error)),
        }
    }
}

impl Machine for SandboxMachine {
    async fn run(&mut self, process: &Process, output: &mut (dyn FnMut(Stream, &[u8]) + Send)) -> Done<u8> {
        if process.no_network && self.options.network.is_some() {
            return Err(MachineError::new("RUN --network=none is not supported in a build with a network"));
        }
        let spec = spec(process).build().map_err(MachineError::new)?;
        let mut exec = self.sandbox().exec(spec).await.map_err(MachineError::new)?;
        loop {
            match exec.output.next().await.map_err(MachineError::new)? {
                Some(Output::Stdout(bytes)) => output(Stream::Stdout, &bytes),
                Some(Output::Stderr(bytes)) => output(Stream::Stderr, &bytes),
                Some(Output::Exited(status)) => return Ok(ExitStatus::shell_code(status)),
                Some(Output::Dropped(_)) => {}
                Some(Output::RunsOn) | None => return Err(MachineError::new("the process did not end")),
            }
        }
    }

    async fn end_processes(&mut self) -> Done<()> {
        self.make_calls(&[Call::kill_all()]).await.map(drop)
    }

    async fn mount(&mut self, target: &str, what: Mounted<'_>) -> Done<()> {
        let options = match what {
            Mounted::Tmpfs { size: Some(size) } => format!("mode=1777,size={size}"),
            _ => "mode=1777".to_owned(),
        };
        let calls = match what {
            Mounted::Bind { source, writable: true } => vec![Call::bind(source, target)],
            Mounted::Bind { source, writable: false } => vec![Call::bind(source, target), Call::make_read_only(target)],
            Mounted::Tmpfs { .. } => vec![Call::mount_tmpfs(target, &options)],
        };
        match self.make_calls(&calls).await? {
            0 => Ok(()),
            code => {
                let error = std::io::Error::from_raw_os_error(code.into());
                Err(MachineError::new(format!("cannot mount {target}: {error}")))
            }
        }
    }

    async fn unmount(&mut self, target: &str) -> Done<()> {
        self.make_calls(&[Call::unmount(target)]).await.map(drop)
    }

    async fn extract(&mut self, archive: &mut (dyn Read + Send)) -> Done<()> {
        let sink = self.sandbox().files().extract(path("/")?, false, true).await.map_err(MachineError::new)?;
        send(sink, archive).await
    }

    async fn archive(&mut self, at: &str, output: &mut File) -> Done<bool> {
        let files = self.sandbox().files();
        let stream = unless_missing(files.archive(path(at)?, path(ROOT)?, true).await)?;
        let Some(mut stream) = stream else { return Ok(false) };
        let mut left = self.options.max_layer;
        while let Some(chunk) = stream.next().await.map_err(MachineError::new)? {
            let Some(rest) = left.checked_sub(chunk.len() as u64) else {
                return Err(MachineError::new(format!("{at} has more than {} bytes", self.options.max_layer)));
            };
            left = rest;
            output.write_all(&chunk).map_err(MachineError::new)?;
        }
        Ok(true)
    }

    async fn remove(&mut self, at: &str) -> Done<()> {
        unless_missing(self.sandbox().files().remove(path(at)?, true).await).map(drop)
    }

    async fn save(&mut self, key: Key) -> Done<bool> {
        let name = self.options.state_name(key)?;
        if self.manager.has_snapshot(&name) {
            // A build without a cache replaces what was kept.
            let _ = self.manager.remove_snapshot(name.as_str());
        }
        match self.sandbox().snapshot(name).await {
            Ok(_) => {
                self.remove_old_states();
                Ok(true)
            }
            Err(SnapshotError::Admission(_) | SnapshotError::Taken(_)) => Ok(false),
            Err(error) => Err(MachineError::new(error)),
        }
    }

    async fn finish(self) -> Done<()> {
        self.started.finish().await.map_err(MachineError::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_of_the_user_are_never_removed_as_states() {
        let name = |text: &str| SandboxName::try_from(text.to_owned()).unwrap();
        let state = |digit: &str| name(&format!("build-{}", digit.repeat(40)));
        let snapshots = vec![(1, name("build-env")), (4, state("a")), (3, state("b")), (2, state("c")), (0, name("x"))];
        assert_eq!(excess_states(snapshots.clone(), "build-", 2), [state("c")]);
        assert_eq!(excess_states(snapshots, "build-", 0), [state("c"), state("b")]);
    }
}
