//! What layers do to each other.

#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they call")]

mod common;

use common::{archive, directory, entry, file, link, symlink, tree};
use proptest::prelude::*;
use sandboxvm_archive::{Entry, Kind};
use sandboxvm_layers::{Layer, Limits, unpack};
use std::collections::BTreeMap;

type Entries = Vec<(Entry, Vec<u8>)>;

fn paths(layers: &[Entries]) -> Vec<String> {
    let layers: Vec<_> = layers.iter().map(|layer| archive(layer)).collect();
    tree(&layers).into_keys().filter(|path| !path.is_empty()).collect()
}

fn refused(layers: &[Entries], message: &str) {
    let layers: Vec<_> = layers.iter().map(|layer| archive(layer)).collect();
    let error = common::image(&layers, &Limits::default()).unwrap_err().to_string();
    assert!(error.contains(message), "{error}");
}

#[test]
fn whiteouts_hide_lower_layers_and_not_their_own_in_any_order() {
    let lower = vec![directory("d"), file("d/old", "1"), directory("d/sub"), file("d/sub/old", "2"), file("f", "3")];
    let upper =
        [file("d/new", "4"), file("d/sub/new", "5"), file("d/.wh..wh..opq", ""), file(".wh.f", ""), file("f", "6")];
    let expected = ["d", "d/new", "d/sub", "d/sub/new", "f"];
    for rotation in 0..upper.len() {
        let mut upper = upper.to_vec();
        upper.rotate_left(rotation);
        assert_eq!(paths(&[lower.clone(), upper.clone()]), expected, "{rotation}");
        upper.reverse();
        assert_eq!(paths(&[lower.clone(), upper]), expected, "{rotation} reversed");
    }
}

#[test]
fn a_whiteout_hides_the_metadata_of_a_directory_that_is_created_again() {
    let lower = vec![directory("d"), file("d/old", "1")];
    for upper in [vec![file(".wh.d", ""), file("d/new", "2")], vec![file("d/new", "2"), file(".wh.d", "")]] {
        let found = tree(&[archive(&lower), archive(&upper)]);
        assert_eq!(found["d"].mode, 0o040_755);
        assert_eq!((found["d"].owner, found["d"].modified), ((0, 0), (0, 0)));
        assert!(!found.contains_key("d/old"));
    }
    let found = tree(&[archive(&lower), archive(&[file("d/new", "2")])]);
    assert_eq!((found["d"].mode, found["d"].owner), (0o040_750, (7, 8)));
}

#[test]
fn working_directory_and_volumes_are_made_where_no_layer_has_them() {
    let layers = [archive(&[directory("srv"), symlink("app", "/srv"), file("f", "1"), symlink("loop", "loop")])];
    let with = |paths: &[&str]| {
        let directories: Vec<_> = paths.iter().map(|path| path.as_bytes().to_vec()).collect();
        let file = tempfile::tempfile().unwrap();
        let layers = layers.iter().map(|layer| Layer { input: &layer[..], format: None, diff_id: None });
        unpack(layers, &directories, file.try_clone().unwrap().into(), &Limits::default(), |_| {}).unwrap();
        common::reader::read(&common::bytes(&file))
    };
    let found = with(&["/app/a/b", "/srv", "/data/x"]);
    assert_eq!((found["data/x"].mode, found["data/x"].owner), (0o040_755, (0, 0)));
    assert_eq!((found["srv/a/b"].mode, found["srv/a/b"].owner), (0o040_755, (0, 0)));
    assert_eq!(found["srv"].mode, 0o040_750, "what a layer has stays as it is");
    // The image is made, and a process that is to start there fails.
    for impossible in ["/f/a", "/loop", "/srv/../x", "/a\0b"] {
        assert_eq!(with(&[impossible]).len(), with(&["/"]).len(), "{impossible:?}");
    }
}

