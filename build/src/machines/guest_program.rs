//! Tiny programs for guests: each is a list of system calls. An image may have no shell, and its `kill` and `mount` are
//! programs of the image, which may do anything. May never run on the host.

/// Path in the guest, in memory and beside the agent's own file.
pub(super) const PATH: &str = "/run/sandboxvm/build-step";

/// Address at which the program is mapped.
const BASE: u64 = 0x40_0000;
/// Sizes of the header of the file and of its one program header.
const HEADERS: u64 = 64 + 56;
/// `mov REGISTER, imm64` for each argument of a system call.
const ARGUMENTS: [[u8; 2]; 5] = [
    [0x48, 0xbf], // rdi
    [0x48, 0xbe], // rsi
    [0x48, 0xba], // rdx
    [0x49, 0xba], // r10
    [0x49, 0xb8], // r8
];
/// `test rax, rax; jns +9; neg eax; mov edi, eax; push 60; pop rax; syscall`: an error is the exit code.
const CHECK: [u8; 14] = [0x48, 0x85, 0xc0, 0x79, 0x09, 0xf7, 0xd8, 0x89, 0xc7, 0x6a, 0x3c, 0x58, 0x0f, 0x05];
/// `xor edi, edi; push 60; pop rax; syscall`.
const EXIT: [u8; 7] = [0x31, 0xff, 0x6a, 0x3c, 0x58, 0x0f, 0x05];

/// A system call of x86-64 Linux.
pub(super) struct Call<'a> {
    number: u32,
    arguments: Vec<Argument<'a>>,
    /// Whether an error ends the program.
    checked: bool,
}

enum Argument<'a> {
    Number(u64),
    Text(&'a str),
}

impl<'a> From<&'a str> for Argument<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Argument<'_> {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl<'a> Call<'a> {
    /// Sends SIGKILL to every process but the caller and PID 1. Having none is not an error.
    pub(super) fn kill_all() -> Self {
        Self { number: 62, arguments: vec![u64::MAX.into(), 9.into()], checked: false }
    }

    /// mount(2) with a file system of this type.
    pub(super) fn mount_tmpfs(target: &'a str, options: &'a str) -> Self {
        const NOSUID_NODEV: u64 = 2 | 4;
        let arguments = vec!["tmpfs".into(), target.into(), "tmpfs".into(), NOSUID_NODEV.into(), options.into()];
        Self { number: 165, arguments, checked: true }
    }

    /// mount(2) of a file or directory at another place.
    pub(super) fn bind(source: &'a str, target: &'a str) -> Self {
        const BIND: u64 = 4096;
        let arguments = vec![source.into(), target.into(), 0.into(), BIND.into(), 0.into()];
        Self { number: 165, arguments, checked: true }
    }

    /// mount(2), which makes the mount at `target` read-only.
    pub(super) fn make_read_only(target: &'a str) -> Self {
        const REMOUNT_BIND_RDONLY: u64 = 32 | 4096 | 1;
        let arguments = vec![0.into(), target.into(), 0.into(), REMOUNT_BIND_RDONLY.into(), 0.into()];
        Self { number: 165, arguments, checked: true }
    }

    /// umount2(2), also of mounts below. That nothing is mounted there is not an error.
    pub(super) fn unmount(target: &'a str) -> Self {
        const DETACH: u64 = 2;
        Self { number: 166, arguments: vec![target.into(), DETACH.into()], checked: false }
    }

    /// Returns the size of its instructions in bytes.
    fn size(&self) -> u64 {
        let check = if self.checked { CHECK.len() } else { 0 };
        (self.arguments.len() * 10 + 5 + 2 + check) as u64
    }
}

/// Returns a static ELF file for x86-64 Linux that makes the calls in this order. Its exit code is 0, or the number of the
/// error of the first checked call that fails.
pub(super) fn program(calls: &[Call<'_>]) -> Vec<u8> {
    let code = calls.iter().map(Call::size).sum::<u64>() + EXIT.len() as u64;
    let mut texts = Vec::new();
    let mut file = Vec::new();
    for call in calls {
        for (argument, register) in call.arguments.iter().zip(ARGUMENTS) {
            let value = match argument {
                Argument::Number(number) => *number,
                Argument::Text(text) => {
                    let address = BASE + HEADERS + code + texts.len() as u64;
                    texts.extend_from_slice(text.as_bytes());
                    texts.push(0);
                    address
                }
            };
            file.extend(register);
            file.extend(value.to_le_bytes());
        }
        file.push(0xb8); // mov eax, imm32
        file.extend(call.number.to_le_bytes());
        file.extend([0x0f, 0x05]); // syscall
        if call.checked {
            file.extend(CHECK);
        }
    }
    file.extend(EXIT);
    file.extend(texts);
    [headers(HEADERS + file.len() as u64), file].concat()
}

/// Returns the headers of a file of this size.
fn headers(size: u64) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    let half = |file: &mut Vec<u8>, value: u16| file.extend(value.to_le_bytes());
    let word = |file: &mut Vec<u8>, value: u32| file.extend(value.to_le_bytes());
    let long = |file: &mut Vec<u8>, value: u64| file.extend(value.to_le_bytes());
    half(&mut file, 2); // an executable file
    half(&mut file, 62); // of x86-64
    word(&mut file, 1);
    long(&mut file, BASE + HEADERS); // entry point
    long(&mut file, 64); // offset of the program header
    long(&mut file, 0); // no sections
    word(&mut file, 0);
    for value in [64, 56, 1, 64, 0, 0] {
        half(&mut file, value);
    }
    word(&mut file, 1); // a segment to load
    word(&mut file, 5); // readable and executable
    for value in [0, BASE, BASE, size, size, 0x1000] {
        long(&mut file, value);
    }
    file
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt, process::Command};

    /// Runs a program that can do nothing here: it has no capability.
    fn run(calls: &[Call<'_>]) -> Option<i32> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program");
        fs::write(&path, program(calls)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        let user = ["--user", "--map-root-user", "--mount", "--"];
        Command::new("unshare").args(user).arg(&path).status().expect("util-linux is installed").code()
    }

    #[test]
    fn program_makes_its_calls_and_exits_with_the_first_error() {
        let file = program(&[Call::kill_all()]);
        assert_eq!(file.len() as u64, HEADERS + 27 + 7);
        // The size in the program header is that of the file.
        assert_eq!(u64::from_le_bytes(file[96..104].try_into().unwrap()), file.len() as u64);
        assert_eq!(u64::from_le_bytes(file[24..32].try_into().unwrap()), BASE + 120);
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().to_str().unwrap();
        assert_eq!(run(&[]), Some(0));
        let options = "mode=1777,size=4096";
        let calls =
            || vec![Call::mount_tmpfs(target, options), Call::bind(target, target), Call::make_read_only(target)];
        assert_eq!(run(&calls()), Some(0));
        // What is mounted is unmounted, and nothing more.
        let twice = [Call::unmount(target), Call::unmount(target), Call::unmount(target), Call::unmount("/none")];
        assert_eq!(run(&calls().into_iter().chain(twice).collect::<Vec<_>>()), Some(0));
        assert_eq!(run(&[Call::bind("/none", target)]), Some(rustix::io::Errno::NOENT.raw_os_error()));
        assert_eq!(run(&[Call::mount_tmpfs(target, "size=x")]), Some(rustix::io::Errno::INVAL.raw_os_error()));
    }
}
