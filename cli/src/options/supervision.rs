//! Options for published ports and rules, which a supervisor process serves while no command runs. This module starts the
//! supervisor, and replaces one that was killed.

use crate::{environment, failure::Failure, options::values::duration};
use clap::Args;
use sandboxvm_manager::{
    AtEnd, IdleRule, Publish, Sandbox, StartedSandbox, State, SupervisionSpec, SupervisionStatus, SupervisorProgram,
    TimeToLive, WhenIdle,
};
use std::{env, fmt::Display, time::Duration};

/// Published ports, and rules.
#[derive(Debug, Args)]
#[command(next_help_heading = "Network")]
pub(crate) struct SupervisionOptions {
    /// Publish a TCP port of the sandbox on this host: GUEST, HOST:GUEST, ADDRESS:HOST:GUEST or /PATH/TO.SOCK:GUEST. ADDRESS
    /// defaults to 127.0.0.1 and HOST to any free port, which `port` shows
    #[arg(short, long, value_name = "PORT", allow_hyphen_values = true)]
    publish: Vec<Publish>,
    #[command(flatten)]
    rules: RuleOptions,
}

/// When a sandbox ends or is paused without a command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Lifetime")]
pub(crate) struct RuleOptions {
    /// Stop the sandbox gracefully this long after its start, even if it is in use or paused; with =rm, remove its files too
    /// [default: no time limit]
    #[arg(long, value_name = "TIME[=rm]", allow_hyphen_values = true, value_parser = ttl)]
    ttl: Option<TimeToLive>,
    /// Pause, stop or remove the sandbox when it has not been used for this long. Commands, attached processes and
    /// connections to published ports are uses; a process in the background is not. The next use resumes a sandbox that
    /// this rule paused, but not one that `pause` paused [default: no rule]
    #[arg(long, value_name = "TIME=pause|stop|rm", allow_hyphen_values = true, value_parser = idle)]
    idle: Option<IdleRule>,
}

impl SupervisionOptions {
    /// The services that these options ask for.
    pub(crate) fn services(&self) -> SupervisionSpec {
        self.rules.services(self.publish.clone())
    }

    /// Starts a supervisor for a sandbox that just started; ends the sandbox if that fails.
    pub(crate) async fn keep_up(self, mut started: StartedSandbox) -> Result<StartedSandbox, Failure> {
        warn_of_open(&self.publish);
        let mut kept = self.rules.keep_up(started.sandbox(), self.publish).await;
        if kept.is_ok() && started.sandbox().record().mounts.has_shares() {
            // What is mounted in a share can be mounted only while that is served.
            kept = started.settled().await.map_err(Failure::from);
        }
        match kept {
            Ok(()) => Ok(started),
            Err(failure) => {
                started.finish().await?;
                Err(failure)
            }
        }
    }
}

impl RuleOptions {
    fn services(&self, ports: Vec<Publish>) -> SupervisionSpec {
        SupervisionSpec { ttl: self.ttl, idle: self.idle, ports }
    }

    /// Starts a supervisor for these rules and `ports` of a sandbox.
    pub(crate) async fn keep_up(&self, sandbox: &Sandbox, ports: Vec<Publish>) -> Result<(), Failure> {
        Ok(sandbox.supervise(&program()?, &self.services(ports)).await?)
    }
}

/// Warns of ports that other machines can reach.
pub(crate) fn warn_of_open(ports: &[Publish]) {
    for publish in ports.iter().filter(|publish| publish.host.is_open_to_others()) {
        let message =
            format!("warning: other machines can reach port {} of the sandbox at {}", publish.guest, publish.host);
        Failure::new(message).report();
    }
}

/// Finds a sandbox, and replaces its supervisor if that was killed.
pub(crate) fn find(reference: &str) -> Result<Sandbox, Failure> {
    let sandbox = environment::manager()?.find(reference)?;
    see_to(&sandbox);
    Ok(sandbox)
}

/// Warns if the supervisor of a sandbox was killed. For commands that only read: they do not replace it.
pub(crate) fn warn_of_unkept(sandbox: &impl Display, state: &State, supervision: Option<&SupervisionStatus>) {
    if let Some(message) = unkept(sandbox, state, supervision) {
        Failure::new(message).report();
    }
}

