//! The subcommands, one file each. A command owns its options and its output; the manager does the work.

mod apply;
mod attach;
mod audit;
mod build;
mod changes;
mod cli_reference;
mod commit;
mod completion;
mod cp;
mod create;
mod discard;
mod doctor;
mod each;
mod events;
mod exec;
mod fork;
mod guard_terminal;
mod image;
mod inspect;
mod key;
mod kill;
mod logs;
pub(crate) mod ls;
mod mcp;
mod network;
mod pause;
mod port;
mod prune;
mod ps;
mod reset;
mod resume;
mod rm;
mod run;
mod serve;
mod serve_front;
mod snapshot;
mod stats;
mod stop;
mod supervise;
mod volume;
mod wait;

use crate::failure::Failure;
use clap::Subcommand;

/// A subcommand.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(run::Run),
    Create(create::Create),
    Exec(exec::Exec),
    Cp(cp::Cp),
    Ps(ps::Ps),
    Attach(attach::Attach),
    Wait(wait::Wait),
    Kill(kill::Kill),
    Ls(ls::Ls),
    Logs(logs::Logs),
    Port(port::Port),
    Network(network::Network),
    Inspect(inspect::Inspect),
    Events(events::Events),
    Audit(audit::Audit),
    Stats(stats::Stats),
    Stop(stop::Stop),
    Pause(pause::Pause),
    Resume(resume::Resume),
    Snapshot(snapshot::Snapshot),
    Fork(fork::Fork),
    Reset(reset::Reset),
    Changes(changes::Changes),
    Apply(apply::Apply),
    Discard(discard::Discard),
    Volume(volume::VolumeCommand),
    Image(image::Image),
    Build(build::Build),
    Commit(commit::Commit),
    Rm(rm::Rm),
    Prune(prune::Prune),
    Serve(serve::Serve),
    Key(key::Key),
    Doctor(doctor::Doctor),
    Mcp(mcp::Mcp),
    Completion(completion::Completion),
    #[command(hide = true)]
    ServeFront(serve_front::ServeFront),
    #[command(hide = true)]
    Supervise(supervise::Supervise),
    #[command(hide = true)]
    GuardTerminal(guard_terminal::GuardTerminal),
    #[command(hide = true)]
    CliReference(cli_reference::CliReference),
}

impl Command {
    /// Runs the command and returns its exit code. `description` returns the whole command line, for commands that print it.
    pub(crate) fn run(self, description: fn() -> clap::Command) -> Result<u8, Failure> {
        match self {
            Self::Run(command) => command.run(),
            Self::Create(command) => command.run(),
            Self::Exec(command) => command.run(),
            Self::Cp(command) => command.run(),
            Self::Ps(command) => command.run(),
            Self::Attach(command) => command.run(),
            Self::Wait(command) => command.run(),
            Self::Kill(command) => command.run(),
            Self::Ls(command) => command.run(),
            Self::Logs(command) => command.run(),
            Self::Port(command) => command.run(),
            Self::Network(command) => command.run(),
            Self::Inspect(command) => command.run(),
            Self::Events(command) => command.run(),
            Self::Audit(command) => command.run(),
            Self::Stats(command) => command.run(),
            Self::Stop(command) => command.run(),
            Self::Pause(command) => command.run(),
            Self::Resume(command) => command.run(),
            Self::Snapshot(command) => command.run(),
            Self::Fork(command) => command.run(),
            Self::Reset(command) => command.run(),
            Self::Changes(command) => command.run(),
            Self::Apply(command) => command.run(),
            Self::Discard(command) => command.run(),
            Self::Volume(command) => command.run(),
            Self::Image(command) => command.run(),
            Self::Build(command) => command.run(),
            Self::Commit(command) => command.run(),
            Self::Rm(command) => command.run(),
            Self::Prune(command) => command.run(),
            Self::Serve(command) => command.run(),
            Self::Key(command) => command.run(),
            Self::Doctor(command) => command.run(),
            Self::Mcp(command) => command.run(),
            Self::Completion(command) => command.run(description()),
            Self::ServeFront(command) => command.run(),
            Self::Supervise(command) => command.run(),
            Self::GuardTerminal(command) => command.run(),
            Self::CliReference(command) => command.run(description()),
        }
    }
}
