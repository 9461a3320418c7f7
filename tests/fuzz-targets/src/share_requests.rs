//! The requests of a guest's kernel to a live share, and the records of its agent.

use sandboxvm_share::{Owner, Root, Server, Settings};
use std::{cell::OnceCell, fs, os::unix::fs::symlink, path::Path};
use tempfile::TempDir;

/// Size in bytes of the head of a request, and of an answer.
const REQUEST: usize = 40;
const ANSWER: usize = 16;
/// Requests of one run.
const MOST: usize = 64;
/// The content of the file beside the root.
const SECRET: &[u8] = b"what no guest may see";
/// Requests without an answer (linux/fuse.h).
const FORGET: u32 = 2;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

thread_local! {
    /// A directory with a root in it, and a file beside that. It stays, because making it takes longer than a run.
    static OUTSIDE: OnceCell<TempDir> = const { OnceCell::new() };
}

/// Bytes are requests one behind the other: a code, a node, the length of the body, and the body. Small numbers
/// stand for the numbers that the server has given out, which are random.
pub fn share_requests(data: &[u8]) {
    OUTSIDE.with(|outside| run(outside.get_or_init(|| tempfile::tempdir().expect("it is made")).path(), data));
}

fn run(outside: &Path, mut data: &[u8]) {
    let root = outside.join("root");
    let _ = fs::remove_dir_all(&root);
    fs::create_dir_all(root.join("d")).expect("it is made");
    fs::write(root.join("a"), "a").expect("it is written");
    fs::write(root.join("d/f"), "f").expect("it is written");
    fs::write(outside.join("secret"), SECRET).expect("it is written");
    symlink("../secret", root.join("link")).expect("it is made");
    let read_only = data.first().is_some_and(|byte| byte & 1 != 0);
    data = data.get(1..).unwrap_or_default();
    let server =
        Server::new(Root::open(&root).expect("it is there"), Settings { read_only, owner: Owner { uid: 0, gid: 0 } });
    let knows_it = contains(data, SECRET);
    let mut given = vec![1];
    for name in ["a", "d", "link"] {
        let body = [name.as_bytes(), &[0]].concat();
        note(&mut given, &server.answer(&request(1, 1, &body)).expect("a lookup has an answer"));
    }
    for _ in 0..MOST {
        let Some((head, rest)) = data.split_first_chunk::<4>() else { break };
        let [code, node, low, high] = *head;
        let length = usize::from(u16::from_le_bytes([low, high])).min(rest.len());
        let (body, rest) = rest.split_at(length);
        data = rest;
        // Two codes are of the agent.
        let code = match code {
            0xfe => 0x5356_0001,
            0xff => 0x5356_0002,
            code => u32::from(code),
        };
        let mut body = body.to_vec();
        known(&mut body, &given);
        let node = given.get(usize::from(node)).copied().unwrap_or(u64::from(node));
        let request = request(code, node, &body);
        let Some(answer) = server.answer(&request) else {
            assert!(matches!(code, FORGET | INTERRUPT | BATCH_FORGET), "request {code} has no answer");
            continue;
        };
        assert!(answer.len() >= ANSWER && answer[8..16] == request[8..16], "an answer to another request");
        assert_eq!(u64_at(&answer, 0) & 0xffff_ffff, answer.len() as u64);
        assert!(knows_it || !contains(&answer, SECRET), "request {code} returns a file outside of the root");
        note(&mut given, &answer);
    }
    // Whatever it was, it was in the root.
    let names = fs::read_dir(outside).expect("it is there").count();
    assert_eq!((names, fs::read(outside.join("secret")).expect("it is there")), (2, SECRET.to_vec()));
    if read_only {
        assert_eq!(fs::read(root.join("a")).expect("it is there"), b"a");
        assert_eq!(fs::read_dir(&root).expect("it is there").count(), 3);
    }
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}

fn request(code: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let mut request = vec![0; REQUEST];
    request[..4].copy_from_slice(&u32::try_from(REQUEST + body.len()).unwrap_or(0).to_le_bytes());
    request[4..8].copy_from_slice(&code.to_le_bytes());
    request[8..16].copy_from_slice(&(u64::from(code) << 8 | 7).to_le_bytes());
    request[16..24].copy_from_slice(&node.to_le_bytes());
    request.extend(body);
    request
}

/// Keeps the first field of an answer, which is a node or a handle in many of them.
fn note(given: &mut Vec<u64>, answer: &[u8]) {
    if answer[4..8] == [0; 4] && answer.len() >= ANSWER + 8 && given.len() < 32 {
        given.push(u64_at(answer, ANSWER));
        // CREATE has the handle behind the entry.
        if answer.len() == ANSWER + 128 + 16 {
            given.push(u64_at(answer, ANSWER + 128));
        }
    }
}

/// Replaces the first field if it is a small number.
fn known(body: &mut [u8], given: &[u64]) {
    if let Some(field) = body.first_chunk_mut::<8>()
        && let Some(number) = usize::try_from(u64::from_le_bytes(*field)).ok().and_then(|index| given.get(index))
    {
        *field = number.to_le_bytes();
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}
