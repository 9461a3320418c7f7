//! Runs Python in a new sandbox and removes it: `cargo run -p sandboxvm-manager --example run_python HOME BUNDLE`.

use sandboxvm_manager::{Bundle, BundleSources, Manager, Output, ProcessSpec, SandboxSpec};
use std::{env, error::Error, io, io::Write, path::PathBuf};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut paths = env::args_os().skip(1).map(PathBuf::from);
    let manager = Manager::open(&paths.next().unwrap_or_else(|| "/var/lib/sandboxvm".into()))?;
    let bundle = Bundle::find(&BundleSources { directory: paths.next(), ..BundleSources::default() });
    let started = manager.start(&bundle, &SandboxSpec::default()).await?;
    let spec = ProcessSpec::builder(["python3", "-c", "print(6 * 7)"]).build()?;
    let mut process = started.sandbox().exec(spec).await?;
    while let Some(output) = process.output.next().await? {
        if let Output::Stdout(bytes) = output {
            io::stdout().write_all(&bytes)?;
        }
    }
    started.finish().await?;
    Ok(())
}
