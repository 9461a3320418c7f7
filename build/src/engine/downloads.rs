//! The files of `ADD URL`, each downloaded once in a build, into files without a name. What they contain is part of
//! the keys, so it is known before the first step; a file whose digest the Dockerfile states is downloaded only when
//! its step is executed. May not reach a server itself: the machines do, within what the build may reach.

use super::{
    blocking::blocking,
    error::StepProblem,
    machine::{Machines, Owner},
};
use crate::plan::is_repository;
use sandboxvm_archive::{Entry, Kind, Timestamp, Writer};
use sandboxvm_oci::Digest;
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Seek},
};
use tokio::sync::Mutex;

/// Maximum number of URLs of a build.
const MAX_URLS: usize = 100;
/// Maximum size in bytes of all files of a build.
const MAX_BYTES: u64 = 16 << 30;
/// Mode of a file, as docker's.
const MODE: u32 = 0o600;

/// A file at a URL.
#[derive(Debug)]
struct Downloaded {
    file: File,
    size: u64,
    digest: Digest,
    modified: Timestamp,
}

/// The files that a build has downloaded.
#[derive(Debug, Default)]
pub(super) struct Downloads(Mutex<BTreeMap<String, Downloaded>>);

/// Where the archive of a file puts it.
pub(super) struct As<'a> {
    /// Path without a leading slash.
    pub(super) path: &'a str,
    pub(super) owner: Owner,
    pub(super) chmod: Option<u32>,
}

impl Downloads {
    /// Returns the digest of the file at a URL.
    pub(super) async fn digest<M: Machines>(&self, machines: &M, url: &str) -> Result<Digest, StepProblem> {
        let mut known = self.0.lock().await;
        Ok(fetch(&mut known, machines, url).await?.digest)
    }

    /// Writes an archive with the file at a URL.
    ///
    /// # Errors
    /// Fails if the file is not available, or if its digest is not `expected`.
    pub(super) async fn archive<M: Machines>(
        &self,
        machines: &M,
        url: &str,
        expected: Option<Digest>,
        place: As<'_>,
    ) -> Result<File, StepProblem> {
        let mut known = self.0.lock().await;
        let Downloaded { file, size, digest, modified } = fetch(&mut known, machines, url).await?;
        if let Some(expected) = expected.filter(|expected| expected != digest) {
            return Err(fail(url, format!("its digest is {digest}, expected {expected}")));
        }
        let (mut file, kind) = (file.try_clone()?, Kind::File { size: *size, extents: None });
        let As { path, owner: Owner { uid, gid }, chmod } = place;
        let (mode, modified, path) = (chmod.unwrap_or(MODE), *modified, path.as_bytes().to_vec());
        let entry = Entry { path, kind, mode, uid, gid, modified, attributes: Vec::new() };
        let mut writer = Writer::new(machines.scratch()?);
        blocking(move || {
            file.rewind()?;
            writer.begin(&entry)?;
            let mut buffer = vec![0; 64 << 10];
            loop {
                match file.read(&mut buffer)? {
                    0 => break,
                    count => writer.content(&buffer[..count])?,
                }
            }
            writer.end()?;
            Ok::<_, StepProblem>(writer.finish()?)
        })
        .await
    }
}

/// Returns the file at a URL, which is downloaded unless it is known.
async fn fetch<'k, M: Machines>(
    known: &'k mut BTreeMap<String, Downloaded>,
    machines: &M,
    url: &str,
) -> Result<&'k mut Downloaded, StepProblem> {
    if is_repository(url) {
        return Err(StepProblem::Repository(url.to_owned()));
    }
    if !known.contains_key(url) {
        if known.len() >= MAX_URLS {
            return Err(fail(url, format!("the build has more than {MAX_URLS} URLs")));
        }
        let left = MAX_BYTES.saturating_sub(known.values().map(|file| file.size).sum());
        let file = machines.scratch()?;
        let about = machines.download(url, left, file.try_clone()?).await.map_err(|error| fail(url, error))?;
        let downloaded = Downloaded { file, size: about.size, digest: about.digest, modified: about.modified };
        known.insert(url.to_owned(), downloaded);
    }
    known.get_mut(url).ok_or_else(|| io::Error::other("no file was downloaded").into())
}

/// Returns the name that a file at a URL has in a directory, as docker takes it: the last part of the path.
pub(super) fn name(url: &str) -> Result<String, StepProblem> {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let after = path.split_once("://").map_or(path, |(_, rest)| rest);
    let last = after.split_once('/').map_or("", |(_, path)| path).rsplit('/').next().unwrap_or_default();
    match percent_encoding::percent_decode_str(last).decode_utf8() {
        Ok(name) if !matches!(&*name, "" | "." | "..") && !name.contains(['/', '\0']) => Ok(name.into_owned()),
        _ => Err(fail(url, "its path does not end with the name of a file, so the target has to state one")),
    }
}

fn fail(url: &str, problem: impl ToString) -> StepProblem {
    StepProblem::Download { url: url.to_owned(), problem: problem.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_last_part_of_the_path() {
        let name = |url: &str| name(url).ok();
        assert_eq!(name("https://a.example/b/c.tar.gz?x=/y#z").as_deref(), Some("c.tar.gz"));
        assert_eq!(name("https://a.example/a%20b").as_deref(), Some("a b"));
        assert_eq!(name("https://a.example/100%").as_deref(), Some("100%"));
        for bad in ["https://a.example", "https://a.example/", "https://a.example/%2e%2E", "https://a.example/a%2Fb"] {
            assert_eq!(name(bad), None, "{bad}");
        }
        assert_eq!(name("https://a.example/%ff"), None);
    }
}