fn unkept(sandbox: &impl Display, state: &State, supervision: Option<&SupervisionStatus>) -> Option<String> {
    // A sandbox that has ended needs no supervisor.
    let supervision = supervision.filter(|supervision| !supervision.supervised && state.is_live())?;
    let rules = [
        (supervision.ttl.is_some(), "--ttl"),
        (supervision.idle.is_some(), "--idle"),
        (!supervision.ports.is_empty(), "published ports"),
        (supervision.network, "network"),
        (supervision.shares, "live shares"),
    ];
    let rules: Vec<&str> = rules.into_iter().filter(|(is_set, _)| *is_set).map(|(_, rule)| rule).collect();
    Some(format!(
        "warning: sandbox {sandbox} is unsupervised, and its {} have no effect; the next command that uses it starts a supervisor",
        rules.join(" and ")
    ))
}

/// Starts a supervisor if one is missing. A failure is only a warning: the command continues without it.
pub(crate) fn see_to(sandbox: &Sandbox) {
    let ensured = program().and_then(|program| Ok(sandbox.ensure_supervised(&program)?));
    if let Err(failure) = ensured {
        Failure::new("warning: network, live shares, ports, --ttl and --idle of the sandbox have no effect").report();
        failure.report();
    }
}

/// Returns this program with the arguments that make it a supervisor.
pub(crate) fn program() -> Result<SupervisorProgram, Failure> {
    let program =
        env::current_exe().map_err(|error| Failure::new(format_args!("cannot find this program: {error}")))?;
    let bundle = environment::bundle(None, None);
    let arguments =
        vec!["supervise".into(), "--egress".into(), bundle.egress.into(), "--share".into(), bundle.share.into()];
    Ok(SupervisorProgram { program, arguments })
}

fn ttl(text: &str) -> Result<TimeToLive, String> {
    let (after, then) = timed(text)?;
    let then = match then {
        None | Some("stop") => AtEnd::Stop,
        Some("rm") => AtEnd::Remove,
        Some(other) => return Err(format!("invalid action {other:?}: expected stop or rm")),
    };
    Ok(TimeToLive { after, then })
}

fn idle(text: &str) -> Result<IdleRule, String> {
    let (after, then) = timed(text)?;
    let then = match then {
        Some("pause") => WhenIdle::Pause,
        Some("stop") => WhenIdle::Stop,
        Some("rm") => WhenIdle::Remove,
        _ => return Err("expected a time and an action, such as 5m=pause, 5m=stop or 5m=rm".into()),
    };
    Ok(IdleRule { after, then })
}

fn timed(text: &str) -> Result<(Duration, Option<&str>), String> {
    let (time, then) = text.split_once('=').map_or((text, None), |(time, then)| (time, Some(then)));
    Ok((duration(time)?, then))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_without_a_supervisor_are_named() {
        let kept = crate::commands::sandboxes::ls::tests::example_supervision();
        let unkept = |supervision: &SupervisionStatus, state| super::unkept(&"demo", &state, Some(supervision));
        assert_eq!(unkept(&kept, State::Running), None);
        let killed = SupervisionStatus { supervised: false, idle: None, ..kept };
        let message = unkept(&killed, State::Paused).unwrap();
        assert!(
            message.contains("demo is unsupervised, and its --ttl and published ports have no effect"),
            "{message}"
        );
        assert_eq!(unkept(&killed, State::Dead), None);
        let shares = SupervisionStatus { network: true, shares: true, ..killed };
        let message = unkept(&shares, State::Running).unwrap();
        assert!(message.contains("published ports and network and live shares have no effect"), "{message}");
        assert_eq!(super::unkept(&"demo", &State::Running, None), None);
    }

    #[test]
    fn rules_are_parsed_and_errors_show_an_example() {
        let minutes = |n: u64| Duration::from_secs(60 * n);
        assert_eq!(ttl("30m"), Ok(TimeToLive { after: minutes(30), then: AtEnd::Stop }));
        assert_eq!(ttl("1h=rm"), Ok(TimeToLive { after: minutes(60), then: AtEnd::Remove }));
        assert!(ttl("30m=pause").unwrap_err().contains("stop or rm"));
        assert!(ttl("0").is_err() && ttl("soon").is_err() && ttl("-1s").is_err());
        assert_eq!(idle("5m=pause"), Ok(IdleRule { after: minutes(5), then: WhenIdle::Pause }));
        assert_eq!(idle("90=rm").map(|rule| rule.then), Ok(WhenIdle::Remove));
        for text in ["5m", "5m=", "5m=sleep"] {
            assert!(idle(text).unwrap_err().contains("5m=pause"), "{text}");
        }
    }
}
