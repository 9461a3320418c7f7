//! Lists a page at a time: so many, and the ID of the last, which is the token of the page behind it.

use crate::channel::{failure::Failure, request::PageOf};

/// As E2B's API has it.
const MAX_PAGE: usize = 100;

/// The page of `found` behind a token, and the token of the next page.
pub(super) fn page<'f, T>(
    found: &'f [T],
    page: &PageOf,
    id: impl Fn(&T) -> &str,
) -> Result<(Option<String>, &'f [T]), Failure> {
    let limit = page.limit.unwrap_or(MAX_PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(Failure::invalid(format!("invalid limit: must be between 1 and {MAX_PAGE}")));
    }
    let start = match page.token.as_deref() {
        None => 0,
        Some(last) => match found.iter().position(|item| id(item) == last) {
            Some(at) => at + 1,
            None => {
                return Err(Failure::invalid("invalid nextToken: the list has changed; start again without a token"));
            }
        },
    };
    let rest = &found[start..];
    let page = &rest[..limit.min(rest.len())];
    let next = page.last().filter(|_| rest.len() > limit).map(|last| id(last).to_owned());
    Ok((next, page))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_each_other_and_the_last_names_no_next() {
        let found = ["a", "b", "c"];
        let of = |limit, token: Option<&str>| {
            let asked = PageOf { limit, token: token.map(str::to_owned) };
            page(&found, &asked, |id| id).map(|(next, page)| (next, page.to_vec()))
        };
        assert_eq!(of(Some(2), None).unwrap(), (Some("b".to_owned()), vec!["a", "b"]));
        assert_eq!(of(Some(2), Some("b")).unwrap(), (None, vec!["c"]));
        for (limit, token) in [(Some(0), None), (Some(101), None), (None, Some("x"))] {
            of(limit, token).unwrap_err();
        }
    }
}
