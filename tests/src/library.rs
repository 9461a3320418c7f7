//! The manager as a library, as a long-running process uses it, in the home of a test.

use crate::home::Home;
use sandboxvm_images::bundle::{Bundle, BundleSources};
use sandboxvm_manager::{ExitStatus, MIB, Manager, Output, ProcessSpec, Sandbox, SandboxSpec};

/// A manager and the runtime in which it works.
#[derive(Debug)]
pub struct Library {
    runtime: tokio::runtime::Runtime,
    /// The manager of the home.
    pub manager: Manager,
    /// The bundle under test.
    pub bundle: Bundle,
    /// The usual kind of sandbox of this home.
    pub spec: SandboxSpec,
}

impl Library {
    /// Returns a library for sandboxes in `home` with this much memory.
    ///
    /// # Panics
    /// Panics if there is no runtime or no home.
    #[must_use]
    pub fn of(home: &Home, memory_mib: u64) -> Self {
        let directory = Some(home.artefacts().bundle.clone());
        let bundle = Bundle::find(&BundleSources { directory, ..BundleSources::default() });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let memory = (memory_mib * MIB).try_into().expect("memory of a guest");
        let spec = SandboxSpec { memory, ..SandboxSpec::default() };
        let manager = Manager::open(&home.path()).expect("the home can be opened");
        Self { runtime, manager, bundle, spec }
    }

    /// Runs a future to its end.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }
}

/// Runs a command and returns its output on stdout.
///
/// # Panics
/// Panics if the command fails.
pub async fn run(sandbox: &Sandbox, command: &[&str]) -> String {
    let (status, out) = execute(sandbox, command).await;
    assert_eq!(status, ExitStatus::Code(0), "{command:?}: {out}");
    out
}

/// Runs a command. Returns how it ended, and its output on stdout.
///
/// # Panics
/// Panics if the command cannot be run.
pub async fn execute(sandbox: &Sandbox, command: &[&str]) -> (ExitStatus, String) {
    let spec = ProcessSpec::builder(command).build().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut exec = sandbox.exec(spec).await.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut out = Vec::new();
    loop {
        match exec.output.next().await.unwrap_or_else(|error| panic!("{command:?}: {error}")) {
            Some(Output::Exited(status)) => return (status, String::from_utf8_lossy(&out).into_owned()),
            Some(Output::Stdout(bytes)) => out.extend_from_slice(&bytes),
            Some(Output::Stderr(_)) => {}
            other => panic!("{command:?}: {other:?} instead of its exit status"),
        }
    }
}
