//! The stages of a build with everything known: their base images, their steps, and the key of the
//! state after each step. Executes nothing, so a build that is cached needs no machine.
//!
//! A stage that begins with another stage has the steps of both: its machine executes, or restores,
//! the whole chain, and its image has one layer above its base image.

use super::{
    blocking::blocking,
    downloads::Downloads,
    error::{BuildError, StepProblem},
    machine::{BaseImage, Machines},
};
use crate::{
    context::{Context, ContextError, Target},
    dockerfile::Dockerfile,
    key::{Key, KeyBuilder},
    plan::{self, Action, Base, Budget, BuildArgs, Mount, Step, is_remote},
};
use sandboxvm_oci::config::ImageConfig;
use std::{collections::BTreeMap, sync::Arc};

/// A step and the key of the state after it.
#[derive(Debug)]
pub(super) struct PlannedStep {
    pub(super) step: Step,
    pub(super) key: Key,
    /// Whether the state after it may be kept: no step of the chain used a secret, whose bytes
    /// could be in the memory of the machine.
    pub(super) may_keep: bool,
    /// Stage that it belongs to, for reports.
    pub(super) stage: usize,
    /// Its position in that stage, from 1, and the number of steps of that stage.
    pub(super) number: (usize, usize),
}

#[derive(Debug)]
pub(super) struct PlannedStage {
    pub(super) image: BaseImage,
    /// Whether that image is empty.
    pub(super) is_scratch: bool,
    /// Its steps, which stages that begin with it share.
    pub(super) steps: Vec<Arc<PlannedStep>>,
    pub(super) config: ImageConfig,
    /// The instructions that made the image, for its history.
    pub(super) history: Vec<Arc<str>>,
    /// Key of the state at its end.
    pub(super) key: Key,
}

impl PlannedStage {
    /// Returns the history without the instructions of the first steps, which are layers.
    pub(super) fn history_after(&self, steps: usize) -> Vec<String> {
        let mut layers = self.steps[..steps].iter().map(|planned| planned.step.text.as_str()).peekable();
        let is_setting = |text: &&Arc<str>| layers.next_if(|layer| ***text == **layer).is_none();
        self.history.iter().filter(is_setting).map(ToString::to_string).collect()
    }
}

/// What `COPY --from` reads, by what is known before the build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    Stage(usize),
    Image(Box<BaseImage>),
}

#[derive(Debug)]
pub(super) struct Staging {
    pub(super) stages: BTreeMap<usize, PlannedStage>,
    images: BTreeMap<String, BaseImage>,
    empty: Option<BaseImage>,
    pub(super) target: usize,
    pub(super) downloads: Downloads,
}

impl Staging {
    pub(super) async fn of<M: Machines>(
        file: &Dockerfile,
        context: &Context,
        args: &BuildArgs,
        target: Option<&str>,
        machines: &M,
    ) -> Result<Self, BuildError> {
        let needed = plan::needed(file, target, args)?;
        let target = *needed.last().unwrap_or(&0);
        let (stages, images, downloads) = (BTreeMap::new(), BTreeMap::new(), Downloads::default());
        let mut staging = Self { stages, images, empty: None, target, downloads };
        let mut budget = Budget::default();
        for index in needed {
            let stage = staging.stage(file, context, args, index, machines, &mut budget).await?;
            staging.stages.insert(index, stage);
        }
        Ok(staging)
    }

    async fn stage<M: Machines>(
        &mut self,
        file: &Dockerfile,
        context: &Context,
        args: &BuildArgs,
        index: usize,
        machines: &M,
        budget: &mut Budget,
    ) -> Result<PlannedStage, BuildError> {
        let (image, is_scratch, config, mut steps, mut history, mut key) = match plan::base(file, index, args)? {
            Base::Stage(other) => {
                let other = &self.stages[&other];
                let (steps, history) = (other.steps.clone(), other.history.clone());
                (other.image.clone(), other.is_scratch, other.config.clone(), steps, history, other.key)
            }
            base => {
                let image = self.image(&base, machines).await?;
                let key = base_key(&image, &machines.surroundings());
                let config = image.config.clone();
                (image, base == Base::Scratch, config, Vec::new(), Vec::new(), key)
            }
        };
        let resolved = plan::resolve_within(file, index, &config, args, budget)?;
        let mut may_keep = steps.last().is_none_or(|last: &Arc<PlannedStep>| last.may_keep);
        let of = resolved.steps.len();
        for (at, step) in resolved.steps.into_iter().enumerate() {
            let fail = |problem| BuildError::Step {
                file: file.file.clone(),
                line: step.line,
                step: at + 1,
                text: step.text.clone(),
                problem,
            };
            for from in sources(&step.action) {
                if let Base::Image(_) = from {
                    self.image(from, machines).await.map_err(|error| match error {
                        BuildError::Machine(error) => fail(error.into()),
                        other => other,
                    })?;
                }
            }
            key = self.key(key, &step.action, context, machines).await.map_err(fail)?;
            may_keep &= !uses_secret(&step.action);
            steps.push(Arc::new(PlannedStep { step, key, may_keep, stage: index, number: (at + 1, of) }));
        }
        history.extend(file.stages[index].instructions.iter().map(|located| Arc::from(located.text.as_str())));
        Ok(PlannedStage { image, is_scratch, steps, config: resolved.config, history, key })
    }

