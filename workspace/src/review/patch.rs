//! Changes as a patch that `git apply --binary` applies. Owns its form: headers, quoted names, object
//! names and binary contents. Directories without files have no form in it.

use super::{
    compare::Change,
    content::{self, Sources},
    layer::State,
    lines,
};
use crate::index::Kind;
use flate2::{Compression, read::ZlibEncoder};
use sha1::{Digest, Sha1};
use std::io::{self, Read, Write};

/// Name of an object that does not exist.
const NONE: &str = "0000000000000000000000000000000000000000";

/// Writes one change. Returns false if it has no form in a patch.
pub(crate) fn write(sources: &Sources, change: &Change, out: &mut impl Write) -> io::Result<bool> {
    let is_file = |state: &&State| state.kind != Kind::Directory;
    let (old, new) = (change.old.as_ref().filter(is_file), change.new.as_ref().filter(is_file));
    match (old, new) {
        (None, None) => Ok(false),
        // git deletes a file before it creates one of another type.
        (Some(old), Some(new)) if mode(old) / 0o1000 != mode(new) / 0o1000 => {
            one(sources, &change.path, &change.path, Some(old), None, out)?;
            one(sources, &change.path, &change.path, None, Some(new), out)?;
            Ok(true)
        }
        (Some(old), Some(new)) if old.has_same_content(new) && mode(old) == mode(new) && change.from.is_none() => {
            Ok(false)
        }
        (old, new) => {
            let from = change.from.as_deref().unwrap_or(&change.path);
            one(sources, from, &change.path, old, new, out)?;
            Ok(true)
        }
    }
}

fn one(
    sources: &Sources,
    from: &[u8],
    to: &[u8],
    old: Option<&State>,
    new: Option<&State>,
    out: &mut impl Write,
) -> io::Result<()> {
    let (a, b) = (quoted(b"a/", from), quoted(b"b/", to));
    write_all(out, &[b"diff --git ", &a, b" ", &b, b"\n"])?;
    match (old, new) {
        (None, Some(new)) => writeln!(out, "new file mode {:o}", mode(new))?,
        (Some(old), None) => writeln!(out, "deleted file mode {:o}", mode(old))?,
        (Some(old), Some(new)) if mode(old) != mode(new) => {
            writeln!(out, "old mode {:o}\nnew mode {:o}", mode(old), mode(new))?;
        }
        _ => {}
    }
    if from != to {
        let (from, to) = (quoted(b"", from), quoted(b"", to));
        write_all(out, &[b"similarity index 100%\nrename from ", &from, b"\nrename to ", &to, b"\n"])?;
    }
    if let (Some(old), Some(new)) = (old, new)
        && old.has_same_content(new)
    {
        return Ok(());
    }
    let (old_name, new_name) = (object(sources, old)?, object(sources, new)?);
    let texts = sources.text(old)?.zip(sources.text(new)?);
    write!(out, "index {old_name}..{new_name}")?;
    if let (Some(old), Some(_)) = (old, new) {
        write!(out, " {:o}", mode(old))?;
    }
    writeln!(out)?;
    let Some((before, after)) = texts else {
        writeln!(out, "GIT binary patch")?;
        binary(sources, new, out)?;
        return binary(sources, old, out);
    };
    if before == after {
        return Ok(());
    }
    let a = if old.is_some() { a } else { b"/dev/null".to_vec() };
    let b = if new.is_some() { b } else { b"/dev/null".to_vec() };
    // A tab ends a name with spaces, for patch(1).
    let end = |name: &[u8]| if name.contains(&b' ') { &b"\t\n"[..] } else { b"\n" };
    write_all(out, &[b"--- ", &a, end(&a), b"+++ ", &b, end(&b)])?;
    lines::unified(&before, &after, out)
}

fn write_all(out: &mut impl Write, parts: &[&[u8]]) -> io::Result<()> {
    parts.iter().try_for_each(|part| out.write_all(part))
}

/// Returns the mode that git records.
fn mode(state: &State) -> u32 {
    match state.kind {
        Kind::Symlink(_) => 0o120_000,
        _ if state.mode & 0o100 != 0 => 0o100_755,
        _ => 0o100_644,
    }
}

/// Returns the name of the object that git makes of a content.
fn object(sources: &Sources, state: Option<&State>) -> io::Result<String> {
    let Some(state) = state else { return Ok(NONE.to_owned()) };
    let mut hash = Sha1::new();
    hash.update(format!("blob {}\0", content::size(Some(state))));
    let mut reader = sources.of(Some(state));
    let mut buffer = [0; 16 << 10];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            count => hash.update(&buffer[..count]),
        }
    }
}

/// Writes a content, compressed and in lines of at most 52 bytes in git's base 85.
fn binary(sources: &Sources, state: Option<&State>, out: &mut impl Write) -> io::Result<()> {
    const LINE: usize = 52;
    writeln!(out, "literal {}", content::size(state))?;
    let mut encoder = ZlibEncoder::new(sources.of(state), Compression::default());
    loop {
        let mut line = [0; LINE];
        let mut filled = 0;
        while filled < LINE {
            match encoder.read(&mut line[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        if filled == 0 {
            return out.write_all(b"\n");
        }
        let len = u8::try_from(filled).unwrap_or(0);
        let mut text = vec![if len <= 26 { b'A' + len - 1 } else { b'a' + len - 27 }];
        line[..filled.next_multiple_of(4)].chunks(4).for_each(|chunk| text.extend(base85(chunk)));
        text.push(b'\n');
        out.write_all(&text)?;
    }
}

fn base85(chunk: &[u8]) -> [u8; 5] {
    const DIGITS: &[u8; 85] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~";
    let mut number = chunk.iter().fold(0_u32, |number, byte| number << 8 | u32::from(*byte));
    let mut digits = [0; 5];
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS[(number % 85) as usize];
        number /= 85;
    }
    digits
}

/// Returns a name as git shows it: in quotes, with escapes, if it has other than plain characters.
fn quoted(prefix: &[u8], path: &[u8]) -> Vec<u8> {
    let is_plain = |byte: &u8| (b' '..0x7f).contains(byte) && !b"\"\\".contains(byte);
    let name = [prefix, path].concat();
    if name.iter().all(is_plain) {
        return name;
    }
    let mut text = vec![b'"'];
    for byte in name {
        match byte {
            b'"' | b'\\' => text.extend([b'\\', byte]),
            b'\n' => text.extend(b"\\n"),
            b'\t' => text.extend(b"\\t"),
            byte if is_plain(&byte) => text.push(byte),
            byte => text.extend(format!("\\{byte:03o}").bytes()),
        }
    }
    text.push(b'"');
    text
}
