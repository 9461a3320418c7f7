//! The judge distinguishes a rogue whose attack worked from others, and does not trust what it
//! reports.

use crate::probes::{ALL, Judged, Situation, Verdict};
use serde_json::{Value, json};

fn situation(kernel: &str, uts: &str) -> Situation {
    Situation {
        kernel: "host".to_owned(),
        own_kernel: kernel != "host",
        uts: "uts:[1]".to_owned(),
        secret: "secret".to_owned(),
        file_system: 1 << 40,
        identity: json!({ "kernel": kernel, "uts": uts, "seccomp": ["0"] }),
        ended: None,
        bait_lives: true,
        precious: true,
        peak: None,
        monitor: None,
    }
}

fn judge(id: &str, facts: &Value, situation: &Situation) -> Judged {
    ALL.iter().find(|probe| probe.id == id).expect("a probe").judge(Some(facts), situation)
}

#[test]
fn success_counts_only_on_the_hosts_kernel() {
    let cases = [
        ("escape", json!({ "error": "", "outside": 1 })),
        ("ipc", json!({ "segment": 3, "segment_error": "", "file_error": "ENOENT" })),
        ("ipc", json!({ "segment": -1, "segment_error": "ENOENT", "file_error": "" })),
        ("fork", json!({ "made": 2000, "error": "" })),
        ("memory", json!({ "mib": 1024, "error": "" })),
        ("module", json!({ "error": "ENOEXEC" })),
        ("devmem", json!({ "mknod": "", "error": "" })),
        ("hostname", json!({ "error": "" })),
        ("clock", json!({ "error": "" })),
    ];
    for (id, facts) in cases {
        assert_eq!(judge(id, &facts, &situation("host", "uts:[1]")).verdict, Verdict::Exposed, "{id}");
        assert_eq!(judge(id, &facts, &situation("guest", "uts:[1]")).verdict, Verdict::Contained, "{id}");
    }
}

#[test]
fn a_kernel_that_claims_to_be_another_counts_as_the_hosts() {
    let mut lied = situation("guest", "uts:[1]");
    lied.own_kernel = false;
    assert_eq!(judge("fork", &json!({ "made": 2000, "error": "" }), &lied).verdict, Verdict::Exposed);
    let mut same = situation("host", "uts:[1]");
    same.own_kernel = true;
    assert_eq!(judge("fork", &json!({ "made": 2000, "error": "" }), &same).verdict, Verdict::Exposed);
}

#[test]
fn a_refusal_is_contained_on_the_hosts_kernel_too() {
    let cases = [
        ("processes", json!({ "seen": 2, "bait": 0 })),
        ("escape", json!({ "error": "EPERM", "outside": 0 })),
        ("file", json!({ "token": "", "tried": [] })),
        ("network", json!({ "token": "", "error": "ECONNREFUSED", "interfaces": ["lo"] })),
        ("outside", json!({ "token": "", "error": "ENETUNREACH", "addresses": 1, "routes": 0 })),
        ("abstract", json!({ "token": "a guess", "error": "" })),
        ("fork", json!({ "made": 100, "error": "EAGAIN" })),
        ("memory", json!({ "mib": 64, "error": "", "killed": "SIGKILL" })),
        ("module", json!({ "error": "EPERM" })),
        ("devmem", json!({ "mknod": "", "error": "EPERM" })),
        ("hostname", json!({ "error": "EPERM" })),
        ("found", json!({ "files": [], "process": 0 })),
    ];
    for (id, facts) in cases {
        assert_eq!(judge(id, &facts, &situation("host", "uts:[1]")).verdict, Verdict::Contained, "{id}");
    }
}

#[test]
fn the_state_of_the_host_counts_and_not_the_rogues_report() {
    let mut seen = situation("host", "uts:[1]");
    seen.bait_lives = false;
    seen.precious = false;
    assert_eq!(judge("kill", &json!({ "found": 0 }), &seen).verdict, Verdict::Exposed);
    assert_eq!(judge("destroy", &json!({ "removed": 1, "left": 0 }), &seen).verdict, Verdict::Exposed);
    let whole = situation("guest", "uts:[1]");
    assert_eq!(judge("kill", &json!({ "found": 5, "error": "" }), &whole).verdict, Verdict::Contained);
    assert_eq!(judge("destroy", &json!({ "removed": 1, "left": 0 }), &whole).verdict, Verdict::Contained);
    assert_eq!(judge("destroy", &json!({ "refused": "no copy" }), &whole).verdict, Verdict::NotRun);
}

#[test]
fn a_route_out_is_a_part_of_the_way_and_an_answer_of_the_host_all_of_it() {
    let seen = situation("guest", "");
    let secret = &seen.secret;
    let facts = |token: &str, addresses: u32, routes: u32| json!({ "token": token, "error": "ETIMEDOUT", "address": "192.0.2.1", "addresses": addresses, "routes": routes });
    assert_eq!(judge("outside", &facts(secret, 1, 1), &seen).verdict, Verdict::Exposed);
    assert_eq!(judge("outside", &facts("a guess", 1, 1), &seen).verdict, Verdict::Partly);
    assert_eq!(judge("outside", &facts("", 1, 0), &seen).verdict, Verdict::Contained);
    assert_eq!(judge("outside", &facts("", 0, 1), &seen).verdict, Verdict::NotRun);
}

#[test]
fn a_silent_or_failed_probe_counts_as_not_run() {
    for probe in ALL {
        assert_eq!(probe.judge(None, &situation("host", "")).verdict, Verdict::NotRun, "{}", probe.id);
        let failed = json!({ "failed": "OSError: \u{1b}[2J" });
        let judged = probe.judge(Some(&failed), &situation("host", ""));
        assert_eq!(judged.verdict, Verdict::NotRun, "{}", probe.id);
        assert!(!judged.seen.contains('\u{1b}'));
    }
}

#[test]
fn a_filter_reduces_the_reachable_calls_and_a_separate_kernel_hides_them() {
    let facts = json!({ "reached": 340, "tried": 366 });
    let mut seen = situation("host", "");
    assert_eq!(judge("surface", &facts, &seen).verdict, Verdict::Exposed);
    seen.identity["seccomp"] = json!(["2"]);
    assert_eq!(judge("surface", &facts, &seen).verdict, Verdict::Partly);
    seen.monitor = Some((None, String::new()));
    assert_eq!(judge("surface", &Value::Null, &seen).verdict, Verdict::Partly);
    seen.monitor = Some((Some(60), String::new()));
    assert_eq!(judge("surface", &Value::Null, &seen).verdict, Verdict::Contained);
}
