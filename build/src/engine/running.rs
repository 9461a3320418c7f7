//! `RUN`: mounts, the process, and what remains of both. Secrets go from the request into the
//! machine, and are removed after the step.

use super::{
    Build,
    blocking::blocking,
    copying::{
        arrange::{self, Pattern, Place},
        deliver,
    },
    error::StepProblem,
    machine::{Disk, Found, Machine, Machines, Mounted, Owner, Process},
    progress::Event,
    secrets::Output,
};
use crate::plan::{Action, Base, Mount, SECRETS};
use sandboxvm_archive::{Entry, Kind, Timestamp, Writer};
use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
};

/// Directory of the disk with the files of bind mounts, during a step.
const BINDS: &str = "/.sandboxvm-binds";

/// What has to be undone after a step.
enum Undo<'a> {
    Remove(String),
    Unmount(String),
    /// Keep the content of a cache mount, then restore what was there.
    Cache {
        id: &'a str,
        target: &'a str,
        before: Option<File>,
    },
}

impl<M: Machines> Build<'_, M> {
    pub(super) async fn run(&mut self, machine: &mut M::Machine, action: &Action) -> Result<(), StepProblem> {
        let Action::Run { command, mounts, env, proxies, user, workdir, no_network } = action else {
            // `execute` passes each action to the function for its kind.
            unreachable!("called for RUN")
        };
        if machine.find(workdir).await? != Some(Found::Directory) {
            machine.make_directory(workdir, Owner::default()).await?;
        }
        let mut undo = Vec::new();
        // What is mounted last is undone first: no secret is there when a cache is packed, even if a link
        // of the image leads from one to the other.
        for mount in mounts {
            if let Mount::Cache { id, target } = mount {
                let before = self.mount_cache(machine, id, target).await?;
                undo.push(Undo::Cache { id, target, before });
            }
        }
        for (at, mount) in mounts.iter().enumerate() {
            match mount {
                Mount::Bind { from, source, target, writable } => {
                    let from = from.as_ref();
                    self.mount_bind(machine, Bind { at, from, source, target, writable: *writable }, &mut undo).await?;
                }
                Mount::Tmpfs { target, size } => {
                    mount_point(machine, target, Found::Directory, &mut undo).await?;
                    machine.mount(target, Mounted::Tmpfs { size: *size }).await?;
                    undo.push(Undo::Unmount(target.clone()));
                }
                Mount::Cache { .. } | Mount::Secret { .. } => {}
            }
        }
        for mount in mounts {
            if let Mount::Secret { .. } = mount {
                self.mount_secret(machine, mount, &mut undo).await?;
            }
        }
        let process = Process {
            command: command.clone(),
            env: [env.clone(), proxies.clone()].concat(),
            user: user.clone(),
            workdir: workdir.clone(),
            no_network: *no_network,
        };
        let progress = self.progress;
        let mut pass = |stream, bytes: &[u8]| progress.notify(Event::Output(stream, bytes));
        let mut output = Output::new(self.request.secrets, &mut pass);
        let code = machine.run(&process, &mut |stream, bytes| output.write(stream, bytes)).await;
        let tail = output.finish();
        let code = code?;
        // A failed step ends the build, and its machine with it.
        if code != 0 {
            return Err(StepProblem::Exit { code, tail });
        }
        machine.end_processes().await?;
        for done in undo.into_iter().rev() {
            match done {
                Undo::Remove(path) => machine.remove(&path).await?,
                Undo::Unmount(path) => machine.unmount(&path).await?,
                Undo::Cache { id, target, before } => {
                    self.keep(machine, id, target).await?;
                    machine.remove(target).await?;
                    if let Some(before) = before {
                        self.put(machine, target, before).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Puts files into a directory of the disk that is removed after the step, and mounts them at the target.
    async fn mount_bind(
        &mut self,
        machine: &mut M::Machine,
        bind: Bind<'_>,
        undo: &mut Vec<Undo<'_>>,
    ) -> Result<(), StepProblem> {
        let Bind { at, from, source, target, writable } = bind;
        if !undo.iter().any(|undo| matches!(undo, Undo::Remove(path) if path == BINDS)) {
            if machine.find(BINDS).await?.is_some() {
                return Err(StepProblem::Unsupported(format!("an image that has {BINDS}")));
            }
            undo.push(Undo::Remove(BINDS.to_owned()));
        }
        let place = Place { target: &format!("{BINDS}/{at}"), is_directory: false, owner: None, chmod: None };
        let (archive, into_directory) = match from {
            None => self.selected(vec![source.to_owned()], place).await?,
            Some(from) => {
                let (staging, pattern) = (self.staging, Pattern::of(source));
                let mut whole = self.machines.scratch()?;
                if !self.source(staging.source(from)?).await?.archive(&pattern.root, &mut whole).await? {
                    return Err(StepProblem::Missing(source.to_owned()));
                }
                let (archive, arranged) = self.arranged(whole, source.to_owned(), pattern, place).await?;
                (archive, arranged.into_directory)
            }
        };
        deliver(machine, place, into_directory, archive).await?;
        let found = if into_directory { Found::Directory } else { Found::File };
        mount_point(machine, target, found, undo).await?;
        machine.mount(target, Mounted::Bind { source: place.target, writable }).await?;
        undo.push(Undo::Unmount(target.to_owned()));
        Ok(())
    }

    /// Puts the secret into memory, and a link to it at its target.
    async fn mount_secret(
        &self,
        machine: &mut M::Machine,
        mount: &Mount,
        undo: &mut Vec<Undo<'_>>,
    ) -> Result<(), StepProblem> {
        let Mount::Secret { id, target, in_memory, required } = mount else { return Ok(()) };
        let Some(secret) = self.request.secrets.get(id) else {
            return if *required { Err(StepProblem::Secret(id.to_owned())) } else { Ok(()) };
        };
        let mut writer = Writer::new(Vec::new());
        let mut add = |path: &str, kind: Kind, content: &[u8]| {
            let (path, modified) = (path.trim_matches('/').as_bytes().to_vec(), Timestamp::default());
            writer.begin(&Entry { path, kind, mode: 0o400, uid: 0, gid: 0, modified, attributes: Vec::new() })?;
            writer.content(content)?;
            writer.end()
        };
        add(in_memory, Kind::File { size: secret.len() as u64, extents: None }, secret)?;
        undo.push(Undo::Remove(in_memory.clone()));
        if machine.find(target).await?.is_some() {
            return Err(StepProblem::Unsupported(format!("a secret in place of {target}, which exists,")));
        }
        add(target, Kind::Symlink(in_memory.clone().into_bytes()), b"")?;
        let is_there = target.strip_prefix(SECRETS).is_some_and(|name| name.starts_with('/'));
        if is_there && machine.find(SECRETS).await?.is_none() {
            undo.push(Undo::Remove(SECRETS.to_owned()));
        }
        undo.push(Undo::Remove(target.clone()));
        let archive = writer.finish()?;
        Ok(machine.extract(&mut &archive[..]).await?)
    }

    /// Replaces a directory by the content of a cache. Returns what was there before.
    async fn mount_cache(&self, machine: &mut M::Machine, id: &str, target: &str) -> Result<Option<File>, StepProblem> {
        let before = match machine.find(target).await? {
            None => None,
            Some(Found::File) => {
                return Err(StepProblem::Unsupported(format!("a cache in place of {target}, which is a file,")));
            }
            Some(Found::Directory) => {
                let mut before = self.machines.scratch()?;
                machine.archive(target, &mut before).await?;
                machine.remove(target).await?;
                Some(before)
            }
        };
        machine.make_directory(target, Owner::default()).await?;
        if let Some(content) = self.machines.cache(id) {
            // A build that was killed or another Dockerfile may have left anything. It is replaced after
            // the step.
            if let Err(problem) = self.put(machine, target, content).await {
                machine.remove(target).await?;
                machine.make_directory(target, Owner::default()).await?;
                self.progress.notify(Event::Note(&format!("cache {id:?} is taken for empty: {problem}")));
            }
        }
        Ok(before)
    }

    /// Keeps the content of a cache mount, if it is an archive that a later build accepts.
    async fn keep(&self, machine: &mut M::Machine, id: &str, target: &str) -> Result<(), StepProblem> {
        let (mut whole, output) = (self.machines.scratch()?, self.machines.scratch()?);
        if !machine.archive(target, &mut whole).await? {
            return Ok(());
        }
        let note = |problem: &str| self.progress.notify(Event::Note(&format!("cache {id:?} is not kept{problem}")));
        match renamed(whole, arrange::ROOT, output).await {
            Ok(checked) => {
                if !self.machines.keep_cache(id, checked).await {
                    note("");
                }
            }
            Err(problem) => note(&format!(": {problem}")),
        }
        Ok(())
    }

    /// Extracts an archive of a machine at the place that it came from, or at another one.
    async fn put(&self, machine: &mut M::Machine, target: &str, archive: File) -> Result<(), StepProblem> {
        let mut renamed = renamed(archive, target, self.machines.scratch()?).await?;
        Ok(machine.extract(&mut renamed).await?)
    }
}

/// A bind mount of a step.
struct Bind<'a> {
    /// Its position among the mounts of the step.
    at: usize,
    from: Option<&'a Base>,
    source: &'a str,
    target: &'a str,
    writable: bool,
}

/// Makes what something is mounted over, unless it is there.
async fn mount_point<M: Machine>(
    machine: &mut M,
    target: &str,
    wanted: Found,
    undo: &mut Vec<Undo<'_>>,
) -> Result<(), StepProblem> {
    match machine.find(target).await? {
        Some(found) if found == wanted => return Ok(()),
        Some(Found::File) => {
            return Err(StepProblem::Unsupported(format!("a mount of a directory over {target}, which is a file,")));
        }
        Some(Found::Directory) => {
            return Err(StepProblem::Unsupported(format!("a mount of a file over {target}, which is a directory,")));
        }
        None => {}
    }
    if wanted == Found::Directory {
        machine.make_directory(target, Owner::default()).await?;
    } else {
        let above = target.rsplit_once('/').map_or("", |(above, _)| above);
        if !above.is_empty() {
            machine.make_directory(above, Owner::default()).await?;
        }
        let (path, kind) = (target.trim_matches('/').as_bytes().to_vec(), Kind::File { size: 0, extents: None });
        let (modified, attributes) = (Timestamp::default(), Vec::new());
        let mut writer = Writer::new(Vec::new());
        writer.begin(&Entry { path, kind, mode: 0o644, uid: 0, gid: 0, modified, attributes })?;
        writer.end()?;
        machine.extract(&mut &writer.finish()?[..]).await?;
    }
    undo.push(Undo::Remove(target.to_owned()));
    Ok(())
}

/// Checks an archive of a machine, and writes it with its tree at `target`.
async fn renamed(mut archive: File, target: &str, output: File) -> Result<File, StepProblem> {
    let target = target.to_owned();
    blocking(move || {
        archive.seek(SeekFrom::Start(0))?;
        let mut renamed = arrange::renamed(io::BufReader::new(archive), &target, output)?;
        renamed.seek(SeekFrom::Start(0))?;
        Ok::<_, StepProblem>(renamed)
    })
    .await
}
