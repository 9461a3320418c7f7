//! `doctor`: checks whether this host can run sandboxes, and shows what to fix.

use crate::{
    environment,
    failure::Failure,
    host_needs::{self, Verdict},
    output::json,
    runtime,
    self_test::{self, Findings},
    stdio,
    wall::{Weakness, weaknesses},
};
use clap::Args;
use sandboxvm_images::{
    bundle::{Bundle, BundleError, Part},
    template,
};
use sandboxvm_manager::{Containment, Home, JailPart, MIB, containment, host_memory};
use serde::Serialize;
use serde_json::Value;
use std::{
    fmt::Write,
    fs::OpenOptions,
    io::ErrorKind,
    path::Path,
    process::{Command, Stdio},
};

/// With less, a default sandbox may fail or make others swap.
const ENOUGH_MEMORY: u64 = 512 * MIB;
/// Enough for a few sandboxes that write some data.
const ENOUGH_DISK: u64 = 1024 * MIB;

/// Check whether this host can run sandboxes, and show what to fix
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Also test sandboxes in a temporary home, which takes a few minutes: boot, snapshot, fork and reset them, and try
    /// attacks of a hostile guest
    #[arg(long)]
    self_test: bool,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// The result of all checks. Only `usable` decides the exit code.
#[derive(Debug, Serialize)]
struct Report {
    /// No check failed.
    usable: bool,
    /// How the guest kernel is executed: vmx, svm or pvm.
    host_mode: Option<String>,
    checks: Vec<Check>,
    /// What the VMM reports about KVM.
    probe: Option<Value>,
    /// What the self-test found, if it was asked for and sandboxes can run here.
    #[serde(skip_serializing_if = "Option::is_none")]
    self_test: Option<Findings>,
}

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    detail: String,
    /// What to do if the check did not pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, detail: detail.into(), fix: None }
    }

    fn warning(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warning, detail: detail.into(), fix: Some(fix.into()) }
    }

    fn failed(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Failed, detail: detail.into(), fix: Some(fix.into()) }
    }
}

impl Doctor {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let mut report = examine();
        if self.self_test && report.usable {
            let findings = runtime::block_on(self_test::run(&environment::bundle(None, None)))?;
            report.usable = findings.passed;
            report.self_test = Some(findings);
        }
        let text = if self.json { json::pretty(&report)? } else { shown(&report) };
        stdio::print(&text)?;
        if report.usable { Ok(0) } else { Err(Failure::silent(125)) }
    }
}

fn examine() -> Report {
    let bundle = environment::bundle(None, None);
    let mut checks = vec![kvm(Path::new("/dev/kvm"))];
    let probe = probe(&bundle);
    let mut host_mode = None;
    match &probe {
        Ok(value) => {
            host_mode = value["host_mode"].as_str().map(str::to_owned);
            checks.extend(judge_probe(value));
        }
        Err(problem) => checks.push(Check::failed(
            host_needs::HOST_MODE.check,
            problem.clone(),
            "see the checks of /dev/kvm and the VMM",
        )),
    }
    checks.extend(Part::ALL.map(|part| self::part(&bundle, part)));
    checks.push(kernel(&rustix::system::uname().release().to_string_lossy()));
    checks.push(mke2fs());
    checks.push(ending(&containment()));
    checks.push(side_channels(&weaknesses(&probe)));
    checks.push(memory());
    checks.push(disk());
    let usable = checks.iter().all(|check| check.verdict != Verdict::Failed);
    Report { usable, host_mode, checks, probe: probe.ok(), self_test: None }
}

fn kvm(path: &Path) -> Check {
    const NAME: &str = host_needs::KVM_DEVICE.check;
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Check::ok(NAME, "can be opened"),
        Err(error) if error.kind() == ErrorKind::NotFound => Check::failed(
            NAME,
            "does not exist",
            "enable virtualisation in the firmware, or nested virtualisation for this machine, then modprobe \
             kvm_intel or kvm_amd",
        ),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Check::failed(
            NAME,
            "cannot be opened: permission denied",
            "run as root, or join its group (usermod -aG kvm USER) and log in again",
        ),
        Err(error) => Check::failed(NAME, format!("cannot be opened: {error}"), "look for messages of KVM in dmesg"),
    }
}

