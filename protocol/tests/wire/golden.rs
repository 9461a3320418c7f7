//! The golden files: the exact bytes of every frame header and of every message variant, each in
//! the file of the version that first had it (`wire-v1.txt` and so on), and of the status file
//! (`status-v1.txt`). Both directions are tested: this build writes these bytes, and it reads them.

use crate::samples::{self, Sample, WireMessage};
use sandboxvm_protocol::{
    agent,
    frame::{FrameDecoder, FrameKind, HEADER_LEN, Wire},
    vmm,
};
use std::{collections::BTreeMap, fmt::Write as _, path::PathBuf};

const WIRE_HEADER: &str = "\
# One line per message variant and frame kind: `wire version type/label hex-of-the-whole-frame`.
# These bytes are spoken between builds of different ages: a running sandbox or a snapshot outlives an upgrade.
# New lines at the end of an enum are fine. A line that CHANGES or GOES means that an older peer misreads us: raise
# `version` of that WIRE, keep reading the old one, and add a golden file of the new version beside this one. What a new
# version brings has a file of its own.
# Regenerate with UPDATE_GOLDEN=1 cargo test -p sandboxvm-protocol.
";

const STATUS_HEADER: &str = "\
# Content of status.json, one line per phase, host mode and reason: `label json`. Programs read this file, and a new
# manager reads the file of an old VMM: lines may be added, not changed. Regenerate with UPDATE_GOLDEN=1.
";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String does not fail");
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| {
            let digits = std::str::from_utf8(pair).expect("hex digits");
            u8::from_str_radix(digits, 16).expect("hex digits")
        })
        .collect()
}

/// Versions of the wires. Each has a golden file with its new messages.
const VERSIONS: [u8; 8] = [1, 2, 3, 4, 5, 6, 7, 8];

fn wire_file(version: u8) -> String {
    format!("wire-v{version}.txt")
}

fn wire_name(wire: Wire, since: u8) -> String {
    format!("{} v{since}", std::str::from_utf8(&wire.magic).expect("magics are ASCII"))
}

fn message_lines<T: WireMessage>(wire: Wire, type_name: &str, cap: usize, samples: &[Sample<T>], into: &mut Lines) {
    for sample in samples {
        let mut frame = Vec::new();
        wire.append_message(&mut frame, &sample.message, cap).expect("samples are below the cap");
        let covers = sample.covers.join(" ");
        let name = wire_name(wire, sample.message.since());
        into.push((format!("{name} {type_name}/{}", sample.label), hex(&frame), covers));
    }
}

/// Label, content, and variants that the sample shows.
type Lines = Vec<(String, String, String)>;

fn wire_lines() -> Lines {
    let mut lines = Lines::new();
    for wire in [agent::WIRE, vmm::WIRE] {
        for (label, kind) in [
            ("message", FrameKind::Message),
            ("stdin", FrameKind::Stdin),
            ("stdout", FrameKind::Stdout),
            ("stderr", FrameKind::Stderr),
        ] {
            // As `variants!`, this fails to compile if FrameKind gets another kind.
            match kind {
                FrameKind::Message | FrameKind::Stdin | FrameKind::Stdout | FrameKind::Stderr => {}
            }
            let header = wire.header(kind, 0x1234).expect("fits the length field");
            lines.push((format!("{} header/{label}", wire_name(wire, wire.oldest)), hex(&header), String::new()));
        }
    }
    message_lines(agent::WIRE, "HostMessage", agent::MAX_HOST_MESSAGE, &samples::host_messages(), &mut lines);
    message_lines(agent::WIRE, "AgentMessage", agent::MAX_AGENT_MESSAGE, &samples::agent_messages(), &mut lines);
    message_lines(vmm::WIRE, "LaunchConfig", vmm::MAX_MESSAGE, &samples::launch_configs_v1(), &mut lines);
    message_lines(vmm::WIRE, "LaunchConfig", vmm::MAX_MESSAGE, &samples::launch_configs(), &mut lines);
    message_lines(vmm::WIRE, "ControlRequest", vmm::MAX_MESSAGE, &samples::control_requests(), &mut lines);
    message_lines(vmm::WIRE, "VmmMessage", vmm::MAX_MESSAGE, &samples::vmm_messages(), &mut lines);
    lines
}

fn status_lines() -> Lines {
    samples::statuses()
        .into_iter()
        .map(|(label, status)| (label, serde_json::to_string(&status).expect("a status is JSON"), String::new()))
        .collect()
}

fn golden_path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn read_wires() -> BTreeMap<String, String> {
    VERSIONS.iter().flat_map(|version| read_golden(&wire_file(*version), 3)).collect()
}

