//! `run`: runs a command in a new sandbox, which is removed when the command ends, unless it has a
//! workspace.

use crate::{
    failure::Failure,
    options::{
        NewSandbox, ProcessOptions, SandboxOptions,
        image::Image,
        limits, mounts,
        workspace::{self, Workspace},
    },
    process_io,
    process_io::signals::Signals,
    runtime, stdio,
};
use clap::Args;
use sandboxvm_manager::{ExecError, OnDisconnect, ProcessSpec, Sandbox};
use std::ffi::OsString;

/// Run a command in a new sandbox; --workspace keeps its changes
#[derive(Debug, Args)]
#[command(
    after_help = "Exit code: that of the command; 128+N if signal N killed it; 124 on timeout; 125 if sandboxvm \
                  failed; 126 if the command is not executable; 127 if it was not found."
)]
pub(crate) struct Run {
    /// Command to run, and its arguments [default: those of the image]
    #[arg(trailing_var_arg = true, required_unless_present_any = ["detach", "image"], value_name = "COMMAND")]
    command: Vec<OsString>,
    #[command(flatten)]
    options: SandboxOptions<ProcessOptions>,
    /// Program to run instead of the image's entry point and command; "" removes them
    #[arg(long, value_name = "PROGRAM", help_heading = "Process")]
    entrypoint: Option<OsString>,
    /// Print the ID of the sandbox and leave it running, even after the command has ended; `ps` and `logs` show the command
    #[arg(short, long, help_heading = "Process", conflicts_with_all = ["interactive", "tty"])]
    detach: bool,
    /// Remove the sandbox when the command ends; this is the default without --detach and --workspace
    #[arg(long, help_heading = "Lifetime", conflicts_with = "detach")]
    rm: bool,
}

impl Run {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        if self.detach { runtime::block_on(self.detached()) } else { runtime::block_on(self.attended()) }
    }

    /// Returns the user of the command.
    fn user(&self, image: &Image) -> Option<OsString> {
        self.options.process.user().cloned().or_else(|| image.user())
    }

    /// Copies the workspace in, and makes the command work there. Returns `None` if a signal arrived first.
    async fn workspace(&mut self, image: &Image, signals: &mut Signals) -> Result<Option<Option<Workspace>>, Failure> {
        let workspace = self.options.workspace.copy_in(self.user(image).as_deref(), signals).await?;
        if self.options.workspace.is_given() && workspace.is_none() {
            return Ok(None);
        }
        self.options.process.work_in_otherwise(self.options.workspace.directory()?);
        Ok(Some(workspace))
    }

    async fn attended(mut self) -> Result<u8, Failure> {
        let attendance = self.options.process.attendance()?;
        let mounts = self.options.mounts.mounts()?;
        let mut signals = Signals::catch()?;
        let Some(image) = self.options.machine.image(&mut signals).await? else { return Ok(signals.exit_code()) };
        let command = image.command_line(self.entrypoint.as_ref(), &self.command);
        if command.is_empty() {
            return Err(Failure::new("no command was given, and none is taken from the image"));
        }
        let mounts = mounts.with_owner(workspace::owner(self.user(&image).as_deref()));
        let Some(workspace) = self.workspace(&image, &mut signals).await? else { return Ok(signals.exit_code()) };
        let keeps = workspace.is_some() && !self.rm;
        if keeps {
            self.options.machine.name_otherwise(self.options.workspace.generated_name()?);
        }
        let spec = self.options.process.spec(&command, OnDisconnect::Kill)?;
        let spec = self.options.main.apply(spec, &command, &image)?;
        let new = NewSandbox { ephemeral: !keeps, ..self.options.sandbox(image, workspace, mounts)? };
        let Some(started) = self.options.machine.start(new, false, &mut signals).await? else {
            return Ok(signals.exit_code());
        };
        let started = self.options.supervision.keep_up(started).await?;
        let warned = started.sandbox().unkept_limits();
        if keeps {
            // From here on the changes outlive this program, whatever happens to it.
            let sandbox = started.detach();
            let outcome = process_io::run(&sandbox, spec, &attendance, &mut signals, || ()).await;
            limits::warn(&sandbox, &warned);
            let concluded = workspace::conclude(&sandbox, &mut signals).await;
            let code = outcome?;
            return concluded.map(|()| code);
        }
        // A machine that is ended immediately leaves its volumes as a power failure would.
        let ends_at_once = !mounts::writes_volume(started.sandbox());
        let ended = || {
            if ends_at_once {
                started.begin_end();
            }
        };
        let outcome = process_io::run(started.sandbox(), spec, &attendance, &mut signals, ended).await;
        limits::warn(started.sandbox(), &warned);
        mounts::unmount(started.sandbox()).await;
        let removed = started.finish().await;
        let code = outcome?;
        removed?;
        Ok(code)
    }

    async fn detached(mut self) -> Result<u8, Failure> {
        let mounts = self.options.mounts.mounts()?;
        let mut signals = Signals::catch()?;
        let Some(image) = self.options.machine.image(&mut signals).await? else { return Ok(signals.exit_code()) };
        let mounts = mounts.with_owner(workspace::owner(self.user(&image).as_deref()));
        let Some(workspace) = self.workspace(&image, &mut signals).await? else { return Ok(signals.exit_code()) };
        let spec = match image.command_line(self.entrypoint.as_ref(), &self.command).as_slice() {
            [] => None,
            command => {
                let spec = self.options.process.spec(command, OnDisconnect::Keep)?;
                Some(self.options.main.apply(spec, command, &image)?)
            }
        };
        let settled = spec.is_none();
        let new = self.options.sandbox(image, workspace, mounts)?;
        let Some(started) = self.options.machine.start(new, settled, &mut signals).await? else {
            return Ok(signals.exit_code());
        };
        let started = self.options.supervision.keep_up(started).await?;
        let warned = started.sandbox().unkept_limits();
        if let Some(spec) = spec
            && let Err(error) = begin(started.sandbox(), spec).await
        {
            let failure = Failure::of_exec(&error);
            started.finish().await?;
            return Err(failure);
        }
        limits::warn(started.sandbox(), &warned);
        let sandbox = started.detach();
        stdio::print(&format!("{}\n", sandbox.id()))?;
        Ok(0)
    }
}

/// Starts the command. The agent of an older snapshot runs it too, but retains no output.
pub(super) async fn begin(sandbox: &Sandbox, spec: ProcessSpec) -> Result<(), ExecError> {
    match sandbox.exec(spec.clone()).await {
        Err(error) if error.is_of_old_agent() => sandbox.exec(spec.on_disconnect(OnDisconnect::RunOn)).await.map(drop),
        started => started.map(drop),
    }
}
