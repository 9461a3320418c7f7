//! Texts that both sides changed, joined. Reads the host's file as it is now.

use crate::{
    apply::merge::merge,
    beneath::Root,
    index::Kind,
    review::{Review, content::MAX_TEXT, layer::State},
};
use rustix::io::Errno;
use std::{
    fs::File,
    io::{self, Read},
};

/// Returns the text of a file of the host, if it is one.
pub(super) fn host_text(root: &Root, path: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let file = match root.file(path) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::INVAL | Errno::XDEV) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let mut bytes = Vec::new();
    File::from(file).take(MAX_TEXT + 1).read_to_end(&mut bytes)?;
    let is_text = bytes.len() as u64 <= MAX_TEXT && !bytes.iter().take(8000).any(|byte| *byte == 0);
    Ok(is_text.then_some(bytes))
}

/// Joins the changes of the sandbox and of the host, if all are texts and they do not conflict.
pub(crate) fn merge_with_host(
    review: &Review,
    root: &Root,
    path: &[u8],
    old: &State,
    new: &State,
) -> io::Result<Option<Vec<u8>>> {
    if !matches!((&old.kind, &new.kind), (Kind::File(_), Kind::File(_))) {
        return Ok(None);
    }
    let (base, theirs) = (review.sources().text(Some(old))?, review.sources().text(Some(new))?);
    let (Some(base), Some(theirs), Some(ours)) = (base, theirs, host_text(root, path)?) else { return Ok(None) };
    Ok(merge(&base, &ours, &theirs))
}
