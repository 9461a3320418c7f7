//! Differences of two texts, line by line. Owns the form of a unified diff, as git and patch(1) read it.
//! It takes a time that is nearly linear in the size of both, whatever they contain.

use imara_diff::{Algorithm, Diff, Hunk, InternedInput};
use std::io::{self, Write};

/// Number of unchanged lines around a change.
const CONTEXT: u32 = 3;

/// Returns the lines of a text with their ends.
pub(crate) fn lines(text: &[u8]) -> Vec<&[u8]> {
    text.split_inclusive(|byte| *byte == b'\n').collect()
}

/// Returns where two texts differ, as ranges of lines.
pub(crate) fn hunks(before: &[&[u8]], after: &[&[u8]]) -> Vec<Hunk> {
    let mut input = InternedInput::default();
    input.update_before(before.iter().copied());
    input.update_after(after.iter().copied());
    let mut diff = Diff::compute(Algorithm::Histogram, &input);
    diff.postprocess_lines(&input);
    diff.hunks().collect()
}

/// Returns the numbers of added and of removed lines.
pub(crate) fn count(before: &[u8], after: &[u8]) -> (u64, u64) {
    let hunks = hunks(&lines(before), &lines(after));
    hunks.iter().fold((0, 0), |(added, removed), hunk| {
        (added + u64::from(hunk.after.end - hunk.after.start), removed + u64::from(hunk.before.end - hunk.before.start))
    })
}

/// Writes the hunks of a unified diff.
pub(crate) fn unified(before: &[u8], after: &[u8], out: &mut impl Write) -> io::Result<()> {
    let (before, after) = (lines(before), lines(after));
    let hunks = hunks(&before, &after);
    let mut rest = &hunks[..];
    while let Some(first) = rest.first() {
        // Hunks whose context meets are one.
        let meet = |pair: &[Hunk]| pair[1].before.start - pair[0].before.end <= 2 * CONTEXT;
        let count = 1 + rest.windows(2).take_while(|pair| meet(pair)).count();
        let (group, others) = rest.split_at(count);
        rest = others;
        let last = &group[count - 1];
        let begin = first.before.start.saturating_sub(CONTEXT);
        let end = (last.before.end + CONTEXT).min(u32::try_from(before.len()).unwrap_or(u32::MAX));
        let after_begin = first.after.start - (first.before.start - begin);
        let after_end = last.after.end + (end - last.before.end);
        writeln!(out, "@@ -{} +{} @@", range(begin, end), range(after_begin, after_end))?;
        let mut at = begin;
        for hunk in group {
            write_lines(b' ', &before, at..hunk.before.start, out)?;
            write_lines(b'-', &before, hunk.before.clone(), out)?;
            write_lines(b'+', &after, hunk.after.clone(), out)?;
            at = hunk.before.end;
        }
        write_lines(b' ', &before, at..end, out)?;
    }
    Ok(())
}

/// Returns a range of lines as a hunk states it. An empty one begins at the line before it.
fn range(begin: u32, end: u32) -> String {
    match end - begin {
        0 => format!("{begin},0"),
        1 => format!("{}", begin + 1),
        count => format!("{},{count}", begin + 1),
    }
}

fn write_lines(sign: u8, lines: &[&[u8]], range: std::ops::Range<u32>, out: &mut impl Write) -> io::Result<()> {
    for line in &lines[range.start as usize..range.end as usize] {
        out.write_all(&[sign])?;
        out.write_all(line)?;
        if !line.ends_with(b"\n") {
            out.write_all(b"\n\\ No newline at end of file\n")?;
        }
    }
    Ok(())
}
