//! Runs a command in a sandbox until it ends. Captures a bounded part of its output, and kills it on timeout or if the client
//! cancels the call.

use super::arguments::{BadArgument, text, texts, within};
use crate::{
    capture::{Capture, KEPT},
    scope::{Scope, ScopeError},
    server::SandboxTools,
};
use rmcp::{
    RoleServer,
    handler::server::wrapper::{Json, Parameters},
    service::RequestContext,
    tool, tool_router,
};
use sandboxvm_manager::{Exec, ExecError, Output, Sandbox, StdinSink, exit_code};
use sandboxvm_protocol::agent::{ExecRequest, ExitStatus, OnDisconnect, StdinSource};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const DEFAULT_TIMEOUT: u64 = 120;
const MAX_TIMEOUT: u64 = 24 * 3600;

/// Arguments of sandbox_run.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RunArguments {
    /// ID or name of the sandbox.
    sandbox: String,
    /// Command line for `bash -lc`. Give either this or argv.
    command: Option<String>,
    /// Program and arguments, run without a shell. Give either this or command.
    argv: Option<Vec<String>>,
    /// Working directory. Default: the home directory of the user.
    cwd: Option<String>,
    /// User to run the command as, by name or number; 'user' is an unprivileged user. Default: root.
    user: Option<String>,
    /// Environment variables of the command.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Standard input of the command. Default: empty.
    stdin: Option<String>,
    /// Time in seconds after which the command is killed (1-86400). Default: 120.
    timeout_seconds: Option<u64>,
}

/// The result of a command.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct RunDone {
    /// Exit code: that of the command, 128 + N if signal N killed it, or 124 if it timed out.
    exit_code: u8,
    /// Standard output. If it is longer than 128 KiB, its middle is cut and a line in its place says so.
    stdout: String,
    /// Standard error, cut in the same way.
    stderr: String,
    /// Total number of bytes that were written to stdout.
    stdout_bytes: u64,
    /// Total number of bytes that were written to stderr.
    stderr_bytes: u64,
    /// Number of bytes of both that were cut. Redirect large output to a file and read the file in parts.
    cut_bytes: u64,
    /// True if the command was killed because it timed out.
    timed_out: bool,
    /// Signal that killed the command, if one did.
    signal: Option<u8>,
}

/// Why a command was not run, or why its exit code is unknown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunFailure {
    #[error(transparent)]
    Argument(#[from] BadArgument),
    #[error(transparent)]
    Scope(#[from] ScopeError),
    #[error("cannot run the command: {0}")]
    Exec(#[from] ExecError),
    #[error("the connection to the sandbox ended before the command reported its exit code; run the command again")]
    Unfinished,
}

#[tool_router(router = run_router, vis = "pub(crate)")]
impl SandboxTools {
    /// Runs a command in a sandbox and waits until it ends. If the command fails, this tool still succeeds: check exit_code.
    /// To keep a program running, start it in the background with its output redirected, as in
    /// `nohup server >/tmp/log 2>&1 &`.
    #[tool(annotations(
        title = "Run command",
        read_only_hint = false,
        destructive_hint = true,
        idempotent_hint = false,
        open_world_hint = false
    ))]
    async fn sandbox_run(
        &self,
        Parameters(arguments): Parameters<RunArguments>,
        context: RequestContext<RoleServer>,
    ) -> Result<Json<RunDone>, String> {
        self.work(context, run(&self.scope, arguments)).await
    }
}

async fn run(scope: &Scope, arguments: RunArguments) -> Result<RunDone, RunFailure> {
    let request = request(&arguments)?;
    let sandbox = scope.find(&arguments.sandbox)?;
    // Closing the connection kills the process, so it is held until the process ends.
    let Exec { stdin, output, control: _connection, .. } = sandbox.exec(request).await?;
    let input = feed(stdin, arguments.stdin.unwrap_or_default());
    let attended = attend(&sandbox, output);
    tokio::pin!(input, attended);
    tokio::select! {
        done = &mut attended => done,
        // A program need not read its input.
        () = &mut input => attended.await,
    }
}

async fn feed(mut stdin: StdinSink, text: String) {
    if !text.is_empty() && stdin.write(text.as_bytes()).await.is_ok() {
        // As above: only the end of the process matters.
        let _ = stdin.finish().await;
    }
}

async fn attend(sandbox: &Sandbox, mut output: sandboxvm_manager::OutputStream) -> Result<RunDone, RunFailure> {
    let (mut stdout, mut stderr) = (Capture::new(KEPT), Capture::new(KEPT));
    loop {
        match output.next().await {
            Ok(Some(Output::Stdout(bytes))) => stdout.take(&bytes),
            Ok(Some(Output::Stderr(bytes))) => stderr.take(&bytes),
            Ok(Some(Output::Exited(status))) => return Ok(done(status, stdout, stderr)),
            Ok(Some(Output::Dropped(_))) => {}
            Ok(Some(Output::RunsOn) | None) => return Err(RunFailure::Unfinished),
            Err(error) => return Err(sandbox.explain(error).await.into()),
        }
    }
}

