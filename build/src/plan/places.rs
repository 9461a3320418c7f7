//! Paths of images, and what the sources of `ADD` are. Only looks at text.

/// Returns true for a source of `ADD` that is not a file of the context.
pub(crate) fn is_remote(source: &str) -> bool {
    ["http://", "https://", "git@", "ssh://", "git://"].iter().any(|scheme| source.starts_with(scheme))
}

/// Returns true for a source of `ADD` that docker takes for a git repository.
pub(crate) fn is_repository(source: &str) -> bool {
    let is_file = source.starts_with("http://") || source.starts_with("https://");
    is_remote(source) && (!is_file || source.split('#').next().is_some_and(|url| url.ends_with(".git")))
}

/// Returns `below` at the place that `base` says, without `.` and `..`. A slash at its end stays.
pub(crate) fn joined(base: &str, below: &str) -> String {
    let is_directory = below.ends_with('/') || below.ends_with("/.") || below == "." || below == "..";
    let whole = if below.starts_with('/') || base.is_empty() { below.to_owned() } else { format!("{base}/{below}") };
    let mut parts = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let root = if whole.starts_with('/') { "/" } else { "" };
    let slash = if is_directory && !parts.is_empty() { "/" } else { "" };
    format!("{root}{}{slash}", parts.join("/"))
}