/// Runs `sandboxvm-vmm --probe`, which prints what KVM offers as JSON.
pub(crate) fn probe(bundle: &Bundle) -> Result<Value, String> {
    let output = Command::new(&bundle.vmm)
        .arg("--probe")
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("unknown: cannot run {} --probe: {error}", bundle.vmm.display()))?;
    serde_json::from_slice(&output.stdout).map_err(|_| {
        let said = String::from_utf8_lossy(&output.stderr);
        format!("unknown: {} --probe failed ({}): {}", bundle.vmm.display(), output.status, said.trim())
    })
}

fn judge_probe(probe: &Value) -> Vec<Check> {
    let mut checks = Vec::new();
    match probe["host_mode"].as_str() {
        Some(mode @ ("vmx" | "svm")) => {
            checks.push(Check::ok(host_needs::HOST_MODE.check, format!("{mode}: all guest code runs natively")))
        }
        Some("pvm") => checks.push(Check::warning(
            host_needs::HOST_MODE.check,
            "pvm: guest programs run natively, but the guest kernel is interpreted, so system calls are slow; this mode \
             does not withstand a determined attacker (docs/threat-model.md)",
            "use a host with VMX or SVM if speed matters or guests do not trust each other",
        )),
        Some(other) => checks.push(Check::ok(host_needs::HOST_MODE.check, other)),
        None => checks.push(Check::failed(host_needs::HOST_MODE.check, "unknown", "see the check of /dev/kvm")),
    }
    checks.push(confinement(&probe["missing"]));
    for problem in probe["problems"].as_array().into_iter().flatten() {
        let text = problem.as_str().map_or_else(|| problem.to_string(), str::to_owned);
        checks.push(Check::failed(host_needs::KVM.check, text, "use a newer host kernel, or another host"));
    }
    checks
}

/// Checks which parts of the confinement of VMMs this host does not provide to the current user.
fn confinement(missing: &Value) -> Check {
    const NAME: &str = host_needs::CONFINEMENT.check;
    let missing: Vec<JailPart> = serde_json::from_value(missing.clone()).unwrap_or_default();
    if missing.is_empty() {
        return Check::ok(NAME, "complete");
    }
    let detail = missing.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    let fix = match &missing[..] {
        [JailPart::OwnUser] => {
            "run as root if sandboxes must be separated from each other and from you by user as well; in a container, give \
             it a range of users that starts at 1879048192"
        }
        _ => {
            "run as root, or allow user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone=1, \
             kernel.apparmor_restrict_unprivileged_userns=0)"
        }
    };
    Check::warning(NAME, format!("missing: {detail}"), fix)
}

/// Checks how a compromised VMM and the processes that it started are ended and bounded.
fn ending(found: &Containment) -> Check {
    const NAME: &str = host_needs::ENDING.check;
    const ALL: usize = 3;
    let detail = found.to_string();
    if !found.group {
        return Check::warning(
            NAME,
            format!(
                "{detail}: processes that a VMM starts are found by their session and killed one by one, and nothing bounds \
                 what they use together"
            ),
            "run as root or in a delegated control group (systemd: Delegate=yes), on a host with cgroup version 2",
        );
    }
    if found.controllers.len() < ALL {
        return Check::warning(
            NAME,
            format!("{detail}; resource limits bound each of its processes, but not what they use together"),
            "use a host with only cgroup version 2 (systemd.unified_cgroup_hierarchy=1) and delegate a group that contains no \
             processes (systemd: Delegate=yes, DelegateSubgroup=), or limit the group of this process (MemoryMax=, TasksMax=)",
        );
    }
    if found.kill {
        Check::ok(NAME, detail)
    } else {
        Check::ok(NAME, format!("{detail}; its processes are killed one by one, since this kernel is older than 5.14"))
    }
}

