//! Runs a build: base, steps, start command, snapshot. Whatever happens is its result.

use super::{Done, FAILED_KEPT, Job, MADE, base::Base};
use crate::{
    access::keys::Key,
    builds::log::{Level, step_name},
    config::TemplateConfig,
    registry::{
        builds::known::{now, states_of},
        state::{Registry, new_name},
    },
    templates::built::{self, Build, Reason, Status, Tag},
};
use sandboxvm_build::{
    e2b::{self, PlanRequest, Setting, TemplateRequest},
    engine::{Event, Machine, Process, Progress, Stream},
    machines::{MachineOptions, READY_DEFAULT, SandboxMachine, SandboxMachines},
};
use sandboxvm_images::template::DiskSize;
use sandboxvm_manager::{MIB, MemorySize, NetworkSpec, VcpuCount};
use std::time::Duration;
use tokio::time::timeout;

/// Maximum length of a reason, in characters.
const MAX_REASON: usize = 2000;
/// Uploads may have so many times their size without compression.
const COMPRESSION: u64 = 20;

/// A failed part of a build.
struct Failed {
    step: Option<String>,
    message: String,
}

fn failed(step: &str) -> impl Fn(String) -> Failed + Copy {
    move |message| Failed { step: Some(step.to_owned()), message }
}

impl Registry {
    /// Runs a build to its end, whatever that is.
    pub(crate) async fn run_build(&self, job: Job) {
        let within = Duration::from_secs(self.builds.config.build_timeout.max(1));
        let outcome = tokio::select! {
            () = job.cancel.cancelled() => {
                Err(Failed { step: None, message: "the build was cancelled".into() })
            }
            built = timeout(within, self.try_build(&job)) => built.unwrap_or_else(|_| {
                Err(Failed { step: None, message: format!("the build took more than {} s", within.as_secs()) })
            }),
        };
        if let Err(Failed { message, .. }) = &outcome {
            job.log.say(Level::Error, message);
        }
        if let Err(error) = self.builds.logs.put(&job.build, &job.log.lines()) {
            tracing::warn!(%error, "cannot keep the log of a build");
        }
        if let Err(error) = self.finish_build(&job, outcome) {
            tracing::error!(template = %job.template, %error, "cannot keep the result of a build");
        }
        self.builds.running().remove(&job.build);
    }

    fn finish_build(&self, job: &Job, outcome: Result<(Build, built::Result), Failed>) -> Done<()> {
        let made = outcome.as_ref().ok().map(|(_, result)| result.snapshot.clone());
        let taken = self.builds.templates.change(&job.template, |template| {
            let at = now();
            let Some(build) = template.build_mut(&job.build) else { return Vec::new() };
            build.updated_at = at;
            match outcome {
                Ok((made, result)) => {
                    (build.status, build.result) = (Status::Ready, Some(result));
                    (build.cpus, build.memory, build.disk) = (made.cpus, made.memory, made.disk);
                    let (id, tags) = (build.id.clone(), build.tags.clone());
                    for tag in tags {
                        template.tags.insert(tag, Tag { build: id.clone(), created_at: at });
                    }
                }
                Err(Failed { step, message }) => {
                    // It can contain words of a guest or registry.
                    let message = message.chars().filter(|char| !char.is_control()).take(MAX_REASON).collect();
                    build.status = Status::Error;
                    build.reason = Some(Reason { message, step });
                }
            }
            template.take_unnamed(FAILED_KEPT)
        });
        match taken {
            Ok(Some(taken)) => self.drop_builds(&taken),
            // The template was deleted meanwhile, or its record cannot be written.
            other => {
                if let Some(snapshot) = made {
                    self.remove_snapshot_of_manager(&snapshot)?;
                }
                other?;
            }
        }
        Ok(())
    }

