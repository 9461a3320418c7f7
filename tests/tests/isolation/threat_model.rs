//! The threat model promises nothing that no test attacks: every test it names exists, and every promise names one.

use std::{fs, path::Path};

/// Where tests of the tree are named: `path/of/file.rs::name_of_test`.
fn named(line: &str) -> Vec<(&str, &str)> {
    let quoted = line.split('`').skip(1).step_by(2);
    quoted.filter_map(|text| text.split_once(".rs::")).collect()
}

#[test]
fn every_promise_is_attacked_by_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace");
    let text = fs::read_to_string(root.join("docs/threat-model.md")).expect("the page is there");
    let table = text.split("## What is promised").nth(1).and_then(|rest| rest.split("\n## ").next());
    let rows: Vec<&str> =
        table.expect("the page has promises").lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() > 20, "{} promises", rows.len());
    for row in rows {
        assert!(!named(row).is_empty(), "nothing attacks this: {row}");
    }
    for (file, name) in text.lines().flat_map(named) {
        let path = root.join(format!("{file}.rs"));
        let source = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let declared = source.lines().collect::<Vec<_>>().windows(3).any(|lines| {
            let declares =
                |line: &str| line.trim_start().trim_start_matches("async ").starts_with(&format!("fn {name}("));
            let is_test = |line: &str| {
                ["#[test]", "#[tokio::test", "proptest!", "#[ignore"]
                    .iter()
                    .any(|mark| line.trim_start().starts_with(mark))
            };
            declares(lines[2]) && (is_test(lines[1]) || is_test(lines[0]) || lines[0].trim_start().starts_with("#!["))
        });
        assert!(declared, "{} has no test {name}", path.display());
    }
}
