//! Executes the steps of a build in machines that it receives as traits.
//!
//! ```text
//! Dockerfile + context ── staging ──> steps with keys ──> longest known key ──> machine
//!                                                              │ restore         │ run, copy, save
//!                                                              └────────────────> layer ──> image
//! ```
//! A stage has one machine. After each step its state is kept under the key of the step; a later
//! build restores the last state that it finds and executes the rest. States after a secret was
//! used are not kept. The first steps may need no machine: each of them adds a layer to the image that
//! the machine starts from. What the machine changes is one more layer.
//!
//! May not know what a machine is, and may not let a secret reach anything but the machine of its
//! step.

mod blocking;
mod copying;
mod downloads;
mod error;
mod host_disk;
mod machine;
mod progress;
mod running;
mod secrets;
mod staging;
mod users;

#[cfg(test)]
pub(crate) mod tests;

pub(crate) use blocking::blocking;
pub(crate) use copying::arrange::{self, Pattern, Place};
pub(crate) use copying::prepare;
pub use error::{BuildError, StepProblem};
pub use machine::{
    BaseImage, Disk, Done, Downloaded, Found, Machine, MachineError, Machines, Mounted, NewImage, Owner, Process,
    StepLayer, Stream,
};
pub use progress::{Event, Progress};
pub(crate) use secrets::Output;
pub use secrets::Secrets;
pub(crate) use users::{NoGroup, owner};

use crate::{
    context::Context,
    dockerfile::Dockerfile,
    key::Key,
    plan::{Action, BuildArgs},
};
use staging::{PlannedStage, PlannedStep, Source, Staging};
use std::{future::Future, pin::Pin, sync::Arc};

/// What to build.
#[derive(Debug)]
pub struct BuildRequest<'a> {
    /// The Dockerfile.
    pub file: &'a Dockerfile,
    /// The files that `COPY` takes. If one changes while the build runs, its step fails.
    pub context: &'a Context,
    /// Values for `ARG`.
    pub args: &'a BuildArgs,
    /// Name or position of the stage to build. `None`: the last one.
    pub target: Option<&'a str>,
    /// Secrets for `RUN --mount=type=secret`.
    pub secrets: &'a Secrets,
    /// Whether states of earlier builds are used. They are replaced in any case.
    pub use_cache: bool,
    /// The reference that the image receives.
    pub tag: Option<&'a str>,
    /// When the image was made, in seconds since the Unix epoch. `None`: now.
    pub created: Option<u64>,
}

/// What a build made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// Digest of the manifest.
    pub digest: String,
    /// Number of steps that were executed.
    pub executed: usize,
    /// Number of steps whose result was known.
    pub cached: usize,
}

/// Builds an image, in a runtime of tokio. Dropping the future ends the machines; states that were kept
/// stay.
///
/// # Errors
/// Every [`BuildError`]. The tag is unchanged then.
pub async fn build<M: Machines>(
    request: &BuildRequest<'_>,
    machines: &M,
    progress: &dyn Progress,
) -> Result<Built, BuildError> {
    for note in &request.file.notes {
        progress.notify(Event::Note(note));
    }
    let BuildRequest { file, context, args, target, .. } = *request;
    let staging = Staging::of(file, context, args, target, machines).await?;
    let mut build = Build { request, machines, progress, staging: &staging, source: None, executed: 0, cached: 0 };
    let target = &staging.stages[&staging.target];
    let mut image = NewImage {
        base: target.image.clone(),
        key: target.steps.last().map(|last| last.key),
        last_step: None,
        config: target.config.clone(),
        history: Vec::new(),
        tag: request.tag.map(str::to_owned),
        created: request.created,
    };
    let digest = match build.known(target, image.key) {
        Some(leading) => {
            build.report_cached(&target.steps);
            image.base = build.known_lead(target, leading).await?;
            image.history = target.history_after(leading);
            machines.publish(&image, None).await?
        }
        None => match build.stage(target, true).await? {
            Staged::Machine { mut machine, leading } => {
                build.release().await?;
                image.history = target.history_after(leading);
                let digest = machines.publish(&image, Some(&mut machine)).await?;
                machine.finish().await?;
                digest
            }
            Staged::Image(base) => {
                build.release().await?;
                (image.base, image.last_step, image.key) = (*base, image.key, None);
                image.history = target.history_after(target.steps.len());
                machines.publish(&image, None).await?
            }
        },
    };
    progress.notify(Event::Stored(&digest));
    Ok(Built { digest, executed: build.executed, cached: build.cached })
}

/// A stage at its end.
enum Staged<T> {
    /// A machine in that state, and the number of steps that are layers of its image.
    Machine { machine: T, leading: usize },
    /// An image, since no step needed a machine.
    Image(Box<BaseImage>),
}

/// A stage that is being executed.
type Executing<'b, T> = Pin<Box<dyn Future<Output = Result<Staged<T>, BuildError>> + Send + 'b>>;

/// A build that runs.
struct Build<'a, M: Machines> {
    request: &'a BuildRequest<'a>,
    machines: &'a M,
    progress: &'a dyn Progress,
    staging: &'a Staging,
    /// The machine that `COPY --from` read last. Steps in a row usually read the same one.
    source: Option<(Source, M::Machine)>,
    executed: usize,
    cached: usize,
}

