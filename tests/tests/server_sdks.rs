//! E2B's own clients, unchanged and at pinned versions, against a real server with real microVMs. What is asserted is in
//! `tests/sdk`, a program an area; here each becomes a test, and `no_program_is_forgotten` sees to it that each does.

use sandboxvm_tests::{
    cli::Invocation,
    home::Home,
    server::{Server, small_config},
};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

macro_rules! programs {
    ($($test:ident: $path:literal $(, soak = $soak:literal)?;)*) => {
        /// All of them, below `tests/sdk`.
        const PROGRAMS: &[&str] = &[GIT, CELLS, $($path),*];
        $(
            #[test]
            $(#[ignore = $soak])?
            fn $test() {
                run($path);
            }
        )*
    };
}

programs! {
    sandboxes_as_the_python_client_has_them: "python/sandboxes.py";
    everything_as_the_asynchronous_python_client_has_it: "python/everything_async.py", soak = "soak: what the synchronous client does, once more";
    sandboxes_as_the_javascript_client_has_them: "js/sandboxes.cjs";
    pauses_without_memory_as_the_python_client_has_them: "python/pause_without_memory.py";
    pauses_without_memory_as_the_javascript_client_has_them: "js/pause_without_memory.cjs", soak = "soak: the Python client does the same";
    commands_and_files_as_the_javascript_client_has_them: "js/commands_and_files.mjs";
    commands_as_the_python_client_has_them: "python/commands.py";
    files_as_the_python_client_has_them: "python/files.py";
    sandboxes_that_end_meanwhile_as_the_python_client_has_them: "python/ended.py";
    watched_directories_as_the_python_client_has_them: "python/watch.py";
    terminals_as_the_python_client_has_them: "python/pty.py";
    ports_reached_from_outside: "python/ports.py";
    hostile_requests_to_a_sandbox: "python/hostile.py";
    power_off_as_the_python_client_has_it: "python/power_off.py";
    power_off_as_the_javascript_client_has_it: "js/power_off.mjs", soak = "soak: the Python client does the same";
    example_of_the_python_client: "../../examples/python_sdk.py";
    example_of_the_javascript_client: "../../examples/javascript_sdk.cjs";
    example_of_a_langchain_tool: "../../examples/langchain_tool.py";
    example_of_a_rollout: "../../examples/rollout.py";
}

const GIT: &str = "python/git.py";
const CELLS: &str = "code_interpreter/cells.py";
/// What the Python programs import; no program itself.
const EXPECT: &str = "python/expect.py";

#[test]
#[ignore = "soak: three minutes of a guest's processor for what git itself does"]
fn git_as_the_python_client_has_it() {
    run(GIT);
}

/// The template is made by the command that makes it for everybody, its image too where there is none in the cache.
#[test]
#[ignore = "soak: a Python kernel warms up for minutes"]
fn the_code_interpreter_as_its_client_has_it() {
    let Some(home) = Home::with_kvm() else { return };
    let mut script = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/code-interpreter"));
    let artefacts = home.artefacts();
    script.env("SANDBOXVM", &artefacts.program).env("SANDBOXVM_BUNDLE", &artefacts.bundle);
    script.env("SANDBOXVM_HOME", home.path()).stdin(Stdio::null());
    let made = Invocation::new(script).deadline(Duration::from_secs(3600)).run().succeeds();
    assert!(made.err().contains("listens on port 49999"), "{}", made.transcript());
    let config = "[templates.code-interpreter-v1]\nsnapshot = \"code-interpreter\"\nuser = \"user\"\n";
    run_in(&home, config, CELLS, Duration::from_secs(1800));
    home.remove_snapshots();
    home.assert_nothing_left();
}

fn sdk_programs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk")
}

fn run(path: &str) {
    let Some(home) = Home::with_kvm() else { return };
    run_in(&home, &small_config(), path, Duration::from_secs(300));
    home.assert_nothing_left();
}

/// Runs a program against a server of this configuration.
fn run_in(home: &Home, config: &str, path: &str, within: Duration) {
    let sdks = env::var_os("SANDBOXVM_TEST_SDKS").expect("scripts/test sets SANDBOXVM_TEST_SDKS: scripts/lib/sdks.sh");
    let interpreter = match Path::new(path).extension().and_then(|extension| extension.to_str()) {
        Some("py") => Path::new(&sdks).join("python/bin/python"),
        _ => PathBuf::from("node"),
    };
    let server = Server::start(home, config);
    server.runs(&interpreter, &sdk_programs().join(path), &Path::new(&sdks).join("js/node_modules"), within);
    server.stop();
}

#[test]
fn no_program_is_forgotten() {
    let mut there = Vec::new();
    for directory in ["python", "js", "code_interpreter", "../../examples"] {
        for entry in fs::read_dir(sdk_programs().join(directory)).expect("the programs are there").flatten() {
            let name = entry.file_name().into_string().expect("a plain name");
            if [".py", ".cjs", ".mjs"].iter().any(|ending| name.ends_with(ending)) {
                there.push(format!("{directory}/{name}"));
            }
        }
    }
    let mut listed: Vec<String> = PROGRAMS.iter().chain([&EXPECT]).map(|path| (*path).to_owned()).collect();
    there.sort();
    listed.sort();
    assert_eq!(there, listed);
}
