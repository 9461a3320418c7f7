//! A guest's kernel, as far as a share can tell: writes requests to the real process, and reads answers.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]
#![allow(dead_code, reason = "each test uses some of it")]

use std::{
    fs::File,
    io::{Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

pub const ROOT: u64 = 1;
pub const DIRECTORY: u32 = 0o040_000;
pub const FILE: u32 = 0o100_000;

/// Requests of the agent.
pub const SAVE: u32 = 0x5356_0001;
pub const RESTORE: u32 = 0x5356_0002;

pub const EPERM: i32 = -1;
pub const ENOENT: i32 = -2;
pub const EEXIST: i32 = -17;
pub const EXDEV: i32 = -18;
pub const EINVAL: i32 = -22;
pub const ENFILE: i32 = -23;
pub const EROFS: i32 = -30;
pub const ENAMETOOLONG: i32 = -36;
pub const ENOSYS: i32 = -38;
pub const ELOOP: i32 = -40;
pub const ENODATA: i32 = -61;
pub const EOPNOTSUPP: i32 = -95;
pub const ESTALE: i32 = -116;

/// The process of a share, and the connection to it.
pub struct Guest {
    pub stream: UnixStream,
    pub process: Child,
    unique: u64,
}

/// An entry of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub node: u64,
    pub size: u64,
    pub mode: u32,
    pub uid: u32,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().unwrap())
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().unwrap())
}

/// Concatenates fields of a request.
#[macro_export]
macro_rules! fields {
    ($($field:expr),* $(,)?) => {{
        let mut bytes: Vec<u8> = Vec::new();
        $(bytes.extend($crate::common::Field::bytes(&$field));)*
        bytes
    }};
}

pub trait Field {
    fn bytes(&self) -> Vec<u8>;
}

impl Field for u32 {
    fn bytes(&self) -> Vec<u8> {
        self.to_le_bytes().to_vec()
    }
}

impl Field for u64 {
    fn bytes(&self) -> Vec<u8> {
        self.to_le_bytes().to_vec()
    }
}

/// A name, which ends with NUL.
impl Field for &str {
    fn bytes(&self) -> Vec<u8> {
        [<str>::as_bytes(self), &[0]].concat()
    }
}

impl Field for &[u8] {
    fn bytes(&self) -> Vec<u8> {
        self.to_vec()
    }
}

impl Guest {
    /// Starts a process that serves `root`, for a guest whose files belong to root.
    pub fn with(root: &Path, access: &str) -> Self {
        Self::of(root, &format!("{access}:0:0"))
    }

    /// Starts a process with this argument.
    pub fn of(root: &Path, argument: &str) -> Self {
        let mut guest = Self::started(root, argument, Stdio::inherit());
        let answer = guest.ask(26, 0, &fields![7u32, 36u32, 131_072u32, u32::MAX]).unwrap();
        assert_eq!((u32_at(&answer, 0), u32_at(&answer, 20)), (7, 128 << 10));
        guest
    }

