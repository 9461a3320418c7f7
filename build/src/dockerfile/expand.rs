//! Words of an instruction: where they end, their quotes, and the variables in them. May not read
//! the environment of this process.

/// Maximum size in bytes of an expanded word.
const MAX_WORD: usize = 1 << 20;
/// Maximum depth of `${a:-${b:-...}}`.
const MAX_DEPTH: usize = 16;

/// Why a word cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpandError {
    /// A quote or brace has no end.
    #[error("missing {0:?}")]
    Unterminated(char),
    /// Another modifier than those of docker's reference.
    #[error("invalid variable {0:?}: expected NAME, or NAME with one of the modifiers :- - :+ + :? ?")]
    Modifier(String),
    /// The author of the Dockerfile demands a value.
    #[error("variable {0} has no value: {1}")]
    Required(String, String),
    /// A limit.
    #[error("the value is longer than 1 MiB or nested deeper than 16 levels")]
    TooLong,
}

/// Splits text at spaces outside of quotes. The words keep their quotes.
///
/// # Errors
/// Fails if a quote has no end.
pub fn split(text: &str, escape: char) -> Result<Vec<String>, ExpandError> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if quote.is_none() && c.is_whitespace() {
            if !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
            continue;
        }
        word.push(c);
        match quote {
            _ if c == escape && quote != Some('\'') => word.extend(chars.next()),
            Some(q) if c == q => quote = None,
            None if c == '"' || c == '\'' => quote = Some(c),
            _ => {}
        }
    }
    if let Some(quote) = quote {
        return Err(ExpandError::Unterminated(quote));
    }
    if !word.is_empty() {
        words.push(word);
    }
    Ok(words)
}

/// Removes the quotes of a word and replaces its variables by what `lookup` returns.
///
/// # Errors
/// Every [`ExpandError`].
pub fn expand(word: &str, escape: char, lookup: &dyn Fn(&str) -> Option<String>) -> Result<String, ExpandError> {
    let chars: Vec<char> = word.chars().collect();
    let mut scan = Scan { chars: &chars, at: 0, escape, lookup, budget: MAX_WORD };
    scan.word(None, 0)
}

/// Replaces the variables of a here-document, whose quotes are content. An escaped `$` is a `$`.
///
/// # Errors
/// Every [`ExpandError`].
pub fn expand_document(
    text: &str,
    escape: char,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<String, ExpandError> {
    let chars: Vec<char> = text.chars().collect();
    let mut scan = Scan { chars: &chars, at: 0, escape, lookup, budget: MAX_WORD };
    let mut out = String::new();
    while let Some(c) = scan.take() {
        scan.spend(c.len_utf8())?;
        match c {
            '$' => {
                let value = scan.variable(0)?;
                scan.spend(value.len())?;
                out.push_str(&value);
            }
            c if c == escape && scan.peek() == Some('$') => out.extend(scan.take()),
            c => out.push(c),
        }
    }
    Ok(out)
}

struct Scan<'a> {
    chars: &'a [char],
    at: usize,
    escape: char,
    lookup: &'a dyn Fn(&str) -> Option<String>,
    budget: usize,
}