fn done(status: ExitStatus, stdout: Capture, stderr: Capture) -> RunDone {
    RunDone {
        exit_code: exit_code(status),
        stdout_bytes: stdout.total(),
        stderr_bytes: stderr.total(),
        cut_bytes: stdout.cut() + stderr.cut(),
        stdout: stdout.text(),
        stderr: stderr.text(),
        timed_out: status == ExitStatus::TimedOut,
        signal: if let ExitStatus::Signal(signal) = status { Some(signal.get()) } else { None },
    }
}

fn request(arguments: &RunArguments) -> Result<ExecRequest, BadArgument> {
    let argv = match (&arguments.command, &arguments.argv) {
        (Some(command), None) => vec![text("command", "bash")?, text("command", "-lc")?, text("command", command)?],
        (None, Some(argv)) if argv.first().is_some_and(|program| !program.is_empty()) => texts("argv", argv)?,
        (None, Some(_)) => return Err(BadArgument::new("argv", "the program is empty")),
        _ => return Err(BadArgument::new("command", "give either command or argv")),
    };
    let timeout = within("timeout_seconds", arguments.timeout_seconds.unwrap_or(DEFAULT_TIMEOUT), 1, MAX_TIMEOUT)?;
    let variable = |(key, value): (&String, &String)| {
        if key.is_empty() || key.contains('=') {
            return Err(BadArgument::new("env", format_args!("{key:?} is not a name of a variable")));
        }
        text("env", &format!("{key}={value}"))
    };
    let has_input = arguments.stdin.as_ref().is_some_and(|input| !input.is_empty());
    Ok(ExecRequest {
        env: arguments.env.iter().map(variable).collect::<Result<_, _>>()?,
        cwd: arguments.cwd.as_deref().map(|cwd| text("cwd", cwd)).transpose()?,
        user: arguments.user.as_deref().map(|user| text("user", user)).transpose()?,
        stdin: if has_input { StdinSource::Connection } else { StdinSource::Null },
        timeout_ms: Some(timeout * 1000),
        on_disconnect: OnDisconnect::Kill,
        ..ExecRequest::plain(argv)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn requested(mut json: serde_json::Value) -> Result<ExecRequest, BadArgument> {
        json["sandbox"] = "x".into();
        request(&serde_json::from_value(json).unwrap())
    }

    #[test]
    fn a_command_is_the_shells_and_an_argv_is_not() {
        let words = |json| -> Vec<String> {
            let argv = requested(json).unwrap().argv;
            argv.iter().map(|word| String::from_utf8(word.as_bytes().to_vec()).unwrap()).collect()
        };
        assert_eq!(words(json!({"command": "echo $HOME"})), ["bash", "-lc", "echo $HOME"]);
        assert_eq!(words(json!({"argv": ["echo", "$HOME", ""]})), ["echo", "$HOME", ""]);
    }

    #[test]
    fn a_command_has_always_its_time_and_is_killed_with_the_call() {
        let plain = requested(json!({"command": "x"})).unwrap();
        assert_eq!((plain.timeout_ms, plain.on_disconnect), (Some(120_000), OnDisconnect::Kill));
        assert_eq!(plain.stdin, StdinSource::Null);
        let fed = requested(json!({"command": "x", "stdin": "y", "timeout_seconds": 5})).unwrap();
        assert_eq!((fed.timeout_ms, fed.stdin), (Some(5000), StdinSource::Connection));
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for (json, word) in [
            (json!({}), "either command or argv"),
            (json!({"command": "x", "argv": ["x"]}), "either command or argv"),
            (json!({"argv": []}), "argv"),
            (json!({"argv": [""]}), "argv"),
            (json!({"command": "a\u{0}b"}), "command"),
            (json!({"command": "x", "timeout_seconds": 0}), "timeout_seconds"),
            (json!({"command": "x", "timeout_seconds": u64::MAX}), "timeout_seconds"),
            (json!({"command": "x", "env": {"": "y"}}), "env"),
        ] {
            let message = requested(json).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
    }

    #[test]
    fn the_end_is_told_as_a_shell_tells_it() {
        let told = |status| {
            let mut stdout = Capture::new(1);
            stdout.take(b"abcd");
            done(status, stdout, Capture::new(1))
        };
        let killed = told(ExitStatus::Signal(sandboxvm_protocol::agent::SignalNumber::KILL));
        assert_eq!((killed.exit_code, killed.signal, killed.timed_out), (137, Some(9), false));
        assert_eq!((killed.stdout_bytes, killed.cut_bytes), (4, 2));
        let late = told(ExitStatus::TimedOut);
        assert_eq!((late.exit_code, late.timed_out), (124, true));
    }
}