/// Checks what guests could learn of each other through shared hardware: see docs/threat-model.md.
fn side_channels(weaknesses: &[Weakness]) -> Check {
    const NAME: &str = host_needs::SIDE_CHANNELS.check;
    let mut fixes: Vec<&str> = Vec::new();
    let mut found = Vec::new();
    for weakness in weaknesses {
        let fix = match weakness {
            Weakness::SharedCores => {
                "echo off >/sys/devices/system/cpu/smt/control, or use a kernel with CONFIG_SCHED_CORE"
            }
            Weakness::MergedPages => "echo 2 >/sys/kernel/mm/ksm/run",
            Weakness::Mitigation(..) => "update microcode and kernel, and boot without mitigations=off",
            // Other checks and `serve` report these.
            Weakness::Jail(_) | Weakness::InterpretedKernel | Weakness::FrontSharesUser | Weakness::Unknown(_) => {
                continue;
            }
        };
        found.push(weakness.to_string());
        if !fixes.contains(&fix) {
            fixes.push(fix);
        }
    }
    if found.is_empty() {
        Check::ok(NAME, "no core is shared, no pages are merged, and all known processor vulnerabilities are mitigated")
    } else {
        Check::warning(NAME, found.join("; "), fixes.join("; "))
    }
}

fn part(bundle: &Bundle, part: Part) -> Check {
    let name = match part {
        Part::Vmm => "VMM",
        Part::Kernel => "guest kernel",
        Part::Image => "base image",
        Part::Agent => "agent disk",
        Part::Egress => "egress process",
        Part::Layers => "layer process",
        Part::Share => "process of a share",
    };
    match bundle.open_part(part) {
        Ok(file) => {
            let mib = file.metadata().map_or(0.0, |metadata| metadata.len() as f64 / MIB as f64);
            Check::ok(name, format!("{} ({mib:.1} MiB)", bundle.path(part).display()))
        }
        // Only a sandbox with a live share needs it.
        Err(error @ BundleError::Missing { part: Part::Share, .. }) => {
            Check { name, verdict: Verdict::Warning, detail: error.to_string(), fix: crate::failure::hint::of(&error) }
        }
        Err(error) => {
            Check { name, verdict: Verdict::Failed, detail: error.to_string(), fix: crate::failure::hint::of(&error) }
        }
    }
}

/// Checks what the kernel with this release has.
fn kernel(release: &str) -> Check {
    let (verdict, detail) = host_needs::judge_kernel(release);
    let host_needs::Release(major, minor) = host_needs::OLDEST_KERNEL;
    let fix = (verdict != Verdict::Ok).then(|| format!("use Linux {major}.{minor} or newer"));
    Check { name: host_needs::KERNEL.check, verdict, detail, fix }
}

fn mke2fs() -> Check {
    match template::installed_mke2fs() {
        Some(path) => Check::ok(host_needs::MKE2FS.check, path.display().to_string()),
        None => Check::failed(
            host_needs::MKE2FS.check,
            "not installed; it makes writable disks",
            "apt-get install e2fsprogs",
        ),
    }
}

fn memory() -> Check {
    match host_memory() {
        Ok(memory) => {
            let detail = format!("{} MiB of {} MiB available", memory.available / MIB, memory.total / MIB);
            if memory.available >= ENOUGH_MEMORY {
                Check::ok(host_needs::MEMORY.check, detail)
            } else {
                Check::warning(
                    host_needs::MEMORY.check,
                    detail,
                    "stop some programs, or give sandboxes less memory with -m",
                )
            }
        }
        Err(error) => Check::warning(host_needs::MEMORY.check, format!("/proc/meminfo: {error}"), "mount /proc"),
    }
}