impl<M: Machines> Build<'_, M> {
    fn report(&self, planned: &PlannedStep, cached: bool) {
        let (stage, text) = (planned.stage, planned.step.text.as_str());
        let (number, of) = planned.number;
        self.progress.notify(Event::Step { stage, number, of, text, cached });
    }

    fn report_cached(&mut self, steps: &[Arc<PlannedStep>]) {
        steps.iter().for_each(|planned| self.report(planned, true));
        self.cached += steps.len();
    }

    /// Returns the number of leading steps below the known layer of a stage.
    fn known(&self, stage: &PlannedStage, key: Option<Key>) -> Option<usize> {
        let Some(key) = key else { return Some(0) };
        let leading = self.machines.known_layer(key).filter(|_| self.request.use_cache)?;
        let below = stage.steps.get(..leading)?;
        below.iter().all(|planned| self.machines.has_step_layer(planned.key)).then_some(leading)
    }

    /// Executes a stage to its end. `is_last` says that no machine is needed there. It is boxed, because a
    /// stage needs the machines of other stages.
    fn stage<'b>(&'b mut self, stage: &'b PlannedStage, is_last: bool) -> Executing<'b, M::Machine> {
        Box::pin(async move {
            let (mut machine, leading, done) = match self.restored(stage).await? {
                Some((machine, done)) => {
                    self.report_cached(&stage.steps[..done]);
                    // The machine knows which of the steps are layers of its image.
                    let leading = self.machines.leading(&machine, &stage.image)?;
                    (machine, leading, done)
                }
                None => match self.lead(stage, is_last).await? {
                    Some(led) if is_last && led.steps == stage.steps.len() => {
                        return Ok(Staged::Image(Box::new(led.image)));
                    }
                    Some(led) => (self.machines.start(&led.image).await?, led.steps, led.steps),
                    None => (self.machines.start(&stage.image).await?, 0, 0),
                },
            };
            for planned in &stage.steps[done..] {
                self.report(planned, false);
                self.execute(&mut machine, planned).await.map_err(|problem| self.failed(planned, problem))?;
                self.executed += 1;
                if planned.may_keep && !machine.save(planned.key).await? {
                    self.progress.notify(Event::Note("the state after this step is not kept"));
                }
            }
            Ok(Staged::Machine { machine, leading })
        })
    }

    /// Restores the last state that is known. Returns the number of steps that are done.
    async fn restored(&mut self, stage: &PlannedStage) -> Result<Option<(M::Machine, usize)>, BuildError> {
        if self.request.use_cache {
            for (at, planned) in stage.steps.iter().enumerate().rev() {
                if !planned.may_keep || !self.machines.has(planned.key) {
                    continue;
                }
                match self.machines.restore(planned.key).await {
                    Ok(machine) => return Ok(Some((machine, at + 1))),
                    // Another host, or another version. The step is executed instead.
                    Err(error) => {
                        let note = format!("cannot use the kept state of a step: {error}");
                        self.progress.notify(Event::Note(&note));
                    }
                }
            }
        }
        Ok(None)
    }

    async fn execute(&mut self, machine: &mut M::Machine, planned: &PlannedStep) -> Result<(), StepProblem> {
        match &planned.step.action {
            Action::Run { .. } => self.run(machine, &planned.step.action).await,
            Action::Copy { .. } => self.copy(machine, &planned.step.action).await,
            Action::Directory { path, user } => {
                let owner = users::owner(machine, user, users::NoGroup::Primary).await?;
                Ok(machine.make_directory(path, owner).await?)
            }
        }
    }

    fn failed(&self, planned: &PlannedStep, problem: StepProblem) -> BuildError {
        BuildError::Step {
            file: self.request.file.file.clone(),
            line: planned.step.line,
            step: planned.number.0,
            text: planned.step.text.clone(),
            problem,
        }
    }

    /// Returns the machine that `COPY --from` reads.
    async fn source(&mut self, source: Source) -> Result<&mut M::Machine, StepProblem> {
        let machine = match self.source.take() {
            Some((other, machine)) if other == source => machine,
            other => {
                if let Some((_, machine)) = other {
                    machine.finish().await?;
                }
                self.source_machine(&source).await?
            }
        };
        Ok(&mut self.source.insert((source, machine)).1)
    }

    async fn source_machine(&mut self, source: &Source) -> Result<M::Machine, StepProblem> {
        let staging = self.staging;
        match source {
            Source::Image(image) => Ok(self.machines.start(image).await?),
            Source::Stage(index) => match self.stage(&staging.stages[index], false).await {
                Ok(Staged::Machine { machine, .. }) => Ok(machine),
                Ok(Staged::Image(image)) => Ok(self.machines.start(&image).await?),
                Err(BuildError::Machine(error)) => Err(StepProblem::Machine(error)),
                // The place of the inner failure is the one that matters.
                Err(other) => Err(StepProblem::Stage(Box::new(other))),
            },
        }
    }

    async fn release(&mut self) -> Result<(), MachineError> {
        match self.source.take() {
            Some((_, machine)) => machine.finish().await,
            None => Ok(()),
        }
    }
}