    /// Returns the image of a base that is not a stage.
    async fn image<M: Machines>(&mut self, base: &Base, machines: &M) -> Result<BaseImage, BuildError> {
        let Base::Image(reference) = base else {
            if let Some(known) = &self.empty {
                return Ok(known.clone());
            }
            let image = machines.image(None).await?;
            return Ok(self.empty.insert(image).clone());
        };
        if let Some(known) = self.images.get(reference) {
            return Ok(known.clone());
        }
        let image = machines.image(Some(reference)).await?;
        self.images.insert(reference.clone(), image.clone());
        Ok(image)
    }

    /// Returns what a `COPY --from` of a planned stage reads.
    ///
    /// # Errors
    /// Fails if it is an image that no planned stage names, which is then unknown.
    pub(super) fn source(&self, from: &Base) -> Result<Source, StepProblem> {
        let image = |image: Option<&BaseImage>, name: &str| {
            let image = image.cloned().ok_or_else(|| StepProblem::Missing(name.to_owned()))?;
            Ok(Source::Image(Box::new(image)))
        };
        match from {
            Base::Stage(index) => Ok(Source::Stage(*index)),
            Base::Image(reference) => image(self.images.get(reference), reference),
            Base::Scratch => image(self.empty.as_ref(), "scratch"),
        }
    }

    async fn key<M: Machines>(
        &self,
        before: Key,
        action: &Action,
        context: &Context,
        machines: &M,
    ) -> Result<Key, StepProblem> {
        let mut key;
        match action {
            Action::Run { command, mounts, env, user, workdir, no_network, proxies: _ } => {
                key = KeyBuilder::new("run");
                key.key(before).parts(command).parts(env).part(user.as_bytes()).part(workdir.as_bytes());
                key.part(&[u8::from(*no_network)]).count(mounts.len());
                for mount in mounts {
                    match mount {
                        Mount::Cache { id, target } => drop(key.parts(&["cache", id, target])),
                        Mount::Secret { id, target, .. } => drop(key.parts(&["secret", id, target])),
                        Mount::Tmpfs { target, size } => {
                            key.parts(&["tmpfs", target]).part(&size.unwrap_or(0).to_le_bytes());
                        }
                        Mount::Bind { from, source, target, writable } => {
                            key.parts(&["bind", source, target]).part(&[u8::from(*writable)]);
                            let sources = std::slice::from_ref(source);
                            key = self.content(key, from.as_ref(), sources, target, context).await?;
                        }
                    }
                }
            }
            Action::Copy { from, sources, inline, target, chown, chmod, checksum, is_add } => {
                key = KeyBuilder::new("copy");
                key.key(before).parts(sources).part(target.as_bytes());
                key.optional(chown.as_deref().map(str::as_bytes));
                key.optional(chmod.map(u32::to_le_bytes).as_ref().map(<[u8; 4]>::as_slice));
                key.part(&[u8::from(*is_add)]).count(inline.len());
                for document in inline {
                    key.parts(&[&document.name, &document.content]);
                }
                let (urls, files) = sources.iter().cloned().partition::<Vec<_>, _>(|it| *is_add && is_remote(it));
                for url in &urls {
                    let digest = match checksum {
                        // The step checks it.
                        Some(stated) => *stated,
                        None => self.downloads.digest(machines, url).await?,
                    };
                    key.parts(&["url", &digest.to_string()]);
                }
                if urls.is_empty() || !files.is_empty() {
                    key = self.content(key, from.as_ref(), &files, target, context).await?;
                }
            }
            Action::Directory { path, user } => {
                key = KeyBuilder::new("directory");
                key.key(before).parts(&[path, user]);
            }
        }
        Ok(key.finish())
    }

    /// Adds what a step takes of the context, of a stage or of an image to its key.
    async fn content(
        &self,
        mut key: KeyBuilder,
        from: Option<&Base>,
        sources: &[String],
        target: &str,
        context: &Context,
    ) -> Result<KeyBuilder, StepProblem> {
        let Some(from) = from else {
            // Whether the machine has the target as a directory is part of the key before.
            let (context, sources, target) = (context.clone(), sources.to_vec(), target.to_owned());
            return blocking(move || {
                let target = Target { path: &target, is_directory: true };
                context.select(&sources, target)?.hash(key.part(b"context"))?;
                Ok::<_, ContextError>(key)
            })
            .await;
        };
        match self.source(from)? {
            Source::Stage(index) => drop(key.part(b"stage").key(self.stages[&index].key)),
            Source::Image(image) => drop(key.parts(&["image", &image.digest])),
        }
        Ok(key)
    }
}

/// Returns what a step reads apart from the context.
fn sources(action: &Action) -> Vec<&Base> {
    match action {
        Action::Copy { from, .. } => from.iter().collect(),
        Action::Run { mounts, .. } => mounts
            .iter()
            .filter_map(|mount| if let Mount::Bind { from, .. } = mount { from.as_ref() } else { None })
            .collect(),
        Action::Directory { .. } => Vec::new(),
    }
}

fn base_key(image: &BaseImage, surroundings: &[u8]) -> Key {
    let mut key = KeyBuilder::new("base");
    key.part(image.digest.as_bytes()).part(surroundings);
    key.finish()
}

fn uses_secret(action: &Action) -> bool {
    matches!(action, Action::Run { mounts, .. } if mounts.iter().any(|mount| matches!(mount, Mount::Secret { .. })))
}
