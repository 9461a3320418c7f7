//! The manager as a library, as a long-running process uses it, in a home of the test's own.

use crate::home::Home;
use sandboxvm_images::bundle::{Bundle, BundleSources};
use sandboxvm_manager::{ExitStatus, MIB, Manager, Output, ProcessSpec, Sandbox, SandboxSpec};

/// See the module.
#[derive(Debug)]
pub struct Library {
    runtime: tokio::runtime::Runtime,
    /// The manager of the home.
    pub manager: Manager,
    /// What is under test.
    pub bundle: Bundle,
    /// A sandbox of the home's usual kind.
    pub spec: SandboxSpec,
}

impl Library {
    /// For sandboxes in `home` with this much memory.
    ///
    /// # Panics
    /// When there is no runtime, or no home.
    #[must_use]
    pub fn of(home: &Home, memory_mib: u64) -> Self {
        let directory = Some(home.artefacts().bundle.clone());
        let bundle = Bundle::find(&BundleSources { directory, ..BundleSources::default() });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let memory = (memory_mib * MIB).try_into().expect("memory of a guest");
        let spec = SandboxSpec { memory, ..SandboxSpec::default() };
        let manager = Manager::open(&home.path()).expect("the home is ours");
        Self { runtime, manager, bundle, spec }
    }

    /// Runs a future to its end.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }
}

/// Runs a command, and returns what it wrote to stdout.
///
/// # Panics
/// When it does not succeed.
pub async fn run(sandbox: &Sandbox, command: &[&str]) -> String {
    let (status, out) = execute(sandbox, command).await;
    assert_eq!(status, ExitStatus::Code(0), "{command:?}: {out}");
    out
}

/// Runs a command, and returns how it ended and what it wrote to stdout.
///
/// # Panics
/// When it cannot be run.
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