#[test]
fn whiteouts_of_nothing_are_ignored() {
    let upper = vec![file(".wh.x", ""), file("no/such/.wh.y", ""), file("f/.wh.z", ""), file("no/.wh..wh..opq", "")];
    assert_eq!(paths(&[vec![file("f", "1")], upper]), ["f"]);
    assert_eq!(paths(&[vec![file(".wh..wh.plnk/1.2", "x"), file(".wh..wh.aufs", "")]]), [""; 0]);
}

#[test]
fn a_directory_becomes_a_file_and_a_directory_again() {
    let lower = vec![directory("x"), file("x/a", "1")];
    let middle = vec![file("x", "2")];
    let upper = vec![directory("x"), file("x/b", "3")];
    assert_eq!(paths(&[lower.clone(), middle.clone()]), ["x"]);
    assert_eq!(paths(&[lower.clone(), middle.clone(), upper]), ["x", "x/b"]);
    refused(&[lower, middle, vec![file("x/c", "")]], "not a directory");
}

#[test]
fn the_last_of_several_entries_of_a_layer_counts() {
    let found = tree(&[archive(&[file("a", "first"), file("./a", "2"), file("/b", "x"), symlink("b", "a")])]);
    assert_eq!((&found["a"].content[..], found["b"].mode), (&b"2"[..], 0o120_777));
}

#[test]
fn hard_links_share_an_inode_across_layers_and_survive_their_first_name() {
    let lower = vec![file("a", "content"), symlink("s", "nowhere")];
    let upper = vec![link("b", "./a"), link("c", "/b"), link("t", "s"), link("c", "c"), file(".wh.a", "")];
    let found = tree(&[archive(&lower), archive(&upper)]);
    assert_eq!(found.keys().collect::<Vec<_>>(), ["", "b", "c", "s", "t"]);
    assert_eq!((found["b"].inode, found["b"].links, &found["b"].content[..]), (found["c"].inode, 2, &b"content"[..]));
    assert_eq!((found["s"].inode, found["s"].links), (found["t"].inode, 2));
    // A new file of the name does not change the others.
    let found = tree(&[archive(&lower), archive(&upper), archive(&[file("b", "other")])]);
    assert_eq!((&found["c"].content[..], found["c"].links), (&b"content"[..], 1));
}

#[test]
fn hard_links_without_a_file_are_refused() {
    refused(&[vec![link("b", "a")]], "target of the hard link does not exist");
    refused(&[vec![file("a", "")], vec![file(".wh.a", ""), link("b", "a")]], "target of the hard link does not exist");
    refused(&[vec![directory("a"), link("b", "a")]], "target of the hard link is a directory");
    refused(&[vec![link("b", "../a")]], "\"..\"");
}

#[test]
fn symbolic_links_on_a_path_end_in_the_image_or_are_refused() {
    let up = symlink("up", "../../../..");
    assert_eq!(paths(&[vec![up, file("up/etc/passwd", "")]]), ["etc", "etc/passwd", "up"]);
    let loops = vec![symlink("a", "b"), symlink("b", "a"), file("a/x", "")];
    refused(&[loops], "too many symbolic links");
    let mut deep: Entries = (0..50).map(|n| symlink(&format!("l{n}"), &format!("l{}", n + 1))).collect();
    deep.push(file("l0/x", ""));
    refused(&[deep], "too many symbolic links");
    // Each link doubles the number of steps.
    let mut wide: Entries = (1..30).map(|n| symlink(&format!("w{n}"), &format!("w{0}/../w{0}/..", n - 1))).collect();
    wide.extend([symlink("w0", "."), file("w29/x", "")]);
    refused(&[wide], "too many symbolic links");
}

/// What a layer does in the model: a path and what is put there.
#[derive(Debug, Clone)]
enum Change {
    File(String, u32),
    Directory(String, u32),
    Whiteout(String, String),
    Opaque(String),
}

