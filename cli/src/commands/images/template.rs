//! `template`: makes templates that a server offers to its clients. Builds an image from a Dockerfile, starts the start
//! command in a machine of it, and takes a snapshot of that machine. May not write anything else: a template is a named
//! snapshot, and the operator names it in the configuration of the server.

use super::build::{Build, Plain, show};
use crate::{failure::Failure, options::network::Network, process_io::signals::Signals, runtime, stdio};
use clap::{Args, Subcommand};
use sandboxvm_build::{
    engine::{Disk, Event, Found, Machine, Machines, Process, Progress, Stream},
    machines::{READY_DEFAULT, SandboxMachine},
};
use sandboxvm_manager::{NetworkOperator, NetworkSpec, SandboxName};
use sandboxvm_oci::config::ImageConfig;

/// What the names of the snapshots of templates begin with.
const PREFIX: &str = "template-";
/// Maximum number of characters of the name of a snapshot.
const MAX_NAME: usize = 63;
/// The shell with which clients of the server run commands.
const SHELL: &str = "/bin/bash";

/// Build templates for `serve`
#[derive(Debug, Args)]
pub(crate) struct Template {
    #[command(subcommand)]
    command: TemplateCommand,
}

#[derive(Debug, Subcommand)]
enum TemplateCommand {
    Build(Box<TemplateBuild>),
}

/// Build a template from a Dockerfile: a snapshot of a machine of its image, in which a command runs
#[derive(Debug, Args)]
#[command(
    after_help = "Prints the name of the snapshot, template-NAME, which replaces an earlier one. `serve` offers the template once its configuration names the snapshot.\n\nExit code: 0; 1 if a step failed; 125 if sandboxvm failed."
)]
struct TemplateBuild {
    /// Name of the template: 1-54 characters from a-z, 0-9 and '-'
    #[arg(long, value_name = "NAME")]
    name: String,
    /// Start command, which /bin/bash executes; it is running in each sandbox of the template
    #[arg(long, value_name = "COMMAND")]
    cmd: Option<String>,
    /// Command that succeeds when the template is ready, tried every 2 seconds for 10 minutes [default: sleep 20 with --cmd]
    #[arg(long, value_name = "COMMAND")]
    ready_cmd: Option<String>,
    #[command(flatten)]
    build: Build,
}

impl Template {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let TemplateCommand::Build(build) = self.command;
        build.run()
    }
}

impl TemplateBuild {
    fn run(&self) -> Result<u8, Failure> {
        let name = SandboxName::try_from(format!("{PREFIX}{}", self.name)).map_err(|_| {
            let most = MAX_NAME - PREFIX.len();
            Failure::new(format_args!(
                "invalid template name {:?}: use 1-{most} characters from a-z, 0-9 and '-'",
                self.name
            ))
        })?;
        let inputs = self.build.inputs()?;
        runtime::block_on(async {
            let mut signals = Signals::catch()?;
            let made = async {
                match self.build.build(&inputs).await? {
                    Ok(built) => self.make(&built.digest, &name).await,
                    Err(error) => self.build.failed(&error),
                }
            };
            tokio::select! {
                made = made => made,
                _ = signals.next() => Ok(signals.exit_code()),
            }
        })
    }

    /// Makes the snapshot of a machine of an image.
    async fn make(&self, image: &str, name: &SandboxName) -> Result<u8, Failure> {
        // A sandbox can have a network only if the machine of its template has a card.
        let no_network = || Network { spec: NetworkSpec::default(), operator: NetworkOperator::default() };
        let machines = self.build.machines(Some(self.build.network()?.unwrap_or_else(no_network)))?;
        let image = machines.image(Some(image)).await?;
        let mut machine = machines.start(&image).await?;
        if machine.find(SHELL).await? != Some(Found::File) {
            return Err(Failure::new(format_args!(
                "the image has no {SHELL}, with which clients of a server run commands"
            )));
        }
        self.begin(&mut machine, &image.config).await?;
        machine.replace_snapshot(name.clone()).await?;
        machine.finish().await?;
        show(&format!("sandboxvm: {}", configuration(&self.name, name, &image.config)));
        stdio::print(&format!("{name}\n"))?;
        Ok(0)
    }

    /// Starts the start command, and waits until the template is ready.
    async fn begin(&self, machine: &mut SandboxMachine, config: &ImageConfig) -> Result<(), Failure> {
        let process = |command: &str| Process {
            command: [SHELL, "-l", "-c", command].map(str::to_owned).to_vec(),
            env: config.env.clone(),
            user: config.user.clone(),
            workdir: if config.working_dir.is_empty() { "/".to_owned() } else { config.working_dir.clone() },
            no_network: false,
        };
        if let Some(start) = &self.cmd {
            machine.start_process(&process(start)).await?;
        }
        let Some(ready) = self.ready_cmd.as_deref().or_else(|| self.cmd.as_ref().map(|_| READY_DEFAULT)) else {
            return Ok(());
        };
        let progress = Plain::default();
        let mut output = |stream: Stream, bytes: &[u8]| progress.notify(Event::Output(stream, bytes));
        Ok(machine.wait_until_ready(&process(ready), &mut output).await?)
    }
}

/// Returns what the configuration of a server has to say.
fn configuration(template: &str, snapshot: &SandboxName, config: &ImageConfig) -> String {
    let user = config.user.split(':').next().filter(|user| !user.is_empty()).unwrap_or("root");
    format!(
        "the configuration of `serve` offers the template with\n\n[templates.{template}]\nsnapshot = \"{snapshot}\"\nuser = {user:?}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_names_the_snapshot_and_the_user_of_the_image() {
        let name = SandboxName::try_from("template-web".to_owned()).unwrap();
        let text =
            |user: &str| configuration("web", &name, &ImageConfig { user: user.into(), ..ImageConfig::default() });
        let table = |text: &str| toml::from_str::<toml::Table>(text.split_once("\n\n").unwrap().1).unwrap();
        let template = &table(&text("app:users"))["templates"]["web"];
        assert_eq!((template["snapshot"].as_str(), template["user"].as_str()), (Some("template-web"), Some("app")));
        assert_eq!(table(&text(""))["templates"]["web"]["user"].as_str(), Some("root"));
    }
}
