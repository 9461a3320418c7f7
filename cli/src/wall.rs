//! What of this host weakens the isolation between guests that do not trust each other (docs/threat-model.md): found by `doctor`,
//! said by `serve` when it starts, and a reason not to start with `serve --strict`.

use sandboxvm_manager::JailPart;
use serde_json::Value;
use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

/// A weakness of the isolation between guests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Weakness {
    /// Two threads share a core, and the kernel cannot keep VMMs on separate cores.
    SharedCores,
    /// The kernel merges equal pages of guests.
    MergedPages,
    /// A processor vulnerability that the kernel does not mitigate: its name and the status that the kernel reports.
    Mitigation(String, String),
    /// A part of the confinement of VMMs that this host does not provide.
    Jail(JailPart),
    /// The guest kernel is interpreted.
    InterpretedKernel,
    /// The process that parses requests runs as the user that owns the home.
    FrontSharesUser,
    /// The VMM does not report what this host provides.
    Unknown(String),
}

impl fmt::Display for Weakness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SharedCores => f.write_str("two threads share a core (SMT) and the kernel has no core scheduling"),
            Self::MergedPages => f.write_str("the kernel merges equal pages (KSM)"),
            Self::Mitigation(name, says) => write!(f, "the processor vulnerability {name} is not mitigated: {says}"),
            Self::Jail(part) => write!(f, "VMMs are not fully confined: {part} is missing"),
            Self::InterpretedKernel => f.write_str(
                "mode pvm: the host kernel interprets the guest kernel, which does not withstand a determined attacker \
                 (docs/threat-model.md)",
            ),
            Self::FrontSharesUser => f.write_str(
                "the process that parses requests has the user of the home, and only its system call filter keeps it from \
                 the home (docs/design/server.md)",
            ),
            Self::Unknown(problem) => write!(f, "cannot determine how VMMs are confined: {problem}"),
        }
    }
}

/// Returns all weaknesses of this host. `probe` is what the VMM reports about it.
pub(crate) fn weaknesses(probe: &Result<Value, String>) -> Vec<Weakness> {
    weaknesses_below(Path::new("/"), probe)
}

fn weaknesses_below(root: &Path, probe: &Result<Value, String>) -> Vec<Weakness> {
    let mut found = Vec::new();
    let is_one = |path: &str| fs::read_to_string(root.join(path)).is_ok_and(|text| text.trim() == "1");
    let separates = |probe: &Value| probe["capabilities"]["core_scheduling"] == true;
    if is_one("sys/devices/system/cpu/smt/active") && !probe.as_ref().is_ok_and(separates) {
        found.push(Weakness::SharedCores);
    }
    if is_one("sys/kernel/mm/ksm/run") {
        found.push(Weakness::MergedPages);
    }
    let directory = root.join("sys/devices/system/cpu/vulnerabilities");
    let mut holes: Vec<PathBuf> =
        fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    holes.sort();
    for hole in holes {
        let says = fs::read_to_string(&hole).unwrap_or_default();
        if says.contains("Vulnerable") || says.contains("vulnerable") {
            let name = hole.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            found.push(Weakness::Mitigation(name, says.trim().to_owned()));
        }
    }
    match probe {
        Ok(probe) => {
            let missing: Vec<JailPart> = serde_json::from_value(probe["missing"].clone()).unwrap_or_default();
            found.extend(missing.into_iter().map(Weakness::Jail));
            if probe["host_mode"] == "pvm" {
                found.push(Weakness::InterpretedKernel);
            }
        }
        Err(problem) => found.push(Weakness::Unknown(problem.clone())),
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A host's files below `root`.
    fn host(smt: &str, ksm: &str, holes: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("sys/devices/system/cpu/smt/active", smt);
        write("sys/kernel/mm/ksm/run", ksm);
        for (name, says) in holes {
            write(&format!("sys/devices/system/cpu/vulnerabilities/{name}"), says);
        }
        root
    }

    #[test]
    fn host_without_weaknesses_reports_none() {
        let root = host("0\n", "0\n", &[("l1tf", "Not affected\n"), ("mds", "Mitigation: Clear CPU buffers\n")]);
        let probe = Ok(json!({ "host_mode": "vmx", "missing": [], "capabilities": { "core_scheduling": false } }));
        assert_eq!(weaknesses_below(root.path(), &probe), []);
        let root = host("1\n", "2\n", &[]);
        let probe = Ok(json!({ "host_mode": "svm", "missing": [], "capabilities": { "core_scheduling": true } }));
        assert_eq!(weaknesses_below(root.path(), &probe), [], "threads of a core are shared within a sandbox alone");
    }

    #[test]
    fn each_weakness_is_found_and_named() {
        let root = host("1\n", "1\n", &[("mds", "Vulnerable; SMT vulnerable\n"), ("retbleed", "Vulnerable\n")]);
        let probe = Ok(json!({ "host_mode": "pvm", "missing": ["own_user"] }));
        let found = weaknesses_below(root.path(), &probe);
        let said: Vec<String> = found.iter().map(ToString::to_string).collect();
        for (said, word) in said.iter().zip([
            "(SMT)",
            "(KSM)",
            "mds is not",
            "retbleed is not",
            "a user of its own is missing",
            "mode pvm",
        ]) {
            assert!(said.contains(word), "{word}: {said}");
        }
        assert_eq!(said.len(), 6, "{said:?}");
        let unknown = weaknesses_below(root.path(), &Err("no VMM".to_owned()));
        assert_eq!(unknown.last(), Some(&Weakness::Unknown("no VMM".to_owned())));
    }
}
