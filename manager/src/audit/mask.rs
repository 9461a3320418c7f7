//! Takes the values of environment variables out of what is logged beside them.

/// Shorter values are found in too much that is not them; whoever has such a secret has none.
const SHORTEST: usize = 6;
const MASKED: &str = "***";

/// Values that must not be seen.
#[derive(Debug)]
pub(crate) struct Mask {
    /// The longest first: one may be part of another.
    values: Vec<String>,
}

impl Mask {
    /// Of `KEY=VALUE` each.
    pub(crate) fn of<'a>(entries: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut values: Vec<String> = entries
            .filter_map(|entry| {
                let equals = entry.iter().position(|byte| *byte == b'=')?;
                Some(String::from_utf8_lossy(&entry[equals + 1..]).into_owned())
            })
            .filter(|value| value.len() >= SHORTEST)
            .collect();
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        Self { values }
    }

    pub(crate) fn apply(&self, text: &str) -> String {
        self.values.iter().fold(text.to_owned(), |text, value| text.replace(value.as_str(), MASKED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_masked_wherever_they_are() {
        let entries: [&[u8]; 4] = [b"TOKEN=s3cret-value", b"PART=s3cret", b"SHORT=ab", b"NONE"];
        let mask = Mask::of(entries.into_iter());
        assert_eq!(mask.apply("curl -H s3cret-value"), "curl -H ***");
        assert_eq!(mask.apply("s3cret/ab"), "***/ab");
        assert_eq!(mask.apply("NONE"), "NONE");
    }
}
