//! Runs a unit test in a process in which fsync(2) fails, so that it can see whether a directory is synced: files are synced by
//! fdatasync(2). Part of the crates whose tests include it.

use std::{env, process::Command};

/// Names the test that the process is for.
const MARK: &str = "SANDBOXVM_TEST_WITHOUT_FSYNC";
/// Makes fsync(2) fail with EIO by a filter (seccomp(2)), and executes what stands behind it.
const LAUNCHER: &str = r"
import ctypes, os, sys
code = [(0x20, 0, 0, 0), (0x15, 0, 1, 74), (0x06, 0, 0, 0x00050005), (0x06, 0, 0, 0x7fff0000)]
class Filter(ctypes.Structure):
    _fields_ = [('code', ctypes.c_ushort), ('jt', ctypes.c_ubyte), ('jf', ctypes.c_ubyte), ('k', ctypes.c_uint)]
class Program(ctypes.Structure):
    _fields_ = [('length', ctypes.c_ushort), ('filters', ctypes.POINTER(Filter))]
program = Program(len(code), (Filter * len(code))(*[Filter(*line) for line in code]))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
";

/// Runs `act` in a process without fsync(2). `test` is the full name of the test that calls this.
pub(crate) fn act(test: &str, act: impl FnOnce()) {
    if env::var(MARK).is_ok_and(|marked| marked == test) {
        return act();
    }
    let program = env::current_exe().expect("the test has a program");
    let mut command = Command::new("python3");
    command.args(["-c", LAUNCHER]).arg(program).args(["--exact", test, "--nocapture"]).env(MARK, test);
    let ran = command.output().expect("python3 can be run");
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&ran.stderr));
}
