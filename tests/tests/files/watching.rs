//! Commands that follow a running sandbox: its use of the host's resources, and its console.

use sandboxvm_tests::home::Home;

#[test]
fn resources_and_console_of_a_sandbox_are_followed_to_its_end() {
    let Some(home) = Home::with_kvm() else { return };
    let sandbox = home.create(&["-m", "128M", "--name", "seen"]);
    let mut console = home.cli(["logs", "-f", "--console", "seen"]).spawn();
    let _ = sandbox.sh("printf 'first\\033[31m line\\n' > /dev/console").succeeds();
    console.wait_for_stdout("first\\u{1b}[31m line\n");

    let mut busy = sandbox.exec(["--", "sh", "-c", "echo on; while :; do :; done"]).spawn();
    busy.wait_for_stdout("on");
    let mut watch = home.cli(["stats", "--watch", "--json", "seen"]).spawn();
    watch.wait_for_stdout("\n");
    let rows = String::from_utf8(watch.stdout_so_far()).expect("the output is UTF-8");
    let rows: serde_json::Value =
        serde_json::from_str(rows.lines().next().expect("a line")).expect("the output is JSON");
    let row = &rows[0];
    assert_eq!((row["id"].as_str(), row["name"].as_str()), (Some(sandbox.id.as_str()), Some("seen")), "{rows}");
    let number = |key: &str| row[key].as_f64().unwrap_or_else(|| panic!("no {key}: {rows}"));
    assert!(number("cpu_percent") > 1.0 && number("cpu_ns") > 0.0, "{rows}");
    assert!(number("private_bytes") > 0.0 && number("private_bytes") <= number("resident_bytes"), "{rows}");
    assert_eq!(number("memory_limit_bytes"), f64::from(128 << 20));
    let table = home.cli(["stats"]).run().succeeds();
    let lines: Vec<String> = table.out().lines().map(str::to_owned).collect();
    assert!(lines.len() == 2 && lines[1].starts_with(&sandbox.id) && lines[1].contains("128.0 MiB"), "{lines:?}");

    let _ = sandbox.sh("echo the end > /dev/console").succeeds();
    let _ = home.cli(["stop", "-t", "1s", "seen"]).run().succeeds();
    let shown = console.finish().succeeds();
    assert!(shown.out().contains("the end\n"), "{}", shown.transcript());
    assert_eq!(shown.out().matches("first").count(), 1, "{}", shown.transcript());
    let _ = watch.finish().succeeds();
    let _ = busy.finish();
    assert_eq!(home.cli(["stats", "--json"]).run().succeeds().out(), "[]\n");
    sandbox.remove();
    home.assert_nothing_left();
}
