//! `events`: shows the audit logs of sandboxes.

use crate::{environment, failure::Failure, process_io::signals::Signals, runtime, stdio};
use clap::Args;
use sandboxvm_manager::{
    Manager, SandboxId,
    audit::{Line, Trail},
    printable,
};
use std::{collections::HashMap, time::Duration};

/// Interval at which a log is read with --follow.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Show the audit logs: what was done with sandboxes, and by whom
#[derive(Debug, Args)]
#[command(
    after_help = "Events are shown oldest first. The log of a sandbox is kept for 30 days after the sandbox was removed; \
                        then `prune` removes it. It contains names of environment variables, never their values."
)]
pub(crate) struct Events {
    /// Name or ID of a sandbox, or the full ID of a removed one [default: all sandboxes]
    sandbox: Option<String>,
    /// Keep showing new events until interrupted
    #[arg(short, long)]
    follow: bool,
    /// Print the lines of the logs, each a JSON object
    #[arg(long, help_heading = "Output")]
    json: bool,
}

impl Events {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let manager = environment::manager()?;
        let only = self.sandbox.as_deref().map(|reference| trail(&manager, reference)).transpose()?;
        let mut reader = Reader::of(manager, only);
        self.print(reader.next()?)?;
        if self.follow { reader.follow(|lines| self.print(lines)) } else { Ok(0) }
    }

    fn print(&self, lines: Vec<(Line, String)>) -> Result<(), Failure> {
        let text = lines.into_iter().map(|(line, text)| if self.json { text + "\n" } else { show(&line) });
        stdio::print(&text.collect::<String>())
    }
}

/// Returns the log of a sandbox; of a removed sandbox, only by its full ID.
pub(crate) fn trail(manager: &Manager, reference: &str) -> Result<Trail, Failure> {
    match manager.find(reference) {
        Ok(sandbox) => Ok(sandbox.trail()),
        Err(error) => match SandboxId::try_from(reference.to_owned()).map(|id| manager.trail(&id)) {
            Ok(trail) if trail.exists() => Ok(trail),
            _ => Err(error.into()),
        },
    }
}

/// Reads the lines that were not read before.
pub(crate) struct Reader {
    manager: Manager,
    only: Option<Trail>,
    /// Offset up to which each log was read.
    read: HashMap<SandboxId, u64>,
}

impl Reader {
    /// Reads one log, or those of all sandboxes.
    pub(crate) fn of(manager: Manager, only: Option<Trail>) -> Self {
        Self { manager, only, read: HashMap::new() }
    }

    /// Prints new lines until the command is interrupted, or its reader is gone.
    pub(crate) fn follow(mut self, print: impl Fn(Vec<(Line, String)>) -> Result<(), Failure>) -> Result<u8, Failure> {
        runtime::block_on(async {
            let mut signals = Signals::catch()?;
            let hung_up = stdio::hung_up();
            tokio::pin!(hung_up);
            loop {
                tokio::select! {
                    () = &mut hung_up => return Err(stdio::reader_left()),
                    () = tokio::time::sleep(LOOK_EVERY) => print(self.next()?)?,
                    _ = signals.next() => return Ok(0),
                }
            }
        })
    }

    pub(crate) fn next(&mut self) -> Result<Vec<(Line, String)>, Failure> {
        let trails = match &self.only {
            Some(trail) => vec![trail.clone()],
            None => self.manager.trails()?,
        };
        let mut lines = Vec::new();
        for trail in trails {
            let offset = self.read.entry(trail.sandbox().clone()).or_default();
            loop {
                let (text, end) = trail.read_from(*offset)?;
                if end == *offset {
                    break;
                }
                *offset = end;
                // Shows every line that can be read; `audit verify` reports damage.
                let texts = String::from_utf8_lossy(&text);
                lines
                    .extend(texts.lines().filter_map(|text| Some((serde_json::from_str(text).ok()?, text.to_owned()))));
            }
        }
        lines.sort_by_key(|(line, _): &(Line, String)| line.time);
        Ok(lines)
    }
}

/// Formats one line: the time, the sandbox, the user and process, and the event as it is in the log.
fn show(line: &Line) -> String {
    let mut event = serde_json::to_value(&line.event).unwrap_or_default();
    let name = event.as_object_mut().and_then(|members| members.remove("event"));
    let name = name.as_ref().and_then(|name| name.as_str()).unwrap_or_default().to_owned();
    let details = match event.as_object() {
        Some(members) => members
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| format!(" {key}={value}"))
            .collect::<String>(),
        None => String::new(),
    };
    let time = humantime::format_rfc3339_millis(line.time);
    let by = format!("uid={} pid={}", line.by.uid, line.by.pid);
    format!("{time} {} {} {name}{}\n", line.sandbox, by, printable(&details).replace('\n', "\\n"))
}
