//! The client library of the MCP project uses `sandboxvm mcp` over stdio and over HTTP, with real
//! microVMs. The assertions are in `tests/sdk/mcp`.

use sandboxvm_tests::{
    cli::{self, Invocation},
    home::Home,
};
use std::{env, path::Path, process::Command, time::Duration};

#[test]
fn tools_work_for_the_client_library_of_the_mcp_project() {
    let Some(home) = Home::with_kvm() else { return };
    let sdks = env::var_os("SANDBOXVM_TEST_SDKS").expect("scripts/test sets SANDBOXVM_TEST_SDKS: scripts/lib/sdks.sh");
    let mut command = Command::new(Path::new(&sdks).join("python/bin/python"));
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk/mcp/mcp_tools.py"));
    command.env("SANDBOXVM", &home.artefacts().program).env("SANDBOXVM_HOME", home.path());
    command.env("SANDBOXVM_BUNDLE", &home.artefacts().bundle).env("PYTHONDONTWRITEBYTECODE", "1");
    let ended = Invocation::new(command).deadline(Duration::from_secs(150) * cli::patience()).run();
    assert!(ended.code() == Some(0), "{}", ended.transcript());
    home.assert_nothing_left();
}
