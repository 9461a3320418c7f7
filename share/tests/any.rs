//! Any bytes as requests, and random operations compared with a model.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use common::*;
use proptest::prelude::*;
use sandboxvm_share::{Owner, Root, Server, Settings};
use std::fs;

fn any_request() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![Just(b"a\0".to_vec()), Just(b"..\0".to_vec()), Just(b"d\0f\0".to_vec())];
    // Mostly numbers of answers: see `known`.
    let small = prop_oneof![1 => Just(0u64), 2 => Just(1), 6 => 2u64..8, 1 => any::<u64>()];
    let bytes = prop::collection::vec(any::<u8>(), 0..200);
    let body = prop_oneof![bytes, (prop::collection::vec(0u8..3, 0..100), name).prop_map(|(a, b)| [a, b].concat())];
    (0u32..52, any::<u64>(), small, body).prop_map(|(code, unique, node, body)| {
        let length = 40 + body.len() as u32;
        fields![length, code, unique, node, 0u32, 0u32, 0u32, 0u32, &body[..]]
    })
}

/// Replaces a small number by the node of an earlier answer, if there was one.
fn known(request: &mut [u8], nodes: &[u64]) {
    let index = (u64_at(request, 16) as usize).wrapping_sub(2);
    if let (0..6, Some(node)) = (index, nodes.get(index % nodes.len().max(1))) {
        request[16..24].copy_from_slice(&node.to_le_bytes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_requests_are_answered_once_or_have_no_answer(requests in prop::collection::vec(any_request(), 1..40)) {
        let outside = tempfile::tempdir().unwrap();
        let root = outside.path().join("root");
        fs::create_dir_all(root.join("d")).unwrap();
        fs::write(root.join("a"), "a").unwrap();
        fs::write(root.join("d/f"), "f").unwrap();
        fs::write(outside.path().join("secret"), "secret").unwrap();
        std::os::unix::fs::symlink("../secret", root.join("link")).unwrap();
        let settings = Settings { read_only: false, owner: Owner { uid: 0, gid: 0 } };
        let server = Server::new(Root::open(&root).unwrap(), settings);
        let look_up = |parent: u64, name: &str| {
            let name = fields![name];
            let request = fields![40 + name.len() as u32, 1u32, 2u64, parent, 0u32, 0u32, 0u32, 0u32, &name[..]];
            u64_at(&server.answer(&request).unwrap(), 16)
        };
        let mut nodes = vec![look_up(1, "a"), look_up(1, "d"), look_up(1, "link")];
        nodes.push(look_up(nodes[1], "f"));
        for mut request in requests {
            known(&mut request, &nodes);
            let code = request[4];
            let answer = server.answer(&request);
            prop_assert!(answer.is_some() || matches!(code, 2 | 36 | 42), "{code} has no answer");
            if let Some(answer) = answer {
                prop_assert_eq!(u64_at(&answer, 8), u64_at(&request, 8));
                prop_assert_eq!(u64_at(&answer, 0) & 0xffff_ffff, answer.len() as u64);
            }
        }
        // Whatever it was, it was in the root.
        prop_assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 2);
        prop_assert_eq!(fs::read(outside.path().join("secret")).unwrap(), b"secret");
    }
}

/// As fsx does it: random writes, sizes and holes of one file, compared with a copy in memory after each,
/// as the guest and as the host read it.
#[test]
fn random_operations_leave_what_they_would_leave_on_the_host() {
    const LARGEST: u64 = 300_000;
    let root = tempfile::tempdir().unwrap();
    let mut guest = Guest::with(root.path(), "rw");
    let (file, handle) = guest.create(ROOT, "f", libc::O_RDWR, 0o644).unwrap();
    let mut model: Vec<u8> = Vec::new();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    for round in 0..600u32 {
        let (at, length) = (random(LARGEST), random(40_000) + 1);
        let (begin, end) = (at as usize, (at + length) as usize);
        match random(4) {
            0 | 1 => {
                let data = vec![round as u8; length as usize];
                assert_eq!(guest.write(file.node, handle, at, &data).unwrap(), length as u32);
                model.resize(model.len().max(end), 0);
                model[begin..end].copy_from_slice(&data);
            }
            2 => {
                guest.set(file.node, 8, at, 0, 0).unwrap();
                model.resize(begin, 0);
            }
            _ => {
                // Punch a hole, and keep the size.
                guest.ask(43, file.node, &fields![handle, at, length, 3u32, 0u32]).unwrap();
                let end = end.min(model.len());
                if begin < end {
                    model[begin..end].fill(0);
                }
            }
        }
        let from = random(LARGEST) as usize;
        let expected = model.get(from..).unwrap_or_default();
        let expected = &expected[..expected.len().min(50_000)];
        assert!(guest.read(file.node, handle, from as u64, 50_000).unwrap() == expected, "round {round}");
        if round % 50 == 0 {
            assert!(fs::read(root.path().join("f")).unwrap() == model, "round {round}");
            assert_eq!(guest.attributes(file.node).unwrap().0, model.len() as u64);
        }
    }
    assert!(fs::read(root.path().join("f")).unwrap() == model);
}