    async fn try_build(&self, job: &Job) -> Result<(Build, built::Result), Failed> {
        let base_failed = failed("base");
        job.log.say(Level::Info, "the build waits for its turn");
        let _turn = self.builds.turns.acquire().await.map_err(|error| base_failed(error.to_string()))?;
        let _place = self.reserve(&job.key, 1).map_err(|error| base_failed(error.to_string()))?;
        let (_, build) =
            self.build_of(&job.key, job.template.as_str(), &job.build).map_err(|e| base_failed(e.to_string()))?;
        let images = self.manager.images(&self.bundle, self.builds.config.options());
        let images = images.map_err(|error| base_failed(error.to_string()))?;
        let base = self.base(job, &build, &images).await.map_err(base_failed)?;
        if base.start_from.is_none() {
            // Before a machine is started, since that makes a ready snapshot of the image.
            let noted = self.builds.templates.change(&job.template, |template| {
                template.build_mut(&job.build).map(|build| build.image = Some(base.image.digest.clone()))
            });
            noted.map_err(|error| base_failed(error.to_string()))?;
        }
        self.check_storage_for(&job.key, base.memory.saturating_mul(MIB))
            .await
            .map_err(|e| base_failed(e.to_string()))?;
        let options = self.machine_options(&job.key, &base).map_err(base_failed)?;
        let machines = SandboxMachines::open(self.manager.clone(), self.bundle.clone(), images, options);
        let machines = machines.map_err(|error| base_failed(error.to_string()))?;
        let request = PlanRequest {
            owner: &job.key.id.0,
            origin: &base.origin,
            setting: base.setting.clone(),
            force: job.spec.force,
            steps: &job.spec.steps,
        };
        let plan = e2b::plan(&request);
        let plan = plan.map_err(|faulty| Failed { step: Some(step_name(faulty.step)), message: faulty.problem })?;
        let uploads = self.builds.uploads.of(&job.key.id);
        let request = TemplateRequest {
            plan: &plan,
            base: &base.image,
            uploads: &uploads,
            max_upload: self.builds.uploads.most().saturating_mul(COMPRESSION),
        };
        let finished = e2b::build_template(&request, &machines, &*job.log)
            .await
            .map_err(|failure| Failed { step: Some(step_name(failure.step)), message: failure.to_string() })?;
        let mut machine = finished.machine;
        let setting = Setting { workdir: finished.workdir, ..plan.setting };
        let finalize = failed("finalize");
        self.begin_command(job, &mut machine, &setting).await.map_err(finalize)?;
        let snapshot = new_name(MADE).map_err(|error| finalize(error.to_string()))?;
        job.log.say(Level::Info, "the snapshot is taken");
        machine.snapshot(snapshot.clone()).await.map_err(|error| finalize(error.to_string()))?;
        // A machine that does not end is removed with this process.
        let _ = machine.finish().await;
        if let Err(error) = self.check_storage_for(&job.key, 0).await {
            let _ = self.remove_snapshot_of_manager(&snapshot);
            return Err(finalize(error.to_string()));
        }
        job.log.say(Level::Info, "the template is ready");
        let result = built::Result { snapshot, user: setting.user, workdir: setting.workdir, env: setting.env };
        Ok((Build { cpus: base.cpus, memory: base.memory, disk: base.disk, ..build }, result))
    }

    fn machine_options(&self, key: &Key, base: &Base) -> Result<MachineOptions, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let usual = TemplateConfig::default().spec("template").map_err(|error| text(&error))?;
        let network = base.has_card.then(|| NetworkSpec {
            limits: self.network.limits(self.sandboxes_of(key)),
            ..self.builds.network.clone()
        });
        Ok(MachineOptions {
            vcpus: VcpuCount::try_from(base.cpus).map_err(|error| text(&error))?,
            memory: MemorySize::try_from(base.memory.saturating_mul(MIB)).map_err(|error| text(&error))?,
            disk: DiskSize::try_from(base.disk.saturating_mul(MIB)).map_err(|error| text(&error))?,
            network,
            supervisor: Some(self.supervisor.clone()),
            states: states_of(&key.id),
            max_states: self.builds.config.states_per_key,
            limits: usual.limits,
            start_from: base.start_from.clone(),
            ..MachineOptions::default()
        })
    }

    /// Starts the start command, and waits until the ready command succeeds.
    async fn begin_command(&self, job: &Job, machine: &mut SandboxMachine, setting: &Setting) -> Result<(), String> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.trim().is_empty());
        let (start, ready) = (given(&job.spec.start_cmd), given(&job.spec.ready_cmd));
        let process = |command: String| Process {
            command: ["/bin/bash", "-l", "-c", &command].map(str::to_owned).to_vec(),
            env: setting.env.clone(),
            user: setting.user.clone(),
            workdir: setting.workdir.clone(),
            no_network: false,
        };
        let has_start = start.is_some();
        if let Some(start) = start {
            job.log.say(Level::Info, &format!("the start command runs: {start}"));
            machine.start_process(&process(start)).await.map_err(|error| error.to_string())?;
        }
        let Some(ready) = ready.or_else(|| has_start.then(|| READY_DEFAULT.to_owned())) else { return Ok(()) };
        job.log.say(Level::Info, &format!("the ready command is tried: {ready}"));
        let mut output = |stream: Stream, bytes: &[u8]| {
            job.log.notify(Event::Output(stream, bytes));
        };
        machine.wait_until_ready(&process(ready), &mut output).await.map_err(|error| error.to_string())
    }
}