fn change() -> impl Strategy<Value = Change> {
    let name = prop::sample::select(vec!["a", "b", "c"]);
    let path = prop::collection::vec(name, 1..4).prop_map(|names| names.join("/"));
    let above = |path: &str| path.rsplit_once('/').map_or("", |(above, _)| above).to_owned();
    let last = |path: &str| path.rsplit('/').next().unwrap().to_owned();
    prop_oneof![
        3 => (path.clone(), 0..4_u32).prop_map(|(path, id)| Change::File(path, id)),
        3 => (path.clone(), 0..4_u32).prop_map(|(path, id)| Change::Directory(path, id)),
        2 => path.clone().prop_map(move |path| Change::Whiteout(above(&path), last(&path))),
        1 => path.prop_map(Change::Opaque),
    ]
}

/// A file of the model: its owner, and its content unless it is a directory.
type Model = BTreeMap<String, (u32, Option<Vec<u8>>)>;

fn is_below(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
}

/// Applies a layer: first what it hides, then what it has. Fails if it needs a directory where a file is.
fn apply(model: &mut Model, layer: &[Change]) -> Option<()> {
    for change in layer {
        match change {
            Change::Whiteout(above, name) => {
                let hidden = if above.is_empty() { name.clone() } else { format!("{above}/{name}") };
                model.retain(|path, _| *path != hidden && !is_below(path, &hidden));
            }
            Change::Opaque(directory) => model.retain(|path, _| !is_below(path, directory)),
            _ => {}
        }
    }
    for change in layer {
        let (path, id, content) = match change {
            Change::File(path, id) => (path, *id, Some(vec![b'0' + *id as u8; 5000 * *id as usize])),
            Change::Directory(path, id) => (path, *id, None),
            _ => continue,
        };
        for (at, _) in path.match_indices('/') {
            let (_, content) = model.entry(path[..at].to_owned()).or_insert((0, None));
            if content.is_some() {
                return None;
            }
        }
        if content.is_some() || model.get(path).is_some_and(|(_, content)| content.is_some()) {
            model.retain(|other, _| !is_below(other, path));
        }
        model.insert(path.clone(), (id, content));
    }
    Some(())
}

fn packed(layer: &[Change]) -> Vec<u8> {
    let owned = |mut entry: Entry, id: u32| {
        entry.uid = id;
        entry
    };
    let entries: Entries = layer
        .iter()
        .map(|change| match change {
            Change::File(path, id) => {
                let content = vec![b'0' + *id as u8; 5000 * *id as usize];
                (owned(entry(path, Kind::File { size: content.len() as u64, extents: None }), *id), content)
            }
            Change::Directory(path, id) => (owned(entry(path, Kind::Directory), *id), vec![]),
            Change::Whiteout(above, name) => file(&format!("{above}/.wh.{name}"), ""),
            Change::Opaque(path) => file(&format!("{path}/.wh..wh..opq"), ""),
        })
        .collect();
    archive(&entries)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// If both accept the layers, their trees are equal. The model hides first, so it accepts some layers
    /// whose whiteouts come too late.
    #[test]
    fn random_layers_give_the_tree_of_a_plain_model(layers in prop::collection::vec(prop::collection::vec(change(), 0..8), 1..4)) {
        let mut model = Model::new();
        let modelled = layers.iter().try_for_each(|layer| apply(&mut model, layer));
        let archives: Vec<_> = layers.iter().map(|layer| packed(layer)).collect();
        let image = common::image(&archives, &Limits::default());
        prop_assert!(modelled.is_some() || image.is_err());
        let Ok((image, _)) = image else { return Ok(()) };
        let bytes = common::bytes(&image);
        let mut found = common::reader::read(&bytes);
        found.remove("");
        let found: Model = found
            .into_iter()
            .map(|(path, node)| (path, (node.owner.0, (node.mode & 0o040_000 == 0).then_some(node.content))))
            .collect();
        prop_assert_eq!(found, model);
        let again = common::image(&archives, &Limits::default()).unwrap().0;
        prop_assert!(common::bytes(&again) == bytes, "the same layers give other bytes");
    }
}