fn disk() -> Check {
    const NAME: &str = host_needs::HOME.check;
    let opened = environment::home().map_err(|_| "cannot find a home directory".to_owned());
    let opened = opened.and_then(|path| Home::open(&path).map_err(|error| error.to_string()));
    let home = match opened {
        Ok(home) => home,
        Err(problem) => return Check::failed(NAME, problem, "set SANDBOXVM_HOME to a directory that you can write to"),
    };
    match rustix::fs::statvfs(home.root()) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let detail = format!("{}, {} MiB free", home.root().display(), free / MIB);
            if free >= ENOUGH_DISK {
                Check::ok(NAME, detail)
            } else {
                Check::warning(NAME, detail, "free some space, or set SANDBOXVM_HOME to a file system with more space")
            }
        }
        Err(error) => Check::warning(NAME, format!("{}: {error}", home.root().display()), "check the file system"),
    }
}

fn shown(report: &Report) -> String {
    let mut text = String::new();
    for Check { name, verdict, detail, fix } in &report.checks {
        let mark = match verdict {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Failed => "FAILED",
        };
        // Writing to a String does not fail.
        let _ = writeln!(text, "{mark:<8} {name:<13} {detail}");
        if let Some(fix) = fix {
            let _ = writeln!(text, "{:<22} -> {fix}", "");
        }
    }
    if let Some(findings) = &report.self_test {
        text.push_str(&findings.shown());
        return text;
    }
    text.push_str(if report.usable { "sandboxes can run here\n" } else { "sandboxes cannot run here yet\n" });
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::json::tests::assert_golden;

    #[test]
    fn missing_kvm_device_shows_what_to_enable() {
        let check = kvm(Path::new("/no/kvm"));
        assert_eq!(check.verdict, Verdict::Failed);
        assert!(check.fix.unwrap().contains("firmware"));
    }

    #[test]
    fn probe_results_become_checks() {
        let verdicts = |json: &str| -> Vec<Verdict> {
            judge_probe(&serde_json::from_str(json).unwrap()).iter().map(|check| check.verdict).collect()
        };
        assert_eq!(verdicts(r#"{"host_mode":"vmx","problems":[]}"#), [Verdict::Ok, Verdict::Ok]);
        assert_eq!(verdicts(r#"{"host_mode":"pvm","missing":[]}"#), [Verdict::Warning, Verdict::Ok]);
        let no_irqfd = r#"{"host_mode":"vmx","problems":["no irqfd"]}"#;
        assert_eq!(verdicts(no_irqfd), [Verdict::Ok, Verdict::Ok, Verdict::Failed]);
        assert_eq!(verdicts("{}"), [Verdict::Failed, Verdict::Ok]);
    }

    #[test]
    fn missing_confinement_is_named_with_a_fix() {
        let own_user = confinement(&serde_json::json!(["own_user"]));
        assert_eq!(own_user.verdict, Verdict::Warning);
        assert!(own_user.detail.contains("a user of its own") && own_user.fix.unwrap().contains("run as root"));
        let more = confinement(&serde_json::json!(["user_namespace", "namespaces", "empty_root", "own_user"]));
        assert!(more.detail.contains("an empty root"), "{}", more.detail);
        assert!(more.fix.unwrap().contains("max_user_namespaces"));
    }

    #[test]
    fn missing_control_groups_are_named_with_a_fix() {
        let judged = |group, kill, controllers: &[&'static str]| {
            ending(&Containment { group, kill, controllers: controllers.to_vec() })
        };
        let all = ["memory", "processes", "processor time"];
        assert_eq!(judged(true, true, &all).verdict, Verdict::Ok);
        assert!(judged(true, false, &all).detail.contains("5.14"));
        let unbounded = judged(true, true, &[]);
        assert_eq!(unbounded.verdict, Verdict::Warning);
        assert!(unbounded.detail.contains("bounds nothing") && unbounded.fix.unwrap().contains("MemoryMax="));
        let none = judged(false, false, &[]);
        assert!(none.detail.contains("by their session") && none.fix.unwrap().contains("Delegate=yes"));
    }

    #[test]
    fn shared_hardware_is_named_with_a_fix() {
        assert_eq!(side_channels(&[Weakness::InterpretedKernel]).verdict, Verdict::Ok);
        let hole = |name: &str| Weakness::Mitigation(name.into(), "Vulnerable".into());
        let all = side_channels(&[Weakness::SharedCores, Weakness::MergedPages, hole("mds"), hole("retbleed")]);
        assert!(["SMT", "KSM", "mds", "retbleed"].iter().all(|word| all.detail.contains(word)), "{}", all.detail);
        let fix = all.fix.unwrap();
        assert!(fix.contains("smt/control") && fix.matches("microcode").count() == 1, "{fix}");
    }

    #[test]
    fn interpreted_kernel_is_a_warning() {
        let checks = judge_probe(&serde_json::json!({ "host_mode": "pvm", "missing": [] }));
        assert!(checks[0].detail.contains("does not withstand a determined attacker"), "{}", checks[0].detail);
    }

    #[test]
    fn json_is_pinned() {
        let probe = r#"{"api_version":12,"host_mode":"vmx","capabilities":{"core_scheduling":true,"ext_cpuid":true,
            "immediate_exit":true,"ioeventfd":true,"irqchip":true,"irqfd":false,"set_tss_addr":true,"user_memory":true},
            "missing":["own_user"],"problems":["no irqfd"]}"#;
        let usable = Report {
            usable: true,
            host_mode: Some("vmx".into()),
            checks: vec![Check::ok("/dev/kvm", "can be opened"), Check::warning("memory", "300 MiB", "end something")],
            probe: Some(serde_json::from_str(probe).unwrap()),
            self_test: None,
        };
        assert_golden("doctor.json", &json::pretty(&usable).unwrap());
        let tested = Report { usable: false, self_test: Some(crate::self_test::tests::example()), ..usable };
        assert_golden("doctor-self-test.json", &json::pretty(&tested).unwrap());
        let checks = vec![Check::failed("mke2fs", "not found", "apt-get install e2fsprogs")];
        let unusable = Report { usable: false, host_mode: None, checks, probe: None, self_test: None };
        assert_golden("doctor-of-unusable.json", &json::pretty(&unusable).unwrap());
    }

    #[test]
    fn each_check_of_the_host_is_in_the_table_and_no_worse_than_it_says() {
        let parts = [
            "VMM",
            "guest kernel",
            "base image",
            "agent disk",
            "egress process",
            "layer process",
            "process of a share",
        ];
        let mut checks = examine().checks;
        // What a host may have: the worst of each kind.
        checks.extend([
            kvm(Path::new("/no/kvm")),
            kernel("4.19"),
            ending(&Containment { group: false, kill: false, controllers: vec![] }),
        ]);
        checks.extend(judge_probe(&serde_json::json!({ "missing": ["own_user"], "problems": ["no irqfd"] })));
        for Check { name, verdict, .. } in checks.iter().filter(|check| !parts.contains(&check.name)) {
            let need = host_needs::NEEDS.iter().find(|need| need.check == *name);
            assert!(need.is_some_and(|need| need.worst >= *verdict), "{name}: {verdict:?}");
        }
        for need in host_needs::NEEDS {
            assert!(checks.iter().any(|check| check.name == need.check), "doctor does not check {}", need.check);
        }
    }

    #[test]
    fn report_shows_each_fix_below_its_check() {
        let report = Report {
            usable: false,
            host_mode: None,
            checks: vec![Check::ok("a", "fine"), Check::failed("b", "broken", "mend it")],
            probe: None,
            self_test: None,
        };
        let text = shown(&report);
        assert!(text.contains("ok       a             fine\nFAILED   b             broken\n"), "{text}");
        assert!(text.contains("-> mend it\n") && text.ends_with("cannot run here yet\n"), "{text}");
    }
}
