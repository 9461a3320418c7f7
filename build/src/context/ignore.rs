//! `.dockerignore`: patterns with `*`, `?`, `[...]`, `**` and exceptions with `!`. May not touch a
//! file.

/// Maximum number of patterns.
const MAX_PATTERNS: usize = 10_000;

/// Why a `.dockerignore` is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IgnoreError {
    /// A limit.
    #[error(".dockerignore has too many patterns: the maximum is 10000, in 1 MiB")]
    TooLong,
    /// A set of characters has no end.
    #[error("invalid pattern {0:?} in .dockerignore: expected a ] after [")]
    Pattern(String),
}

/// The patterns of a `.dockerignore`. The last one that matches decides.
#[derive(Debug, Clone, Default)]
pub struct Ignore {
    patterns: Vec<(bool, Vec<Vec<u8>>)>,
}

impl Ignore {
    /// Parses a `.dockerignore`.
    ///
    /// # Errors
    /// Every [`IgnoreError`].
    pub fn parse(text: &str) -> Result<Self, IgnoreError> {
        if text.len() > 1 << 20 {
            return Err(IgnoreError::TooLong);
        }
        let mut patterns = Vec::new();
        // As docker, which takes files of editors that begin with a byte order mark.
        for line in text.strip_prefix('\u{feff}').unwrap_or(text).lines() {
            if line.starts_with('#') || line.trim().is_empty() {
                continue;
            }
            let line = line.trim();
            let (keeps, pattern) = line.strip_prefix('!').map_or((false, line), |rest| (true, rest.trim()));
            if pattern.matches('[').count() > pattern.matches(']').count() {
                return Err(IgnoreError::Pattern(line.into()));
            }
            let mut parts = Vec::new();
            for part in pattern.split('/') {
                match part {
                    "" | "." => {}
                    ".." => drop(parts.pop()),
                    part => parts.push(part.as_bytes().to_vec()),
                }
            }
            if !parts.is_empty() {
                patterns.push((keeps, parts));
            }
            if patterns.len() > MAX_PATTERNS {
                return Err(IgnoreError::TooLong);
            }
        }
        Ok(Self { patterns })
    }

    /// Says whether a path, or a directory above it, is excluded.
    #[must_use]
    pub fn excludes(&self, path: &[u8]) -> bool {
        let parts: Vec<_> = path.split(|byte| *byte == b'/').collect();
        let mut is_excluded = false;
        for (keeps, pattern) in &self.patterns {
            if *keeps == is_excluded && (1..=parts.len()).any(|count| path_matches(pattern, &parts[..count])) {
                is_excluded = !keeps;
            }
        }
        is_excluded
    }

    /// Says whether a file in an excluded directory may be kept.
    #[must_use]
    pub fn has_exceptions(&self) -> bool {
        self.patterns.iter().any(|(keeps, _)| *keeps)
    }
}

/// Matches the parts of a path. Its time is the product of both lengths.
pub(crate) fn path_matches(pattern: &[Vec<u8>], path: &[&[u8]]) -> bool {
    // reach[i]: the patterns so far match the first i parts.
    let mut reach = vec![false; path.len() + 1];
    reach[0] = true;
    for part in pattern {
        let mut next = vec![false; path.len() + 1];
        if part == b"**" {
            let mut any = false;
            for (i, reached) in reach.iter().enumerate() {
                any |= reached;
                next[i] = any;
            }
        } else {
            for (i, name) in path.iter().enumerate() {
                next[i + 1] = reach[i] && name_matches(part, name);
            }
        }
        reach = next;
    }
    reach[path.len()]
}

/// Matches one name, as path.Match of Go does. Its time is the product of both lengths.
pub(super) fn name_matches(pattern: &[u8], name: &[u8]) -> bool {
    let mut reach = vec![false; name.len() + 1];
    reach[0] = true;
    let mut at = 0;
    while at < pattern.len() {
        let mut next = vec![false; name.len() + 1];
        if pattern[at] == b'*' {
            let mut any = false;
            for (i, reached) in reach.iter().enumerate() {
                any |= reached;
                next[i] = any;
            }
            at += 1;
        } else {
            let (accepts, after) = one(pattern, at);
            for (i, byte) in name.iter().enumerate() {
                next[i + 1] = reach[i] && accepts(*byte);
            }
            at = after;
        }
        reach = next;
    }
    reach[name.len()]
}

/// Reads `?`, a set, an escaped character or a character. Returns what it accepts and its end.
fn one(pattern: &[u8], at: usize) -> (impl Fn(u8) -> bool + '_, usize) {
    let (ranges, negated, end): (Vec<(u8, u8)>, bool, usize) = match pattern[at] {
        b'?' => (vec![(0, 255)], false, at + 1),
        b'\\' if at + 1 < pattern.len() => (vec![(pattern[at + 1], pattern[at + 1])], false, at + 2),
        b'[' => match pattern[at + 1..].iter().skip(1).position(|byte| *byte == b']') {
            Some(length) => {
                let set = &pattern[at + 1..at + 2 + length];
                let (negated, set) = set.strip_prefix(b"^").map_or((false, set), |set| (true, set));
                let mut ranges = Vec::new();
                let mut i = 0;
                while i < set.len() {
                    let is_range = i + 2 < set.len() && set[i + 1] == b'-';
                    ranges.push((set[i], if is_range { set[i + 2] } else { set[i] }));
                    i += if is_range { 3 } else { 1 };
                }
                (ranges, negated, at + 3 + length)
            }
            None => (vec![(b'[', b'[')], false, at + 1),
        },
        byte => (vec![(byte, byte)], false, at + 1),
    };
    (move |byte| ranges.iter().any(|(low, high)| (*low..=*high).contains(&byte)) != negated, end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_matching_pattern_decides() {
        let ignore = Ignore::parse("# c\n*.log\n**/node_modules\n/build\n!build/keep\n[a-c]?.x\n").unwrap();
        for path in ["a.log", "x/y/node_modules", "node_modules/z", "build/out", "b1.x"] {
            assert!(ignore.excludes(path.as_bytes()), "{path}");
        }
        for path in ["x/a.log", "build/keep", "build/keep/a", "d1.x", "abc.x"] {
            assert!(!ignore.excludes(path.as_bytes()), "{path}");
        }
        assert!(Ignore::parse("[a").is_err());
        assert!(Ignore::parse("*\n!a").unwrap().excludes(b"b"));
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_pattern() {
        assert!(Ignore::parse("\u{feff}secret\n").unwrap().excludes(b"secret"));
    }
}
