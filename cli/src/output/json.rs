//! The output of `--json`, for programs and for people on a terminal. docs/json.md describes its keys and types, and the files
//! in tests/golden pin them: members may be added, but not changed.
//!
//! Used by every command that lists something. Never prints, and escapes what a terminal would interpret.

use crate::failure::Failure;
use sandboxvm_manager::is_printable;
use serde::Serialize;
use std::fmt::Write;

/// Returns `value` on several lines, for a listing.
pub(crate) fn pretty(value: &impl Serialize) -> Result<String, Failure> {
    Ok(escaped(&serde_json::to_string_pretty(value)?))
}

/// Returns `value` on one line, for one of many.
pub(crate) fn line(value: &impl Serialize) -> Result<String, Failure> {
    Ok(escaped(&serde_json::to_string(value)?))
}

/// Escapes the characters that a terminal would interpret and serde does not escape, and appends a newline. Such characters
/// occur only in strings.
fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len() + 1);
    for c in json.chars() {
        if is_printable(c) {
            text.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a String does not fail.
                let _ = write!(text, "\\u{unit:04x}");
            }
        }
    }
    text.push('\n');
    text
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use sandboxvm_images::file_version::FileVersion;
    use sandboxvm_manager::{
        FileRecord, Limits, MemorySize, MountSource, MountSpec, Mounts, SandboxRecord, Tmpfs, VcpuCount, WantedLimits,
    };
    use std::{
        path::PathBuf,
        time::{Duration, SystemTime, UNIX_EPOCH},
    };

    /// Compares `printed` with its golden file; with `UPDATE_GOLDEN=1`, writes the file.
    #[track_caller]
    pub(crate) fn assert_golden(file: &str, printed: &str) {
        let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden")).join(file);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, printed).unwrap();
        }
        let golden = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            golden == printed,
            "{} is not what is printed. Members may be added, not changed: programs read them. \
             UPDATE_GOLDEN=1 cargo test -p sandboxvm-cli updates it; docs/json.md describes each member.\n{printed}",
            path.display()
        );
    }

    pub(crate) fn example_time() -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(1_700_000_000_123)
    }

    pub(crate) fn example_memory() -> MemorySize {
        MemorySize::try_from(256 << 20).unwrap()
    }

    /// A record with all optional members.
    pub(crate) fn example_record(id: &str) -> SandboxRecord {
        let identity =
            FileVersion { device: 2049, inode: 131, size: 9_000_000, modified_ns: 1_690_000_000_000_000_000 };
        let file = |path: &str| FileRecord { path: path.into(), identity: identity.clone() };
        SandboxRecord {
            format: 1,
            id: id.to_owned().try_into().unwrap(),
            name: Some("demo".to_owned().try_into().unwrap()),
            created_at: example_time(),
            vcpus: VcpuCount::ONE,
            memory_bytes: example_memory(),
            disk_bytes: 2 << 30,
            kernel: file("/usr/lib/sandboxvm/vmlinux"),
            image: file("/usr/lib/sandboxvm/base.erofs"),
            agent: file("/usr/lib/sandboxvm/agent.erofs"),
            env: vec!["LANG=C.UTF-8".into()],
            ephemeral: false,
            limits: Limits {
                processes: 128.try_into().unwrap(),
                files: 64.try_into().ok(),
                cpu_share: 50.try_into().ok(),
                output_rate: (4 << 20).try_into().ok(),
                disk_rate: (8 << 20).try_into().ok(),
                disk_operations: 500.try_into().ok(),
                must_hold: true,
            },
            network_card: false,
            image_defaults: None,
            workspace: None,
            mounts: example_mounts(),
            read_only_root: true,
        }
    }

    fn example_mounts() -> Mounts {
        let at = |path: &str| path.to_owned().try_into().unwrap();
        let volume = |name: &str, read_only, version| MountSource::Volume {
            name: name.to_owned().try_into().unwrap(),
            read_only,
            version,
        };
        let version = FileVersion { device: 2049, inode: 132, size: 10 << 30, modified_ns: 1_690_000_000_000_000_000 };
        let sources = [
            (
                "/data",
                MountSource::HostDirectory {
                    path: "/home/me/data".into(),
                    read_only: true,
                    uid: 0,
                    gid: 0,
                    copied: false,
                },
            ),
            ("/models", volume("models", true, Some(version))),
            ("/root/.cache", volume("cache", false, None)),
            ("/scratch", MountSource::Tmpfs(Tmpfs { size: Some(64 << 20), mode: Some(0o700), exec: true })),
        ];
        Mounts::new(sources.into_iter().map(|(path, source)| MountSpec { at: at(path), source }).collect()).unwrap()
    }

    /// The record of a sandbox that was created without options.
    pub(crate) fn plain_record(id: &str) -> SandboxRecord {
        let WantedLimits { files, cpu_share, output_rate, disk, .. } = WantedLimits::default();
        let (disk_rate, disk_operations) = (disk.rate, disk.operations);
        let processes = 1024.try_into().unwrap();
        let limits = Limits { processes, files, cpu_share, output_rate, disk_rate, disk_operations, must_hold: false };
        let (mounts, read_only_root) = (Mounts::default(), false);
        SandboxRecord { name: None, env: vec![], limits, mounts, read_only_root, ..example_record(id) }
    }

    #[test]
    fn terminal_sequences_are_escaped_and_programs_read_the_original() {
        let said = "a\u{1b}[1m\u{9b}1m\u{202e}\u{7f}\n\t\u{e9}\u{1f600}";
        let text = line(&said).unwrap();
        assert_eq!(text, "\"a\\u001b[1m\\u009b1m\\u202e\\u007f\\n\\t\u{e9}\u{1f600}\"\n");
        assert_eq!(serde_json::from_str::<String>(&text).unwrap(), said);
        let listed = pretty(&[said]).unwrap();
        assert!(listed.starts_with("[\n  \"a") && listed.ends_with("\"\n]\n"), "{listed}");
    }
}