/// Returns every line of `name` by its label, which is its first `label_words` words.
fn read_golden(name: &str, label_words: usize) -> BTreeMap<String, String> {
    let path = golden_path(name);
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("cannot read {}: {error}; UPDATE_GOLDEN=1 writes it", path.display()));
    text.lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| {
            let cut = line.match_indices(' ').nth(label_words - 1).map(|(at, _)| at).expect("a label and content");
            (line[..cut].to_owned(), line[cut + 1..].to_owned())
        })
        .collect()
}

fn compare(name: &str, header: &str, label_words: usize, lines: &Lines) {
    if std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1") {
        let mut text = header.to_owned();
        for (label, content, _) in lines {
            writeln!(text, "{label} {content}").expect("writing to a String does not fail");
        }
        std::fs::write(golden_path(name), text).expect("the golden file can be written");
    }
    let mut golden = read_golden(name, label_words);
    let mut changed = String::new();
    let mut added = String::new();
    for (label, content, _) in lines {
        match golden.remove(label) {
            Some(pinned) if pinned == *content => {}
            Some(pinned) => {
                writeln!(changed, "  {label}\n    pinned {pinned}\n    now    {content}").expect("infallible")
            }
            None => writeln!(added, "  {label} {content}").expect("infallible"),
        }
    }
    let gone: String = golden.keys().map(|label| format!("  {label}\n")).collect();
    assert!(
        changed.is_empty() && gone.is_empty(),
        "{name}: bytes that older builds rely on changed:\n{changed}gone:\n{gone}\
         An older peer would misread this. Either undo it (append variants and fields of new variants only), or raise \
         the wire's `version`, keep reading the old one, and regenerate with UPDATE_GOLDEN=1."
    );
    assert!(
        added.is_empty(),
        "{name} lacks lines:\n{added}An older peer must not meet them unasked: `Message::since` says which version \
         has them. Run UPDATE_GOLDEN=1 cargo test -p \
         sandboxvm-protocol and commit the file."
    );
}

#[test]
fn the_wires_match_the_golden_bytes() {
    for version in VERSIONS {
        let mut lines = wire_lines();
        lines.retain(|(label, ..)| label.contains(&format!(" v{version} ")));
        compare(&wire_file(version), WIRE_HEADER, 3, &lines);
    }
    assert!([agent::WIRE, vmm::WIRE].iter().all(|wire| VERSIONS.contains(&wire.version)), "a version lacks its file");
}

#[test]
fn the_status_file_matches_the_golden_json() {
    compare("status-v1.txt", STATUS_HEADER, 1, &status_lines());
}

#[test]
fn every_variant_has_a_golden_line() {
    let golden = read_wires();
    let mut missing = samples::every_variant();
    for (label, _, covers) in wire_lines() {
        if golden.contains_key(&label) {
            for variant in covers.split(' ') {
                missing.remove(variant);
            }
        }
    }
    assert!(missing.is_empty(), "no golden line shows {missing:?}: add a sample in samples.rs");
}

fn still_read<T: WireMessage>(wire: Wire, type_name: &str, cap: usize, samples: &[Sample<T>]) {
    let golden = read_wires();
    for sample in samples {
        let label = format!("{} {type_name}/{}", wire_name(wire, sample.message.since()), sample.label);
        let frame = unhex(golden.get(&label).unwrap_or_else(|| panic!("no golden line {label}")));
        let mut decoder = FrameDecoder::new(wire, cap);
        decoder.push(&frame);
        let body = decoder.next_frame().expect("the pinned header is valid").expect("and its frame is whole").body;
        assert_eq!(body.len(), frame.len() - HEADER_LEN);
        let message: T = wire.decode_message(body).unwrap_or_else(|error| panic!("{label}: {error}"));
        assert_eq!(message, sample.message, "{label}");
    }
}

#[test]
fn the_golden_bytes_are_still_read() {
    still_read(agent::WIRE, "HostMessage", agent::MAX_HOST_MESSAGE, &samples::host_messages());
    still_read(agent::WIRE, "AgentMessage", agent::MAX_AGENT_MESSAGE, &samples::agent_messages());
    still_read(vmm::WIRE, "LaunchConfig", vmm::MAX_MESSAGE, &samples::launch_configs_v1());
    still_read(vmm::WIRE, "LaunchConfig", vmm::MAX_MESSAGE, &samples::launch_configs());
    still_read(vmm::WIRE, "ControlRequest", vmm::MAX_MESSAGE, &samples::control_requests());
    still_read(vmm::WIRE, "VmmMessage", vmm::MAX_MESSAGE, &samples::vmm_messages());
    let golden = read_golden("status-v1.txt", 1);
    for (label, status) in samples::statuses() {
        let read: vmm::VmStatus = serde_json::from_str(&golden[&label]).expect("the pinned status is readable");
        assert_eq!(read, status, "{label}");
    }
}
