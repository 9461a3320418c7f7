//! The output of `--json` has the shape of the golden files of `cli` and `manager`, and
//! docs/json.md describes it. Tests of those two crates check the values.

use sandboxvm_tests::{
    home::{Home, SMALL},
    json_shape::Shape,
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// A listing in docs/json.md, its golden files, and those of another listing whose members it also
/// has.
const LISTINGS: [(&str, &[&str], &[&str]); 16] = [
    ("ls", &["ls.json"], &[]),
    ("inspect", &["inspect.json"], &["ls.json"]),
    ("ps", &["ps.json"], &[]),
    ("snapshot ls", &["snapshot-ls.json"], &[]),
    ("volume ls", &["volume-ls.json"], &[]),
    ("port", &["port.json"], &[]),
    (
        "network show",
        &["network-show.json", "network-show-down.json", "network-show-none.json", "network-show-operator.json"],
        &[],
    ),
    ("network suggest", &["network-suggest.json"], &[]),
    ("stats", &["stats.json"], &[]),
    ("stats SANDBOX", &["stats-of-one.json", "stats-of-new.json"], &[]),
    ("audit verify", &["audit-verify.json"], &[]),
    ("image ls", &["image-ls.json"], &[]),
    ("image inspect", &["image-inspect.json"], &[]),
    ("changes", &["changes.json"], &[]),
    ("prune", &["prune.json", "prune-of-stuck.json"], &[]),
    ("doctor", &["doctor.json", "doctor-of-unusable.json", "doctor-self-test.json"], &[]),
];

fn repository(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn golden(files: &[&str]) -> Shape {
    let parse = |file: &&str| serde_json::from_str(&repository(&format!("cli/tests/golden/{file}"))).expect("JSON");
    let examples: Vec<Value> = files.iter().map(parse).collect();
    Shape::of(&examples)
}

/// Returns the shape of each event in the lines of an audit log.
fn golden_events() -> BTreeMap<String, Shape> {
    let mut lines: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for line in repository("manager/tests/golden/events.jsonl").lines() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        lines.entry(line["event"].as_str().expect("a name").to_owned()).or_default().push(line);
    }
    lines.iter().map(|(event, lines)| (event.clone(), Shape::of(lines))).collect()
}

/// Returns the first cells of the rows of the `number`-th table below a heading, without backticks.
fn table(page: &str, heading: &str, number: usize) -> Vec<[String; 2]> {
    let section = page.split("\n## ").find(|section| section.lines().next() == Some(heading));
    let section = section.unwrap_or_else(|| panic!("docs/json.md has no section {heading:?}"));
    let table = section.split("\n\n").filter(|part| part.starts_with('|')).nth(number);
    let rows = table.unwrap_or_else(|| panic!("{heading} has no table {number}")).lines().skip(2);
    let cells = |row: &str| row.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    rows.map(|row| match cells(row).as_slice() {
        [first, second, meaning] if !meaning.is_empty() => [first.replace('`', ""), second.replace('`', "")],
        _ => panic!("{heading}: expected three cells, of which the last is not empty: {row}"),
    })
    .collect()
}

#[test]
fn the_page_describes_every_member_of_every_listing() {
    let page = repository("docs/json.md");
    // The reasons of ends have a separate golden file, which the page names.
    let described = |files| {
        let mut described = golden(files).described();
        described.retain(|path, _| !path.contains("reason."));
        described
    };
    for (listing, files, base) in LISTINGS {
        let base = if base.is_empty() { BTreeMap::new() } else { described(base) };
        let expected: BTreeSet<[String; 2]> =
            described(files).into_iter().filter(|(path, _)| !base.contains_key(path)).map(Into::into).collect();
        let found: BTreeSet<_> = table(&page, &format!("sandboxvm {listing}"), 0).into_iter().collect();
        assert_eq!(found, expected, "docs/json.md, section of {listing}");
    }
    let events = golden_events();
    let common: BTreeMap<String, String> = events["paused"].described();
    let found: BTreeMap<_, _> = table(&page, "sandboxvm events", 0).into_iter().map(Into::into).collect();
    assert_eq!(found, common, "docs/json.md, members of every event");
    let own = |shape: &Shape| {
        let own = shape.described().into_iter().filter(|(path, _)| !common.contains_key(path));
        let own: Vec<String> = own.map(|(path, types)| format!("{path}: {types}")).collect();
        if own.is_empty() { "none".to_owned() } else { own.join("; ") }
    };
    let expected: BTreeMap<String, String> = events.iter().map(|(event, shape)| (event.clone(), own(shape))).collect();
    let found: BTreeMap<_, _> = table(&page, "sandboxvm events", 1).into_iter().map(Into::into).collect();
    assert_eq!(found, expected, "docs/json.md, events");
}

#[test]
fn listings_of_a_real_sandbox_have_the_shape_of_the_golden_files() {
    let Some(home) = Home::with_kvm() else { return };
    let flags =
        ["-m", SMALL, "--name", "demo", "-e", "A=1", "--ttl", "1h", "--idle", "1h=stop", "-p", "80", "--pids", "64"];
    let sandbox = home.create(&flags);
    let plain = home.create(&["-m", SMALL]);
    let pid = sandbox.exec(["-d", "-i", "--", "cat"]).run().succeeds().out();
    let _ = sandbox.exec(["--user", "nobody", "--timeout", "60s", "--", "sh", "-c", "exit 3"]).run().exits(3);
    let _ = sandbox.exec(["--", "/no/such/program"]).run().exits(127);
    let _ = home.cli(["cp", "demo:/etc/hostname", "-"]).run().succeeds();
    home.snapshot("demo", "kept");
    let _ = home.cli(["pause", &plain.id]).run().succeeds();

    let mut checked = BTreeSet::new();
    let mut check = |listing: &str, arguments: &[&str]| {
        let printed = home.cli(arguments).run().succeeds().json();
        let (_, files, _) = LISTINGS.into_iter().find(|(name, ..)| *name == listing).expect("a listing");
        let differences = golden(files).differences(&printed);
        assert!(differences.is_empty(), "{arguments:?}: {differences:#?}\n{printed:#}");
        // Any shape would match an empty list.
        assert!(printed.as_array().is_none_or(|rows| !rows.is_empty()), "{arguments:?} prints nothing");
        checked.insert(listing.to_owned());
        printed
    };
    let rows = check("ls", &["ls", "--json"]);
    assert_eq!(rows.as_array().map(Vec::len), Some(2), "{rows}");
    let details = check("inspect", &["inspect", "demo", &plain.id]);
    assert_eq!(details[0]["limits"]["processes"], 64, "{details}");
    let processes = check("ps", &["ps", "--json", "demo"]);
    assert_eq!(processes[0]["pid"].to_string(), pid.trim(), "{processes}");
    check("snapshot ls", &["snapshot", "ls", "--json"]);
    let _ = home.cli(["volume", "create", "cache"]).run().succeeds();
    check("volume ls", &["volume", "ls", "--json"]);
    check("volume ls", &["volume", "inspect", "cache"]);
    let _ = home.cli(["volume", "rm", "cache"]).run().succeeds();
    check("port", &["port", "--json", "demo"]);
    check("network show", &["network", "show", "--json", "demo"]);
    check("network suggest", &["network", "suggest", "--json", "demo"]);
    check("stats", &["stats", "--json"]);
    check("stats SANDBOX", &["stats", "--json", "demo"]);
    check("audit verify", &["audit", "verify", "--json"]);
    check("doctor", &["doctor", "--json"]);
    let _ = home.cli(["stop", "-t", "1s", "demo"]).run().succeeds();
    check("ls", &["ls", "--json"]);
    check("inspect", &["inspect", "demo"]);
    let doomed = check("prune", &["prune", "--dry-run", "--json"]);
    assert_eq!(doomed["sandboxes"], serde_json::json!([sandbox.id]), "{doomed}");
    check("prune", &["prune", "--json"]);
    // The test of an image's way through a registry has those of images, and this sandbox has no workspace.
    let others = LISTINGS.iter().filter(|(name, ..)| !name.starts_with("image ") && *name != "changes").count();
    assert_eq!(checked.len(), others, "{checked:?}");

    let golden = golden_events();
    let log = home.cli(["events", "--json"]).run().succeeds().out();
    let mut seen = BTreeSet::new();
    for line in log.lines() {
        let event: Value = serde_json::from_str(line).expect("JSON");
        let name = event["event"].as_str().expect("a name").to_owned();
        let differences = golden.get(&name).unwrap_or_else(|| panic!("no golden line of {line}")).differences(&event);
        assert!(differences.is_empty(), "{line}: {differences:#?}");
        seen.insert(name);
    }
    for name in ["created", "exec", "started", "not_started", "ended", "files", "snapshot_created", "paused", "stopped"]
    {
        assert!(seen.contains(name), "no {name}: {log}");
    }
    plain.remove();
    home.remove_snapshots();
    home.assert_nothing_left();
}
