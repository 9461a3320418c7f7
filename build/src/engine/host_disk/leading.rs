//! Steps before the first one that needs a machine. They copy files of the context and make directories, so
//! the host makes the layer of each of them ([`HostDisk`]), and a machine starts from an image with these
//! layers, or not at all.

use super::HostDisk;
use crate::engine::{
    Build, BuildError, StepProblem,
    machine::{BaseImage, Disk, MachineError, Machines, StepLayer},
    staging::{PlannedStage, PlannedStep},
    users,
};
use crate::{context::Target, plan::Action};
use std::sync::Arc;

/// Size in bytes of copied files from which it pays that a machine starts from another image than the base
/// image: an image that no machine was started from has to boot, and cannot be restored.
const WORTH_A_BOOT: u64 = 16 << 20;

/// An image with the layers of the first steps, and how many steps these are.
pub(in crate::engine) struct Led {
    pub(in crate::engine) image: BaseImage,
    pub(in crate::engine) steps: usize,
}

impl<M: Machines> Build<'_, M> {
    /// Executes the first steps of a stage without a machine, as far as that is possible and pays. `is_last`
    /// says that no machine is needed after the last step.
    pub(in crate::engine) async fn lead(
        &mut self,
        stage: &PlannedStage,
        is_last: bool,
    ) -> Result<Option<Led>, BuildError> {
        let count = stage.steps.iter().take_while(|planned| can_lead(&planned.step.action)).count();
        let leading = &stage.steps[..count];
        let pays = is_last && count == stage.steps.len() || stage.is_scratch || self.size(leading) >= WORTH_A_BOOT;
        if count == 0 || !pays {
            return Ok(None);
        }
        let use_cache = self.request.use_cache;
        let known = leading.iter().take_while(|planned| use_cache && self.machines.has_step_layer(planned.key));
        let known = known.count();
        self.report_cached(&leading[..known]);
        let mut led = Led { image: self.known_lead(stage, known).await?, steps: known };
        if known == count {
            return Ok(Some(led));
        }
        let list = self.machines.scratch().map_err(MachineError::new)?;
        let output = list.try_clone().map_err(MachineError::new)?;
        let disk = match self.machines.names(&led.image, output).await {
            Ok(()) => HostDisk::open(list).await,
            Err(error) => Err(error.into()),
        };
        let mut disk = match disk {
            Ok(disk) => disk,
            // There are more names than this process keeps. A machine has them all, or says what is wrong.
            Err(StepProblem::Unsupported(_) | StepProblem::Machine(_)) => {
                return Ok(Some(led).filter(|led| led.steps > 0));
            }
            Err(problem) => return Err(self.failed(&leading[known], problem)),
        };
        let mut layers = Vec::new();
        for planned in &leading[known..] {
            disk.begin(self.machines.scratch().map_err(MachineError::new)?);
            let done = match self.execute_on(&mut disk, &planned.step.action).await {
                // The machine executes this step, and those after it.
                Err(_) if disk.needs_machine() => break,
                done => done.and_then(|()| disk.finish()),
            };
            let archive = done.map_err(|problem| self.failed(planned, problem))?;
            self.report(planned, false);
            self.executed += 1;
            layers.push(layer(planned, Some(archive)));
        }
        if !layers.is_empty() {
            led.steps += layers.len();
            led.image = self.machines.extend(&led.image, layers).await?;
        }
        Ok(Some(led).filter(|led| led.steps > 0))
    }

    /// Returns the image of a stage with the known layers of its first steps.
    pub(in crate::engine) async fn known_lead(
        &self,
        stage: &PlannedStage,
        steps: usize,
    ) -> Result<BaseImage, BuildError> {
        if steps == 0 {
            return Ok(stage.image.clone());
        }
        let layers = stage.steps[..steps].iter().map(|planned| layer(planned, None));
        Ok(self.machines.extend(&stage.image, layers.collect()).await?)
    }

    async fn execute_on(&mut self, disk: &mut HostDisk, action: &Action) -> Result<(), StepProblem> {
        match action {
            Action::Directory { path, user } => {
                let owner = users::owner(disk, user, users::NoGroup::Primary).await?;
                Ok(disk.make_directory(path, owner).await?)
            }
            // `can_lead` accepts no other kind.
            action => self.copy(disk, action).await,
        }
    }

    /// Returns the size of the files that steps copy, in bytes. Archives count as they are.
    fn size(&self, steps: &[Arc<PlannedStep>]) -> u64 {
        let size = |planned: &Arc<PlannedStep>| match &planned.step.action {
            Action::Copy { sources, target, .. } => {
                let target = Target { path: target, is_directory: true };
                self.request.context.select(sources, target).map_or(0, |selected| selected.size())
            }
            _ => 0,
        };
        steps.iter().map(size).fold(0, u64::saturating_add)
    }
}

/// Returns true for what may need no machine.
fn can_lead(action: &Action) -> bool {
    match action {
        Action::Run { .. } => false,
        Action::Copy { from, .. } => from.is_none(),
        Action::Directory { .. } => true,
    }
}

fn layer(planned: &PlannedStep, archive: Option<std::fs::File>) -> StepLayer {
    StepLayer { key: planned.key, created_by: planned.step.text.clone(), archive }
}
