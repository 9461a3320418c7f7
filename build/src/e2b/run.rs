//! Executes a planned template: restores the last state that is known and executes the rest. The state
//! after each step is kept under its key.

use super::{
    accounts,
    plan::{Doing, PlannedStep, TemplatePlan},
    upload,
};
use crate::{
    engine::{
        BaseImage, Disk, Event, Found, Machine, MachineError, Machines, NoGroup, Output, Pattern, Place, Process,
        Progress, Secrets, StepProblem, arrange, blocking, owner, prepare,
    },
    plan::joined,
};
use std::{
    fmt,
    fs::File,
    io::{self, Seek, SeekFrom},
};

/// The shell of `RUN` and of commands that clients run later.
const SHELL: &str = "/bin/bash";

/// Where the archives of `COPY` are.
pub trait Uploads: Sync + fmt::Debug {
    /// Opens the archive with this hash.
    ///
    /// # Errors
    /// Fails if it was not uploaded.
    fn open(&self, hash: &str) -> io::Result<File>;
}

/// What to build.
#[derive(Debug)]
pub struct TemplateRequest<'a> {
    /// The steps.
    pub plan: &'a TemplatePlan,
    /// What a machine without a known state is started from.
    pub base: &'a BaseImage,
    /// The archives of `COPY`.
    pub uploads: &'a dyn Uploads,
    /// Maximum size in bytes of an archive without compression.
    pub max_upload: u64,
}

/// A template whose steps are done.
#[derive(Debug)]
pub struct Finished<M> {
    /// The machine in its final state.
    pub machine: M,
    /// Directory in which processes start, absolute.
    pub workdir: String,
    /// Number of steps that were executed.
    pub executed: usize,
    /// Number of steps whose result was known.
    pub cached: usize,
}

/// A step failed.
#[derive(Debug, thiserror::Error)]
#[error("{problem}")]
pub struct TemplateFailure {
    /// Position of the step, from 1. 0: what precedes the steps.
    pub step: usize,
    /// What is wrong.
    pub problem: StepProblem,
}

/// Executes the steps of a template, in a runtime of tokio. Dropping the future ends the machine; states
/// that were kept stay.
///
/// # Errors
/// Fails with the step that failed.
pub async fn build_template<M: Machines>(
    request: &TemplateRequest<'_>,
    machines: &M,
    progress: &dyn Progress,
) -> Result<Finished<M::Machine>, TemplateFailure> {
    let steps = &request.plan.steps;
    let of = request.plan.count;
    let report = |step: &PlannedStep, cached| {
        progress.notify(Event::Step { stage: 0, number: step.number, of, text: &step.text, cached });
    };
    let failed = |step: usize| move |problem| TemplateFailure { step, problem };
    let mut begun = None;
    for (at, step) in steps.iter().enumerate().rev() {
        if !step.may_use || !machines.has(step.key) {
            continue;
        }
        match machines.restore(step.key).await {
            Ok(machine) => {
                begun = Some((machine, at + 1));
                break;
            }
            Err(error) => progress.notify(Event::Note(&format!("cannot use the kept state of a step: {error}"))),
        }
    }
    let (mut machine, done) = match begun {
        Some(begun) => begun,
        None => (machines.start(request.base).await.map_err(StepProblem::from).map_err(failed(0))?, 0),
    };
    steps[..done].iter().for_each(|step| report(step, true));
    for step in &steps[done..] {
        report(step, false);
        let executing = Executing { request, machines, progress };
        executing.execute(&mut machine, &step.doing).await.map_err(failed(step.number))?;
        if !machine.save(step.key).await.map_err(StepProblem::from).map_err(failed(step.number))? {
            progress.notify(Event::Note("the state after this step is not kept"));
        }
    }
    let setting = &request.plan.setting;
    let workdir = absolute(&mut machine, &setting.workdir, &setting.user).await.map_err(failed(of))?;
    Ok(Finished { machine, workdir, executed: steps.len() - done, cached: done })
}