impl Scan<'_> {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn take(&mut self) -> Option<char> {
        let c = self.peek();
        self.at += usize::from(c.is_some());
        c
    }

    fn spend(&mut self, bytes: usize) -> Result<(), ExpandError> {
        self.budget = self.budget.checked_sub(bytes).ok_or(ExpandError::TooLong)?;
        Ok(())
    }

    /// Reads until `end`, or the end of the word.
    fn word(&mut self, end: Option<char>, depth: usize) -> Result<String, ExpandError> {
        if depth > MAX_DEPTH {
            return Err(ExpandError::TooLong);
        }
        let mut out = String::new();
        let mut is_quoted = false;
        loop {
            let Some(c) = self.take() else {
                let missing = if is_quoted { Some('"') } else { end };
                return missing.map_or(Ok(out), |c| Err(ExpandError::Unterminated(c)));
            };
            self.spend(c.len_utf8())?;
            match c {
                c if Some(c) == end && !is_quoted => return Ok(out),
                '"' => is_quoted = !is_quoted,
                '\'' if !is_quoted => loop {
                    match self.take() {
                        Some('\'') => break,
                        Some(c) => out.push(c),
                        None => return Err(ExpandError::Unterminated('\'')),
                    }
                },
                '$' => {
                    let value = self.variable(depth)?;
                    self.spend(value.len())?;
                    out.push_str(&value);
                }
                c if c == self.escape => match self.take() {
                    Some(next) if is_quoted && next != '"' && next != '$' && next != self.escape => {
                        out.extend([c, next]);
                    }
                    Some(next) => out.push(next),
                    None => out.push(c),
                },
                c => out.push(c),
            }
        }
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(c) = self.peek().filter(|c| c.is_ascii_alphanumeric() || *c == '_') {
            name.push(c);
            self.at += 1;
        }
        name
    }

    fn variable(&mut self, depth: usize) -> Result<String, ExpandError> {
        if self.peek() != Some('{') {
            let name = self.name();
            return Ok(if name.is_empty() { "$".into() } else { (self.lookup)(&name).unwrap_or_default() });
        }
        self.at += 1;
        let name = self.name();
        let value = (self.lookup)(&name);
        let wrong = |rest: &str| Err(ExpandError::Modifier(format!("${{{name}{rest}")));
        if name.is_empty() {
            return wrong("");
        }
        let mut first = self.take().ok_or(ExpandError::Unterminated('}'))?;
        if first == '}' {
            return Ok(value.unwrap_or_default());
        }
        let mut is_set = value.is_some();
        if first == ':' {
            is_set = value.as_ref().is_some_and(|value| !value.is_empty());
            first = self.take().ok_or(ExpandError::Unterminated('}'))?;
        }
        if !matches!(first, '-' | '+' | '?') {
            return wrong(&first.to_string());
        }
        let word = self.word(Some('}'), depth + 1)?;
        match first {
            '-' => Ok(if is_set { value.unwrap_or_default() } else { word }),
            '+' => Ok(if is_set { word } else { String::new() }),
            _ if is_set => Ok(value.unwrap_or_default()),
            _ => Err(ExpandError::Required(name, word)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(word: &str) -> Result<String, ExpandError> {
        let lookup = |name: &str| match name {
            "A" => Some("a b".to_owned()),
            "E" => Some(String::new()),
            _ => None,
        };
        expand(word, '\\', &lookup)
    }

    #[test]
    fn words_follow_the_dockerfile_reference() {
        let cases = [
            ("$A-${A}x", "a b-a bx"),
            ("'$A'", "$A"),
            ("\"$A\\\"\"", "a b\""),
            ("\\$A", "$A"),
            ("${N:-x}", "x"),
            ("${E:-x}", "x"),
            ("${E-x}", ""),
            ("${A:+y}", "y"),
            ("${N:+y}", ""),
            ("${N:-${A}}", "a b"),
            ("$N", ""),
            ("a$", "a$"),
            ("\"\\n\"", "\\n"),
        ];
        for (word, expected) in cases {
            assert_eq!(value(word).as_deref(), Ok(expected), "{word}");
        }
        assert_eq!(value("${A"), Err(ExpandError::Unterminated('}')));
        assert_eq!(value("'a"), Err(ExpandError::Unterminated('\'')));
        assert!(matches!(value("${A%x}"), Err(ExpandError::Modifier(_))));
        assert!(matches!(value("${N:?must}"), Err(ExpandError::Required(..))));
        assert_eq!(value(&"${N:-".repeat(99)), Err(ExpandError::TooLong));
    }

    #[test]
    fn quotes_of_a_document_are_content() {
        let lookup = |_: &str| Some("v".to_owned());
        let text = expand_document("don't \"$A\" \\n \\$A ${A}\n", '\\', &lookup);
        assert_eq!(text.unwrap(), "don't \"v\" \\n $A v\n");
    }

    #[test]
    fn spaces_in_quotes_do_not_split_words() {
        assert_eq!(split("a=1 b=\"x y\" c='z \\' d\\ e", '\\').unwrap(), ["a=1", "b=\"x y\"", "c='z \\'", "d\\ e"]);
    }
}
