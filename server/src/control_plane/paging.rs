//! Lists a page at a time: so many, and in `x-next-token` the ID of the last, which is the token of the page behind it.

use super::error::ApiError;
use axum::http::{HeaderMap, HeaderValue};

/// As E2B's API has it.
const MAX_PAGE: usize = 100;

/// The page of `found` behind `token`, and the headers it is answered with.
pub(super) fn page<'f, T>(
    found: &'f [T],
    limit: Option<usize>,
    token: Option<&str>,
    id: impl Fn(&T) -> &str,
) -> Result<(HeaderMap, &'f [T]), ApiError> {
    let limit = limit.unwrap_or(MAX_PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(ApiError::bad(format!("invalid limit: must be between 1 and {MAX_PAGE}")));
    }
    let start = match token {
        None => 0,
        Some(last) => match found.iter().position(|item| id(item) == last) {
            Some(at) => at + 1,
            None => return Err(ApiError::bad("invalid nextToken: the list has changed; start again without a token")),
        },
    };
    let rest = &found[start..];
    let page = &rest[..limit.min(rest.len())];
    let mut headers = HeaderMap::new();
    if let (true, Some(last)) = (rest.len() > limit, page.last())
        && let Ok(value) = HeaderValue::from_str(id(last))
    {
        headers.insert("x-next-token", value);
    }
    Ok((headers, page))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_each_other_and_the_last_names_no_next() {
        let found = ["a", "b", "c"];
        let (headers, first) = page(&found, Some(2), None, |id| id).unwrap();
        assert_eq!((first, headers["x-next-token"].to_str().unwrap()), (&found[..2], "b"));
        let (headers, second) = page(&found, Some(2), Some("b"), |id| id).unwrap();
        assert_eq!((second, headers.len()), (&found[2..], 0));
        for (limit, token) in [(Some(0), None), (Some(101), None), (None, Some("x"))] {
            page(&found, limit, token, |id| id).unwrap_err();
        }
    }
}
