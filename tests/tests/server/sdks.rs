//! E2B's own clients, unmodified and at pinned versions, use a real server with real microVMs. The
//! assertions are in `tests/sdk`, with one program for each area. Each program is one test here,
//! and `every_program_is_a_test` checks that.

use crate::registry::{self, Registry};
use sandboxvm_tests::{
    cli::Invocation,
    home::Home,
    server::{Server, small_config},
};
use std::{
    env, fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

macro_rules! programs {
    ($($test:ident: $path:literal $(, soak = $soak:literal)?;)*) => {
        /// All programs, below `tests/sdk`.
        const PROGRAMS: &[&str] = &[GIT, NETWORK, CELLS, TEMPLATES, VOLUMES, $($path),*];
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
    sandboxes_work_for_the_python_client: "python/sandboxes.py";
    everything_works_for_the_asynchronous_python_client: "python/everything_async.py", soak = "soak: what the synchronous client does, once more";
    sandboxes_work_for_the_javascript_client: "js/sandboxes.cjs";
    pauses_without_memory_work_for_the_python_client: "python/pause_without_memory.py";
    pauses_without_memory_work_for_the_javascript_client: "js/pause_without_memory.cjs", soak = "soak: the Python client does the same";
    commands_and_files_work_for_the_javascript_client: "js/commands_and_files.mjs", soak = "soak: the Python client does the same, and the JavaScript example both";
    commands_work_for_the_python_client: "python/commands.py";
    files_work_for_the_python_client: "python/files.py";
    ends_of_sandboxes_are_reported_to_the_python_client: "python/ended.py";
    watched_directories_work_for_the_python_client: "python/watch.py";
    terminals_work_for_the_python_client: "python/pty.py";
    ports_of_sandboxes_can_be_reached: "python/ports.py";
    hostile_requests_do_not_harm_a_sandbox: "python/hostile.py";
    power_off_works_for_the_python_client: "python/power_off.py";
    volumes_work_for_the_javascript_client: "js/volumes.mjs";
    power_off_works_for_the_javascript_client: "js/power_off.mjs", soak = "soak: the Python client does the same";
    example_of_the_python_client_works: "../../examples/python_sdk.py", soak = "soak: a server of Python's library takes long to start, and the JavaScript example runs always";
    example_of_the_javascript_client_works: "../../examples/javascript_sdk.cjs";
    example_of_a_langchain_tool_works: "../../examples/langchain_tool.py", soak = "soak: Python starts in the guest for each call of the tool";
    example_of_a_rollout_works: "../../examples/rollout.py";
}

const GIT: &str = "python/git.py";
const NETWORK: &str = "python/network.py";
const TEMPLATES: &str = "python/templates.py";
const VOLUMES: &str = "python/volumes.py";
const CELLS: &str = "code_interpreter/cells.py";
/// A module that the Python programs import. It is not a program.
const EXPECT: &str = "python/expect.py";

#[test]
#[ignore = "soak: three minutes of a guest's processor for what git itself does"]
fn git_works_for_the_python_client() {
    run(GIT);
}

#[test]
fn networks_are_asked_for_and_changed_by_the_python_client() {
    let Some(home) = Home::with_kvm() else { return };
    let config = format!("network = {{ default = \"public\", dns_servers = false }}\n{}", small_config());
    run_in(&home, &config, NETWORK, Duration::from_secs(300));
    home.assert_nothing_left();
}

#[test]
fn volumes_work_for_the_python_client() {
    let Some(home) = Home::with_kvm() else { return };
    let config = format!("volume_size = 16\nvolume_files = 1000\n{}", small_config());
    run_in(&home, &config, VOLUMES, Duration::from_secs(300));
    home.assert_nothing_left();
}

/// An image with bash and little else, from a registry on loopback that the operator permits.
fn image_with_bash(home: &Home) -> Registry {
    let root = home.scratch("root");
    for directory in ["bin", "etc", "tmp"] {
        fs::create_dir_all(root.join(directory)).expect("the test's directory can be written");
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("a directory of this test");
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("the package busybox-static is installed");
    for applet in ["sh", "cat", "id", "stat", "sleep", "env"] {
        symlink("busybox", root.join("bin").join(applet)).expect("a new name");
    }
    fs::copy("/bin/bash", root.join("bin/bash")).expect("the host has bash");
    let listed = Command::new("ldd").arg("/bin/bash").output().expect("the host has ldd");
    for library in String::from_utf8_lossy(&listed.stdout).split_whitespace().filter(|word| word.starts_with('/')) {
        let place = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(place.parent().expect("a file is in a directory")).expect("a directory of this test");
        fs::copy(library, place).expect("a library of the host");
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").expect("a directory of this test");
    fs::write(root.join("etc/group"), "root:x:0:\n").expect("a directory of this test");
    let layout = home.scratch("layout");
    registry::layout(&layout, &root, &["--config.env=PATH=/bin"]);
    let registry = Registry::start(tempfile::tempdir().expect("a temporary directory"), "", "");
    registry.fill(&layout, "test", "app");
    registry
}

#[test]
fn templates_are_built_from_an_image_by_the_python_client() {
    let Some(home) = Home::with_kvm() else { return };
    let registry = image_with_bash(&home);
    let host = registry.host();
    let config = format!("[images]\nregistries = [\"{host}\"]\nplain_http = [\"{host}\"]\n");
    let sdks = env::var_os("SANDBOXVM_TEST_SDKS").expect("scripts/test sets SANDBOXVM_TEST_SDKS: scripts/lib/sdks.sh");
    let server = Server::start(&home, &config);
    let (python, image) = (Path::new(&sdks).join("python/bin/python"), format!("{host}/app"));
    let variables = [("TEMPLATE_IMAGE", image.as_str())];
    let within = Duration::from_secs(600);
    server.runs_with(&python, &sdk_programs().join(TEMPLATES), Path::new(&sdks), within, &variables);
    server.stop();
    let snapshots = home.cli(["snapshot", "ls", "-q"]).run().succeeds().out();
    assert!(snapshots.lines().all(|name| name.starts_with("step-")), "the template was deleted: {snapshots}");
    home.remove_snapshots();
    home.cli(["image", "prune", "--all"]).run().succeeds();
    // Uploads stay for later builds.
    fs::remove_dir_all(home.path().join("server/uploads")).expect("the client uploaded files");
    home.assert_nothing_left();
}

/// The command that users run creates the template, and its image too if the cache has none.
#[test]
#[ignore = "soak: a Python kernel warms up for minutes"]
fn the_code_interpreter_works_for_its_client() {
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

/// Runs a program against a server with this configuration.
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
fn every_program_is_a_test() {
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