struct Executing<'a, M> {
    request: &'a TemplateRequest<'a>,
    machines: &'a M,
    progress: &'a dyn Progress,
}

impl<M: Machines> Executing<'_, M> {
    async fn execute(&self, machine: &mut M::Machine, doing: &Doing) -> Result<(), StepProblem> {
        match doing {
            Doing::Prepare => {
                if machine.find(SHELL).await? != Some(Found::File) {
                    return Err(StepProblem::Unsupported(format!("an image without {SHELL}")));
                }
                accounts::ensure(machine, "user", true).await
            }
            Doing::MakeUser { name, sudo } => {
                accounts::ensure(machine, name.split(':').next().unwrap_or(name), *sudo).await
            }
            Doing::MakeDirectory { path, user } => {
                let path = absolute(machine, path, user).await?;
                let owner = owner(machine, user, NoGroup::Primary).await?;
                Ok(machine.make_directory(&path, owner).await?)
            }
            Doing::Run { command, user, workdir, env } => {
                let workdir = absolute(machine, workdir, user).await?;
                let process = Process {
                    command: [SHELL, "-l", "-c", command].map(str::to_owned).to_vec(),
                    env: env.to_vec(),
                    user: user.clone(),
                    workdir,
                    no_network: false,
                };
                self.run(machine, &process).await
            }
            Doing::Copy { .. } => self.copy(machine, doing).await,
        }
    }

    async fn run(&self, machine: &mut M::Machine, process: &Process) -> Result<(), StepProblem> {
        let progress = self.progress;
        let mut pass = |stream, bytes: &[u8]| progress.notify(Event::Output(stream, bytes));
        let none = Secrets::default();
        let mut output = Output::new(&none, &mut pass);
        let code = machine.run(process, &mut |stream, bytes| output.write(stream, bytes)).await;
        let tail = output.finish();
        match code? {
            0 => Ok(machine.end_processes().await?),
            code => Err(StepProblem::Exit { code, tail }),
        }
    }

    async fn copy(&self, machine: &mut M::Machine, doing: &Doing) -> Result<(), StepProblem> {
        let Doing::Copy { source, target, workdir, user, owner: stated, mode, hash } = doing else {
            unreachable!("called for COPY")
        };
        let owner = owner(machine, stated.as_deref().unwrap_or(user), NoGroup::Primary).await?;
        let target = joined(&absolute(machine, workdir, user).await?, target);
        let is_directory = target.ends_with('/') || machine.find(&target).await? == Some(Found::Directory);
        let place = Place { target: &target, is_directory, owner: Some(owner), chmod: *mode };
        let archive = self.request.uploads.open(hash).map_err(|error| {
            StepProblem::Machine(MachineError::new(format!("cannot open the files of COPY {source}: {error}")))
        })?;
        let (whole, output, max_upload) = (self.machines.scratch()?, self.machines.scratch()?, self.request.max_upload);
        let (source, at, place_there) = (source.clone(), target.clone(), place.of(""));
        let (archive, arranged) = blocking(move || {
            let mut whole = upload::rooted(archive, max_upload, whole)?;
            arrange::arrange(&mut whole, &source, &Pattern::below_root(&source), place_there.of(&at), output)
        })
        .await?;
        prepare(machine, place, arranged.into_directory).await?;
        let mut archive = archive;
        archive.seek(SeekFrom::Start(0))?;
        // A template is a running machine, so its processes have to see the files.
        Ok(machine.extract(&mut archive).await?)
    }
}

/// Returns a path that is absolute or relative to the home of a user.
async fn absolute<M: Machine>(machine: &mut M, path: &str, user: &str) -> Result<String, StepProblem> {
    if path.starts_with('/') {
        return Ok(path.to_owned());
    }
    let home = accounts::home(machine, user).await?;
    Ok(if path.is_empty() { home } else { joined(&home, path) })
}
