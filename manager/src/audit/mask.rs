//! Masks the values of environment variables in text that is logged beside them.

/// Minimum length in bytes of a value that is masked. A shorter one occurs in too much other text,
/// and is too short to be a secret.
const SHORTEST: usize = 6;
const MASKED: &str = "***";

/// The values to mask.
#[derive(Debug)]
pub(crate) struct Mask {
    /// Longest first, because one may be part of another.
    values: Vec<String>,
}

impl Mask {
    /// Takes the values of `KEY=VALUE` entries.
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
    fn values_are_masked_anywhere_in_text() {
        let entries: [&[u8]; 4] = [b"TOKEN=s3cret-value", b"PART=s3cret", b"SHORT=ab", b"NONE"];
        let mask = Mask::of(entries.into_iter());
        assert_eq!(mask.apply("curl -H s3cret-value"), "curl -H ***");
        assert_eq!(mask.apply("s3cret/ab"), "***/ab");
        assert_eq!(mask.apply("NONE"), "NONE");
    }
}
