//! Three-way merge of texts, line by line. Owns what conflicts: changes of both sides that touch and
//! differ. It is made from two differences that take nearly linear time, whatever the texts contain.

use crate::review::lines::{hunks, lines};
use imara_diff::Hunk;
use std::ops::Range;

/// Returns `base` with the changes of both sides, or `None` if they conflict.
pub(crate) fn merge(base: &[u8], ours: &[u8], theirs: &[u8]) -> Option<Vec<u8>> {
    let (base, ours, theirs) = (lines(base), lines(ours), lines(theirs));
    let (ours_hunks, theirs_hunks) = (hunks(&base, &ours), hunks(&base, &theirs));
    let (mut one, mut two) = (&ours_hunks[..], &theirs_hunks[..]);
    let (mut merged, mut at) = (Vec::new(), 0);
    let mut push = |lines: &[&[u8]], range: Range<u32>| {
        lines[range.start as usize..range.end as usize].iter().for_each(|line| merged.extend_from_slice(line));
    };
    while let Some(begin) = one.iter().take(1).chain(two.first()).map(|hunk| hunk.before.start).min() {
        // All hunks of both sides that touch each other.
        let (mut end, mut count_one, mut count_two) = (begin, 0, 0);
        loop {
            let next = |hunks: &[Hunk], count: usize| {
                hunks.get(count).filter(|hunk| hunk.before.start <= end).map(|hunk| hunk.before.end)
            };
            if let Some(reached) = next(one, count_one) {
                count_one += 1;
                end = end.max(reached);
            } else if let Some(reached) = next(two, count_two) {
                count_two += 1;
                end = end.max(reached);
            } else {
                break;
            }
        }
        let (group_one, rest_one) = one.split_at(count_one);
        let (group_two, rest_two) = two.split_at(count_two);
        (one, two) = (rest_one, rest_two);
        push(&base, at..begin);
        let range_one = side(group_one, begin..end);
        let range_two = side(group_two, begin..end);
        match (range_one, range_two) {
            (Some(range), None) => push(&ours, range),
            (None, Some(range)) => push(&theirs, range),
            (Some(one), Some(two)) => {
                let text_one = &ours[one.start as usize..one.end as usize];
                if *text_one != theirs[two.start as usize..two.end as usize] {
                    return None;
                }
                push(&ours, one);
            }
            (None, None) => return None,
        }
        at = end;
    }
    let all = u32::try_from(base.len()).unwrap_or(u32::MAX);
    push(&base, at..all);
    Some(merged)
}

/// Returns the lines of a side that stand for lines of the base, if that side has changed them.
fn side(hunks: &[Hunk], base: Range<u32>) -> Option<Range<u32>> {
    let (first, last) = (hunks.first()?, hunks.last()?);
    let begin = first.after.start - (first.before.start - base.start);
    Some(begin..last.after.end + (base.end - last.before.end))
}

#[cfg(test)]
mod tests {
    use super::merge;
    use proptest::prelude::*;

    #[test]
    fn changes_that_do_not_touch_are_joined() {
        let base = b"1\n2\n3\n4\n5\n6\n";
        let merged = merge(base, b"one\n2\n3\n4\n5\n6\n", b"1\n2\n3\n4\n5\nsix\nseven");
        assert_eq!(merged.as_deref(), Some(&b"one\n2\n3\n4\n5\nsix\nseven"[..]));
        assert_eq!(merge(base, b"1\n2\nx\n4\n5\n6\n", b"1\n2\ny\n4\n5\n6\n"), None);
        assert_eq!(merge(base, b"1\n2\nx\n4\n5\n6\n", b"1\n2\n3\ny\n5\n6\n"), None);
        let same = b"1\n2\nx\n4\n5\n6\n";
        assert_eq!(merge(base, same, same).as_deref(), Some(&same[..]));
        assert_eq!(merge(b"", b"a\n", b"b\n"), None);
        assert_eq!(merge(base, b"", base).as_deref(), Some(&b""[..]));
    }

    fn text() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(0_u8..4, 0..12)
            .prop_map(|lines| lines.iter().flat_map(|line| [b'a' + line, b'\n']).collect())
    }

    proptest! {
        #[test]
        fn a_side_without_changes_leaves_the_other(base in text(), other in text()) {
            prop_assert_eq!(merge(&base, &base, &other), Some(other.clone()));
            prop_assert_eq!(merge(&base, &other, &base), Some(other.clone()));
            prop_assert_eq!(merge(&base, &other, &other), Some(other));
        }

        #[test]
        fn both_sides_are_equal(base in text(), one in text(), two in text()) {
            prop_assert_eq!(merge(&base, &one, &two), merge(&base, &two, &one));
        }
    }
}
