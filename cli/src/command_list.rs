//! The list of commands that `sandboxvm --help` shows, in groups: clap has headings for options alone. The one-line texts are
//! those of the commands themselves; this module owns the groups and their order.

use clap::Command;
use std::fmt::Write;

/// Every command that is not hidden, in the order in which they are shown.
const GROUPS: [(&str, &[&str]); 8] = [
    (
        "Sandboxes",
        &["run", "create", "ls", "inspect", "stats", "cp", "port", "network", "stop", "pause", "resume", "rm"],
    ),
    ("Processes", &["exec", "ps", "logs", "attach", "wait", "kill"]),
    ("Snapshots", &["snapshot", "fork", "reset"]),
    ("Workspaces", &["changes", "apply", "discard"]),
    ("Volumes", &["volume"]),
    ("Images", &["image", "build", "commit", "template"]),
    ("Server", &["serve", "key", "mcp"]),
    ("Host", &["doctor", "prune", "events", "audit", "completion"]),
];
/// Width of the longest name, and two spaces.
const NAME_COLUMN: usize = 12;

/// Returns `root` with a help text that lists its commands in groups.
pub(crate) fn in_groups(root: Command) -> Command {
    let list = list(&root);
    root.help_template(format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{list}Options:\n{{options}}{{after-help}}"
    ))
    .after_help("`sandboxvm COMMAND --help` describes a command and its options.")
}

fn list(root: &Command) -> String {
    // The texts of the commands are made only here; see `crate::commands::Command`.
    let mut root = root.clone();
    root.build();
    let mut text = String::new();
    for (heading, names) in GROUPS {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{heading}:");
        for name in names {
            let about = root.find_subcommand(name).and_then(Command::get_about);
            let about = about.map(ToString::to_string).unwrap_or_default();
            let _ = writeln!(text, "  {name:<NAME_COLUMN$}{about}");
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cli;
    use clap::CommandFactory;

    #[test]
    fn groups_hold_every_visible_command_once() {
        let root = Cli::command();
        let mut listed: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        let visible = root.get_subcommands().filter(|command| !command.is_hide_set());
        let mut expected: Vec<&str> = visible.map(Command::get_name).collect();
        listed.sort_unstable();
        expected.sort_unstable();
        assert_eq!(listed, expected);
    }

    #[test]
    fn each_command_takes_one_line_of_80_columns() {
        let text = list(&Cli::command());
        for line in text.lines().filter(|line| line.starts_with(' ')) {
            assert!(line.len() <= 80 && line.len() > NAME_COLUMN + 2, "{line}");
        }
    }

    #[test]
    fn help_text_has_headings_and_options() {
        let help = in_groups(Cli::command()).render_help().to_string();
        for text in [
            "Usage: sandboxvm",
            "\nSandboxes:\n  run",
            "\nHost:\n  doctor",
            "\nOptions:\n  -h, --help",
            "-V, --version",
        ] {
            assert!(help.contains(text), "{text} is missing in:\n{help}");
        }
    }
}
