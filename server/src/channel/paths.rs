//! How a path of a client is put to an agent: the front asks with it, and the launcher compares a signed one with what is asked.

use sandboxvm_manager::FilePath;

/// A path for the agent, which takes one that does not begin at the root from the user's home.
pub(crate) fn agent_path(text: &str) -> Result<FilePath, String> {
    let text = match text {
        "" => ".",
        text if text.starts_with('~') => below_home(text)?,
        text => text,
    };
    FilePath::try_from(text).map_err(|error| error.to_string())
}

/// What is below the user's home, of a path that does not begin at the root.
pub(crate) fn below_home(text: &str) -> Result<&str, String> {
    match text.strip_prefix('~') {
        None => Ok(text),
        Some("" | "/") => Ok("."),
        Some(rest) => rest
            .strip_prefix('/')
            .map(|rest| rest.trim_start_matches('/'))
            .map(|rest| if rest.is_empty() { "." } else { rest })
            .ok_or_else(|| "the home of another user cannot be named by ~; use its path".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_begins_at_the_root_or_at_home() {
        let of = |text| agent_path(text).map(|path| String::from_utf8(path.as_bytes().to_vec()).unwrap());
        for (text, expected) in [
            ("/etc/x", "/etc/x"),
            ("x/y", "x/y"),
            ("", "."),
            ("~", "."),
            ("~/", "."),
            ("~/x", "x"),
            ("~//etc/passwd", "etc/passwd"),
            ("a~b", "a~b"),
        ] {
            assert_eq!(of(text), Ok(expected.to_owned()), "{text}");
        }
        assert!(of("~root/x").is_err() && of("a\0b").is_err() && of(&"x".repeat(5000)).is_err());
    }
}