    pub fn started(root: &Path, argument: &str, stderr: Stdio) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let root = rustix::fs::open(root, flags, rustix::fs::Mode::empty()).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_sandboxvm-share"))
            .arg(argument)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(root))
            .stderr(stderr)
            .spawn()
            .unwrap();
        Self { stream: ours, process, unique: 2 }
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn request(&mut self, code: u32, node: u64, body: &[u8]) -> Vec<u8> {
        self.unique += 2;
        let length = 40 + body.len() as u32;
        let mut request = fields![length, code, self.unique, node, 1000u32, 1000u32, 7u32, 0u32];
        request.extend(body);
        request
    }

    /// Sends a request, and returns its answer, or its error.
    pub fn ask(&mut self, code: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        let request = self.request(code, node, body);
        self.send(&request);
        let (unique, answer) = self.answer();
        assert_eq!(unique, self.unique);
        answer
    }

    pub fn answer(&mut self) -> (u64, Result<Vec<u8>, i32>) {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head).unwrap();
        let mut body = vec![0; u32_at(&head, 0) as usize - 16];
        self.stream.read_exact(&mut body).unwrap();
        let error = u32_at(&head, 4).cast_signed();
        (u64_at(&head, 8), if error == 0 { Ok(body) } else { Err(error) })
    }

    fn entry(answer: Result<Vec<u8>, i32>) -> Result<Entry, i32> {
        let answer = answer?;
        Ok(Entry {
            node: u64_at(&answer, 0),
            size: u64_at(&answer, 48),
            mode: u32_at(&answer, 100),
            uid: u32_at(&answer, 108),
        })
    }

    pub fn look_up(&mut self, parent: u64, name: &str) -> Result<Entry, i32> {
        Self::entry(self.ask(1, parent, &fields![name]))
    }

    /// Looks up a path, component by component.
    pub fn walk(&mut self, path: &str) -> Result<Entry, i32> {
        let mut entry = Err(ENOENT);
        let mut at = ROOT;
        for name in path.split('/') {
            let found = self.look_up(at, name)?;
            at = found.node;
            entry = Ok(found);
        }
        entry
    }

    pub fn forget(&mut self, node: u64, count: u64) {
        let request = self.request(2, node, &fields![count]);
        self.send(&request);
    }

    /// Returns size and mode.
    pub fn attributes(&mut self, node: u64) -> Result<(u64, u32), i32> {
        let answer = self.ask(3, node, &fields![0u32, 0u32, 0u64])?;
        Ok((u64_at(&answer, 24), u32_at(&answer, 76)))
    }

    pub fn set(&mut self, node: u64, valid: u32, size: u64, mode: u32, uid: u32) -> Result<Vec<u8>, i32> {
        let body = fields![
            valid, 0u32, 0u64, size, 0u64, 1_000u64, 2_000u64, 0u64, 5u32, 6u32, 0u32, mode, 0u32, uid, uid, 0u32
        ];
        self.ask(4, node, &body)
    }

    pub fn open(&mut self, node: u64, flags: i32) -> Result<u64, i32> {
        let answer = self.ask(14, node, &fields![flags.cast_unsigned(), 0u32])?;
        Ok(u64_at(&answer, 0))
    }

    pub fn create(&mut self, parent: u64, name: &str, flags: i32, mode: u32) -> Result<(Entry, u64), i32> {
        let answer = self.ask(35, parent, &fields![flags.cast_unsigned(), mode, 0u32, 0u32, name])?;
        let handle = u64_at(&answer, 128);
        Ok((Self::entry(Ok(answer))?, handle))
    }

    pub fn read(&mut self, node: u64, handle: u64, offset: u64, size: u32) -> Result<Vec<u8>, i32> {
        self.ask(15, node, &fields![handle, offset, size, 0u32, 0u64, 0u32, 0u32])
    }

    pub fn write(&mut self, node: u64, handle: u64, offset: u64, data: &[u8]) -> Result<u32, i32> {
        let body = fields![handle, offset, data.len() as u32, 0u32, 0u64, 0u32, 0u32, data];
        Ok(u32_at(&self.ask(16, node, &body)?, 0))
    }

    pub fn release(&mut self, node: u64, handle: u64) -> Result<Vec<u8>, i32> {
        self.ask(18, node, &fields![handle, 0u32, 0u32, 0u64])
    }

    pub fn make_directory(&mut self, parent: u64, name: &str, mode: u32) -> Result<Entry, i32> {
        Self::entry(self.ask(9, parent, &fields![mode, 0u32, name]))
    }

    pub fn make_node(&mut self, parent: u64, name: &str, mode: u32) -> Result<Entry, i32> {
        Self::entry(self.ask(8, parent, &fields![mode, 0x0103u32, 0u32, 0u32, name]))
    }

    pub fn symlink(&mut self, parent: u64, name: &str, target: &str) -> Result<Entry, i32> {
        Self::entry(self.ask(6, parent, &fields![name, target]))
    }

    pub fn link(&mut self, of: u64, parent: u64, name: &str) -> Result<Entry, i32> {
        Self::entry(self.ask(13, parent, &fields![of, name]))
    }

    pub fn rename(&mut self, from: (u64, &str), to: (u64, &str), flags: u32) -> Result<Vec<u8>, i32> {
        self.ask(45, from.0, &fields![to.0, flags, 0u32, from.1, to.1])
    }

    pub fn unlink(&mut self, parent: u64, name: &str) -> Result<Vec<u8>, i32> {
        self.ask(10, parent, &fields![name])
    }

    /// Returns the names in a directory.
    pub fn list(&mut self, node: u64, plus: bool) -> Result<Vec<String>, i32> {
        let handle = u64_at(&self.ask(27, node, &fields![0u32, 0u32])?, 0);
        let (mut offset, mut names) = (0, Vec::new());
        loop {
            let code = if plus { 44 } else { 28 };
            let part = self.ask(code, node, &fields![handle, offset, 1024u32, 0u32, 0u64, 0u32, 0u32])?;
            if part.is_empty() {
                break;
            }
            let mut at = 0;
            while at < part.len() {
                let entry = at + if plus { 128 } else { 0 };
                let length = u32_at(&part, entry + 16) as usize;
                offset = u64_at(&part, entry + 8);
                names.push(String::from_utf8_lossy(&part[entry + 24..entry + 24 + length]).into_owned());
                at = entry + (24 + length).next_multiple_of(8);
            }
        }
        self.ask(29, node, &fields![handle, 0u32, 0u32, 0u64])?;
        names.sort();
        Ok(names)
    }

    /// Returns the record of nodes and handles, in parts.
    pub fn save(&mut self) -> Vec<Vec<u8>> {
        let (mut cursor, mut parts) = (fields![0u32, 0u32, 0u64], Vec::new());
        while u32_at(&cursor, 0) != 2 {
            let part = self.ask(SAVE, 0, &cursor).unwrap();
            cursor = part[..16].to_vec();
            parts.push(part[16..].to_vec());
        }
        parts
    }

    pub fn restore(&mut self, parts: &[Vec<u8>]) {
        for part in parts {
            self.ask(RESTORE, 0, part).unwrap();
        }
    }

    /// Reads a file by its path.
    pub fn content(&mut self, path: &str) -> Result<Vec<u8>, i32> {
        let node = self.walk(path)?.node;
        let handle = self.open(node, libc::O_RDONLY)?;
        let content = self.read(node, handle, 0, 128 << 10)?;
        self.release(node, handle)?;
        Ok(content)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Opens a file of /proc of a process.
pub fn of_process(pid: u32, file: &str) -> String {
    let mut text = String::new();
    File::open(format!("/proc/{pid}/{file}")).unwrap().read_to_string(&mut text).unwrap();
    text
}
