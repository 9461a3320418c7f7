//! `run`: runs a command in a new sandbox, which is removed when the command ends.

use crate::{
    failure::Failure,
    options::{
        MachineOptions, NewSandbox, ProcessOptions, limits, main_process::MainProcessOptions, network::NetworkOptions,
        supervision::SupervisionOptions,
    },
    process_io,
    process_io::signals::Signals,
    runtime, stdio,
};
use clap::Args;
use sandboxvm_manager::{ExecError, OnDisconnect, ProcessSpec, Sandbox};
use std::ffi::OsString;

/// Run a command in a new sandbox, then remove the sandbox
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
    machine: MachineOptions,
    #[command(flatten)]
    process: ProcessOptions,
    #[command(flatten)]
    main: MainProcessOptions,
    #[command(flatten)]
    supervision: SupervisionOptions,
    #[command(flatten)]
    network: NetworkOptions,
    /// Program to run instead of the image's entry point and command; "" removes them
    #[arg(long, value_name = "PROGRAM", help_heading = "Process")]
    entrypoint: Option<OsString>,
    /// Print the ID of the sandbox and leave it running, even after the command has ended; `ps` and `logs` show the command
    #[arg(short, long, help_heading = "Process", conflicts_with_all = ["interactive", "tty"])]
    detach: bool,
    /// Remove the sandbox when the command ends; this is the default without --detach
    #[arg(long, help_heading = "Lifetime", conflicts_with = "detach")]
    rm: bool,
}

impl Run {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        if self.detach { runtime::block_on(self.detached()) } else { runtime::block_on(self.attended()) }
    }

    async fn attended(self) -> Result<u8, Failure> {
        let attendance = self.process.attendance()?;
        let mut signals = Signals::catch()?;
        let Some(image) = self.machine.image(&mut signals).await? else { return Ok(signals.exit_code()) };
        let command = image.command_line(self.entrypoint.as_ref(), &self.command);
        if command.is_empty() {
            return Err(Failure::new("no command was given, and none is taken from the image"));
        }
        let spec = self.process.spec(&command, OnDisconnect::Kill)?;
        let spec = self.main.apply(spec, &command, &image)?;
        let (services, network) = (self.supervision.services(), self.network.network()?);
        let new = NewSandbox { image, env: Vec::new(), services, network, ephemeral: true };
        let Some(started) = self.machine.start(new, false, &mut signals).await? else {
            return Ok(signals.exit_code());
        };
        let started = self.supervision.keep_up(started).await?;
        let warned = started.sandbox().unkept_limits();
        let ended = || started.begin_end();
        let outcome = process_io::run(started.sandbox(), spec, &attendance, &mut signals, ended).await;
        limits::warn(started.sandbox(), &warned);
        let removed = started.finish().await;
        let code = outcome?;
        removed?;
        Ok(code)
    }

    async fn detached(self) -> Result<u8, Failure> {
        let mut signals = Signals::catch()?;
        let Some(image) = self.machine.image(&mut signals).await? else { return Ok(signals.exit_code()) };
        let spec = match image.command_line(self.entrypoint.as_ref(), &self.command).as_slice() {
            [] => None,
            command => {
                let spec = self.process.spec(command, OnDisconnect::Keep)?;
                Some(self.main.apply(spec, command, &image)?)
            }
        };
        let (services, network) = (self.supervision.services(), self.network.network()?);
        let settled = spec.is_none();
        let new = NewSandbox { image, env: Vec::new(), services, network, ephemeral: false };
        let Some(started) = self.machine.start(new, settled, &mut signals).await? else {
            return Ok(signals.exit_code());
        };
        let started = self.supervision.keep_up(started).await?;
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
