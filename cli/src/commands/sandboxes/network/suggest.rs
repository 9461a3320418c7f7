//! `network suggest`: prints rules for what a sandbox used and was refused, as part of a policy file. Applies nothing.

use crate::{
    commands::host::events::{self, Reader},
    environment,
    failure::Failure,
    output::{json, size},
    stdio,
};
use clap::Args;
use sandboxvm_manager::{SuggestedRule, Suggester, Suggestion, one_line};
use std::fmt::Write;

/// Print the smallest set of rules that covers what a sandbox used
#[derive(Debug, Args)]
#[command(
    after_help = "The output can be pasted into a policy file. Programs in the sandbox chose the names: read them before you \
                  allow them. What was refused is commented out. Nothing is applied."
)]
pub(crate) struct Suggest {
    /// Name or ID of a sandbox, or the full ID of a removed one
    sandbox: String,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
}

impl Suggest {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let manager = environment::manager()?;
        let trail = events::trail(&manager, &self.sandbox)?;
        let mut reader = Reader::of(manager, Some(trail));
        let mut suggester = Suggester::default();
        for (line, _) in reader.next()? {
            suggester.add(&line.event);
        }
        let suggestion = suggester.suggestion();
        stdio::print(&if self.json { json::pretty(&suggestion)? } else { text(&self.sandbox, &suggestion) })?;
        Ok(0)
    }
}

/// Formats rules as a part of a policy file. A rule has only characters that are harmless in it.
fn text(sandbox: &str, suggestion: &Suggestion) -> String {
    let mut text = format!("# What sandbox {} used. Programs in it chose the names.\n", one_line(sandbox));
    if suggestion.used.is_empty() {
        text.push_str("# It used nothing.\n");
    }
    text.push_str("allow = [\n");
    for SuggestedRule { rule, count, bytes_out, bytes_in, .. } in &suggestion.used {
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "    {:<40}  # {}, {} out, {} in",
            format!("\"{rule}\","),
            times(*count),
            size::of(*bytes_out),
            size::of(*bytes_in)
        );
    }
    if !suggestion.refused.is_empty() {
        text.push_str("    # Refused; not allowed unless you remove the #.\n");
    }
    for SuggestedRule { rule, count, reason, .. } in &suggestion.refused {
        let reason = reason.as_deref().map(|reason| format!(": {}", one_line(reason))).unwrap_or_default();
        let _ = writeln!(text, "    # {:<38}  # {}{reason}", format!("\"{rule}\","), times(*count));
    }
    text.push_str("]\n");
    if suggestion.without_rule > 0 {
        let _ = writeln!(text, "# {} more have names for which there is no rule.", suggestion.without_rule);
    }
    if suggestion.omitted > 0 {
        let _ = writeln!(text, "# {} more were not logged, because there were too many.", suggestion.omitted);
    }
    text
}

fn times(count: u64) -> String {
    if count == 1 { "once".to_owned() } else { format!("{count} times") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::json::tests::assert_golden;
    use sandboxvm_manager::PolicyFile;

    fn example() -> Suggestion {
        let rule = |text: &str, count, bytes_in, reason: Option<&str>| SuggestedRule {
            rule: text.parse().unwrap(),
            count,
            bytes_out: 1200,
            bytes_in,
            reason: reason.map(str::to_owned),
        };
        Suggestion {
            used: vec![rule("index.example", 12, 3 << 20, None), rule("git.example:22/tcp", 1, 100, None)],
            refused: vec![rule("xn--bcher-kva.example", 3, 0, Some("no rule allows it\n\"*\""))],
            without_rule: 4,
            omitted: 2,
        }
    }

    #[test]
    fn json_is_pinned() {
        assert_golden("network-suggest.json", &json::pretty(&example()).unwrap());
    }

    #[test]
    fn suggestion_is_a_policy_file_without_what_was_refused() {
        let text = text("demo", &example());
        let file: PolicyFile = toml::from_str(&text).unwrap();
        assert_eq!(file.allow, ["index.example", "git.example:22/tcp"]);
        assert!(text.contains("# 12 times, 1.2 KiB out, 3.0 MiB in\n"), "{text}");
        assert!(
            text.contains("# \"xn--bcher-kva.example\",") && text.contains("3 times: no rule allows it\\n"),
            "{text}"
        );
        assert!(text.contains("# 4 more have names") && text.contains("# 2 more were not logged"), "{text}");
        let none = super::text("a\nallow = [\"*\"]", &Suggestion::default());
        assert_eq!(toml::from_str::<PolicyFile>(&none).unwrap(), PolicyFile::default());
    }
}
