//! `create`: creates a sandbox that stays until it is removed.

use crate::{
    failure::Failure,
    options::{EnvOptions, NewSandbox, SandboxOptions, workspace::owner},
    process_io::signals::Signals,
    runtime, stdio,
};
use clap::Args;
use sandboxvm_manager::{OnDisconnect, ProcessSpec};

/// Create a sandbox, wait until it has booted, and print its ID
#[derive(Debug, Args)]
pub(crate) struct Create {
    #[command(flatten)]
    options: SandboxOptions<EnvOptions>,
}

impl Create {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        runtime::block_on(async {
            let options = self.options;
            let mounts = options.mounts.mounts()?;
            let mut signals = Signals::catch()?;
            let env = options.process.texts()?;
            let Some(image) = options.machine.image(&mut signals).await? else { return Ok(signals.exit_code()) };
            // As with `run -d`, the process that the image is made for runs from the beginning.
            let spec = match image.command_line(None, &[]).as_slice() {
                [] => None,
                command => {
                    let spec = ProcessSpec::builder(command).on_disconnect(OnDisconnect::Keep).build()?;
                    Some(options.main.apply(spec, command, &image)?)
                }
            };
            let mounts = mounts.with_owner(owner(image.user().as_deref()));
            let workspace = options.workspace.copy_in(image.user().as_deref(), &mut signals).await?;
            if options.workspace.is_given() && workspace.is_none() {
                return Ok(signals.exit_code());
            }
            let new = NewSandbox { env, ..options.sandbox(image, workspace, mounts)? };
            let Some(started) = options.machine.start(new, true, &mut signals).await? else {
                return Ok(signals.exit_code());
            };
            let started = options.supervision.keep_up(started).await?;
            if let Some(spec) = spec
                && let Err(error) = super::run::begin(started.sandbox(), spec).await
            {
                let failure = Failure::of_exec(&error);
                started.finish().await?;
                return Err(failure);
            }
            let sandbox = started.detach();
            stdio::print(&format!("{}\n", sandbox.id()))?;
            Ok(0)
        })
    }
}
