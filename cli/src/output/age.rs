//! How an age is shown.

use std::time::Duration;

/// Formats an age in its largest unit.
pub(crate) fn age(age: Duration) -> String {
    format!("{} ago", in_one_unit(age))
}

/// Formats a time in its largest unit.
pub(crate) fn in_one_unit(time: Duration) -> String {
    let seconds = time.as_secs();
    let (number, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{number} {unit}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_one_unit() {
        let texts: Vec<String> = [0, 1, 119, 7200, 86_400 * 3].map(|s| age(Duration::from_secs(s))).into();
        assert_eq!(texts, ["0 seconds ago", "1 second ago", "1 minute ago", "2 hours ago", "3 days ago"]);
    }
}
