//! The subcommands, one file each, in folders named like the headings of the help. A command owns its options and its
//! output; the manager does the work.

mod each;
mod host;
mod images;
mod internal;
mod processes;
pub(crate) mod sandboxes;
mod server;
mod snapshots;
mod volume;
mod workspaces;

use crate::failure::Failure;
use clap::Subcommand;

/// A subcommand. Only the options of the command that is called are made (`defer`): a short command does not need those of
/// all others.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum Command {
    Run(sandboxes::run::Run),
    Create(sandboxes::create::Create),
    Exec(processes::exec::Exec),
    Cp(sandboxes::cp::Cp),
    Ps(processes::ps::Ps),
    Attach(processes::attach::Attach),
    Wait(processes::wait::Wait),
    Kill(processes::kill::Kill),
    Ls(sandboxes::ls::Ls),
    Logs(processes::logs::Logs),
    Port(sandboxes::port::Port),
    Network(sandboxes::network::Network),
    Inspect(sandboxes::inspect::Inspect),
    Events(host::events::Events),
    Audit(host::audit::Audit),
    Stats(sandboxes::stats::Stats),
    Stop(sandboxes::stop::Stop),
    Pause(sandboxes::pause::Pause),
    Resume(sandboxes::resume::Resume),
    Snapshot(snapshots::snapshot::Snapshot),
    Fork(snapshots::fork::Fork),
    Reset(snapshots::reset::Reset),
    Changes(workspaces::changes::Changes),
    Apply(workspaces::apply::Apply),
    Discard(workspaces::discard::Discard),
    Volume(volume::VolumeCommand),
    Image(images::image::Image),
    Build(images::build::Build),
    Commit(images::commit::Commit),
    Template(images::template::Template),
    Rm(sandboxes::rm::Rm),
    Prune(host::prune::Prune),
    Serve(server::serve::Serve),
    Key(server::key::Key),
    Doctor(host::doctor::Doctor),
    Mcp(server::mcp::Mcp),
    Completion(host::completion::Completion),
    #[command(hide = true)]
    ServeFront(internal::serve_front::ServeFront),
    #[command(hide = true)]
    Supervise(internal::supervise::Supervise),
    #[command(hide = true)]
    GuardTerminal(internal::guard_terminal::GuardTerminal),
    #[command(hide = true)]
    CliReference(internal::cli_reference::CliReference),
    #[command(hide = true)]
    HostModes(internal::host_modes::HostModes),
    #[command(hide = true)]
    ManPages(internal::man_pages::ManPages),
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
            Self::Template(command) => command.run(),
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
            Self::HostModes(command) => command.run(),
            Self::ManPages(command) => command.run(description()),
        }
    }
}
