//! An image from a Dockerfile, in real guests.

use crate::{registry, small_image};
use sandboxvm_tests::home::{Home, SMALL, Sandbox};
use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    thread,
};

const DOCKERFILE: &str = r#"
ARG BASE=example.test/base:1
FROM $BASE AS builder
USER root
ENV B=${A}-more
WORKDIR /src
COPY --chmod=755 a.txt d ./
RUN echo "$B $(id -u)" >out; sleep 1000 &
RUN --mount=type=secret,id=token \
    wc -c </run/secrets/token >>out; cat /run/secrets/token

FROM $BASE AS last
COPY --from=builder --chown=app:extra /src/o* /src/b /opt/
ADD root.tar /
USER root
RUN --mount=source=d,target=/ctx --mount=source=a.txt,target=/ctx.txt --mount=type=bind,source=d,target=/rw,rw \
    --mount=type=tmpfs,target=/mem,size=64k --mount=from=builder,source=/src/out,target=/opt/bound \
    cat /ctx.txt /ctx/b >/opt/seen; (echo x >/ctx/b; echo x >/ctx/new; echo x >/opt/bound) 2>&1 | cat >>/opt/seen; \
    echo changed >/rw/b; cat /rw/b /opt/bound >>/opt/seen; echo kept >/mem/file; cat /mem/file >>/opt/seen; sleep 1000 &
USER app
WORKDIR /home/app
RUN cat /proc/[0-9]*/cmdline >seen
RUN id -un >who; rm /opt/b; echo made >/run/daemon/made
CMD ["/bin/cat", "/opt/out"]
"#;

const SECRET: &str = "tok-8a1f0c-secret";

/// Writes each file of a layer as mode, owner and name.
fn files(layer: &Path) -> Vec<String> {
    let output = Command::new("tar").args(["--numeric-owner", "-tvzf"]).arg(layer).output().expect("tar is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let line = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        format!("{} {} {}", fields[0], fields[1], fields[5..].join(" "))
    };
    String::from_utf8_lossy(&output.stdout).lines().map(line).collect()
}

/// Builds copies above the base image, and returns the files of all layers that are not of it.
fn copied(home: &Home, context: &Path, tag: &str, first: &str) -> BTreeSet<String> {
    let text = format!(
        "FROM example.test/base:1\nUSER root\n{first}WORKDIR /w\nCOPY --chown=5:6 a.txt d ./\nADD root.tar /\n"
    );
    let (file, saved, layers) = (context.join(tag), home.scratch(&format!("{tag}.tar")), home.scratch(tag));
    fs::write(&file, text).unwrap();
    let (file, at) = (file.to_str().unwrap(), context.to_str().unwrap());
    home.cli(["build", "-m", SMALL, "--disk", "256M", "-t", tag, "-f", file, at]).run().succeeds();
    home.cli(["image", "save", tag, "-o", saved.to_str().unwrap()]).run().succeeds();
    let (from, to) = (format!("oci-archive:{}", saved.display()), format!("dir:{}", layers.display()));
    registry::run("skopeo", &["copy", &from, &to]);
    let manifest = fs::read(layers.join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let digests = manifest["layers"].as_array().unwrap().iter().skip(1);
    digests.flat_map(|layer| files(&layers.join(&layer["digest"].as_str().unwrap()["sha256:".len()..]))).collect()
}

#[test]
fn stages_are_built_in_sandboxes_and_known_the_next_time() {
    let Some(home) = Home::with_kvm() else { return };
    let layout = small_image(&home);
    home.cli(["image", "load", "-i", layout.to_str().unwrap(), "--name", "example.test/base:1"]).run().succeeds();
    let context = home.scratch("context");
    fs::create_dir_all(context.join("d")).unwrap();
    for (name, content) in [("Dockerfile", DOCKERFILE), ("a.txt", "hello"), ("d/b", "inner")] {
        fs::write(context.join(name), content).unwrap();
    }
    let token = home.scratch("token");
    fs::write(&token, SECRET).unwrap();
    // The machine mounts its own file over `/etc/hosts`, and file systems in memory over other places.
    for (name, content) in [("etc/hosts", "192.0.2.9 of-the-archive\n"), ("proc/note", "kept"), ("run/daemon/pid", "1")]
    {
        let path = context.join("root").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    fs::set_permissions(context.join("root/run/daemon"), fs::Permissions::from_mode(0o777)).unwrap();
    let (tree, archive) = (context.join("root"), context.join("root.tar"));
    registry::run("tar", &["-C", tree.to_str().unwrap(), "-cf", archive.to_str().unwrap(), "."]);
    fs::remove_dir_all(tree).unwrap();
    let secret = format!("id=token,src={}", token.display());
    let options = ["-m", SMALL, "--disk", "256M", "-t", "example.test/app:1", "--secret", &secret];
    let build = [&["build"][..], &options, &[context.to_str().unwrap()]].concat();

    let first = home.cli(&build).run().succeeds();
    let said = first.err();
    assert!(said.contains("[stage 1, 6/6] RUN id -un") && said.contains("***") && !said.contains(SECRET), "{said}");

    // The same once more: no sandbox is started, and the image is the same.
    let again = home.cli(&build).run().succeeds();
    assert_eq!(again.err().matches("CACHED").count(), 6, "{}", again.err());
    assert_eq!(again.out(), first.out());

    let (saved, unpacked, bundle) = (home.scratch("app.tar"), home.scratch("app"), home.scratch("bundle"));
    home.cli(["image", "save", "example.test/app:1", "-o", saved.to_str().unwrap()]).run().succeeds();
    registry::run(
        "skopeo",
        &["copy", &format!("oci-archive:{}", saved.display()), &format!("oci:{}:it", unpacked.display())],
    );
    registry::run(
        "umoci",
        &["unpack", "--rootless", "--image", &format!("{}:it", unpacked.display()), bundle.to_str().unwrap()],
    );
    let root = bundle.join("rootfs");
    assert_eq!(fs::read_to_string(root.join("opt/out")).unwrap(), format!("image-more 0\n{}\n", SECRET.len()));
    assert_eq!(fs::read_to_string(root.join("home/app/who")).unwrap(), "app\n");
    assert!(!fs::read_to_string(root.join("home/app/seen")).unwrap().contains("sleep"), "a step left a process");
    // What was bound could be read, could not be written to unless the Dockerfile said so, and left nothing behind.
    let refused = "/bin/sh: can't create /ctx/b: Read-only file system\n";
    let seen = fs::read_to_string(root.join("opt/seen")).unwrap();
    assert!(seen.starts_with(&format!("helloinner{refused}")), "{seen}");
    assert_eq!(seen.matches("Read-only file system").count(), 3, "{seen}");
    assert!(seen.ends_with(&format!("changed\nimage-more 0\n{}\nkept\n", SECRET.len())), "{seen}");
    for name in ["ctx", "ctx.txt", "rw", "mem", "opt/bound", ".sandboxvm-binds"] {
        assert!(!root.join(name).exists(), "{name} is left");
    }
    assert_eq!(fs::read_to_string(context.join("d/b")).unwrap(), "inner");
    assert!(!root.join("opt/b").exists() && !root.join("src").exists());
    for (name, content) in [
        ("etc/hosts", "192.0.2.9 of-the-archive\n"),
        ("proc/note", "kept"),
        ("run/daemon/pid", "1"),
        ("run/daemon/made", "made\n"),
    ] {
        assert_eq!(fs::read_to_string(root.join(name)).unwrap(), content, "{name}");
    }
    assert!(!root.join("run/sandboxvm").exists() && !root.join("run/secrets").exists());

    registry::run(
        "skopeo",
        &["copy", &format!("oci-archive:{}", saved.display()), &format!("dir:{}", home.scratch("dir").display())],
    );
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(home.scratch("dir").join("manifest.json")).unwrap()).unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 2, "a stage adds one layer to its base");
    let layer = home.scratch("dir").join(&layers[1]["digest"].as_str().unwrap()["sha256:".len()..]);
    let listed = files(&layer);
    for expected in ["-rw-r--r-- 1001/1003 opt/out", "-rw-r--r-- 1001/1002 home/app/who", "drwxr-xr-x 1001/1003 opt/"] {
        assert!(listed.iter().any(|line| line == expected), "{expected} is missing in {listed:?}");
    }

    // The secret is in no file of the home: neither in a state, which has memory, nor in a log. What a step
    // without a secret wrote is found there.
    let found = |text: &str| {
        let output = Command::new("grep").args(["-rlF", text]).arg(home.path()).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(found("image-more 0").contains("snapshots/build-"), "{}", found("image-more 0"));
    assert_eq!(found(SECRET), "");

    // The host makes of copies what a machine makes of them. The states of the machine are counted below.
    let (host, machine) = (copied(&home, &context, "host", ""), copied(&home, &context, "machine", "RUN true\n"));
    assert_eq!(host, machine);
    assert!(host.contains("-rw-r--r-- 5/6 w/b") && host.contains("drwxrwxrwx 0/0 run/daemon/"), "{host:?}");

    fs::write(context.join("Dockerfile"), DOCKERFILE.replace("rm /opt/b", "exit 7")).unwrap();
    let failed = home.cli(&build).run().exits(1).err();
    assert!(
        failed.contains("CACHED RUN cat") && failed.contains("Dockerfile:23: the command exited with code 7"),
        "{failed}"
    );
    home.cli(["image", "inspect", "example.test/app:1"]).run().succeeds();
    // States are snapshots, which stay until they are removed.
    let states = home.cli(["snapshot", "ls", "-q"]).run().succeeds().out();
    assert_eq!(states.matches("build-").count(), 9 + 4, "{states}");
    home.cli(["snapshot", "rm"].into_iter().chain(states.lines())).run().succeeds();
    home.cli(["image", "prune", "--all"]).run().succeeds();
    home.assert_nothing_left();
}

/// Serves one file at every path but `/moved`, which leads to it. Returns the port. The thread ends with the process.
fn file_server(content: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 4096];
            let count = stream.read(&mut request).unwrap();
            let head = if request[..count].starts_with(b"GET /moved ") {
                format!("302 X\r\nLocation: http://127.0.0.1:{port}/file\r\n")
            } else {
                "200 X\r\nLast-Modified: Thu, 01 Jan 1970 00:01:40 GMT\r\n".to_owned()
            };
            let length = content.len();
            let answer = format!("HTTP/1.1 {head}Content-Length: {length}\r\nConnection: close\r\n\r\n{content}");
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    port
}

#[test]
fn files_by_url_are_added_within_what_the_build_may_reach() {
    let Some(home) = Home::with_kvm() else { return };
    let (port, secret) = (file_server("content"), file_server("metadata of the host"));
    let (context, config) = (home.scratch("context"), home.scratch("config"));
    fs::create_dir_all(&context).unwrap();
    fs::create_dir_all(config.join("sandboxvm")).unwrap();
    // The servers are services of this host. Only its operator can open them.
    let build = |text: &str, options: &[&str]| {
        fs::write(context.join("Dockerfile"), text).unwrap();
        let command = [&["build", "-t", "added"][..], options, &[context.to_str().unwrap()]].concat();
        home.cli(command).env("XDG_CONFIG_HOME", &config).run()
    };
    let rule = format!("127.0.0.1:{port}");
    let url = format!("http://127.0.0.1:{port}/moved");
    let text = format!("FROM scratch\nADD {url} /opt/\nADD --chown=5:6 --chmod=644 {url} /opt/as\n");
    let network = ["--plain-http", "--allow", &rule];
    build(&text, &[]).fails_with(&["the build has no network", "--allow"]);
    build(&text, &network).fails_with(&["its address is not allowed"]);
    let operator = config.join("sandboxvm/network.toml");
    fs::write(&operator, "[operator]\nopen = [\"127.0.0.0/8\"]\n").unwrap();
    build(&text, &["--allow", &rule]).fails_with(&["without TLS", "--plain-http"]);
    build(&text, &network).succeeds();
    let (saved, layers) = (home.scratch("added.tar"), home.scratch("added"));
    home.cli(["image", "save", "added", "-o", saved.to_str().unwrap()]).run().succeeds();
    registry::run(
        "skopeo",
        &["copy", &format!("oci-archive:{}", saved.display()), &format!("dir:{}", layers.display())],
    );
    let manifest = fs::read(layers.join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let of_layer = |layer: &serde_json::Value| layers.join(&layer["digest"].as_str().unwrap()["sha256:".len()..]);
    let listed: BTreeSet<_> =
        manifest["layers"].as_array().unwrap().iter().flat_map(|layer| files(&of_layer(layer))).collect();
    assert!(listed.contains("-rw------- 0/0 opt/moved") && listed.contains("-rw-r--r-- 5/6 opt/as"), "{listed:?}");
    let last = of_layer(&manifest["layers"][1]);
    let output = Command::new("tar").args(["--utc", "--full-time", "-tvzf"]).arg(last).output().unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    assert!(output.contains("1970-01-01 00:01:40 opt/as"), "{output}");

    // A Dockerfile, and a redirect, reach nothing else of the host. With the rule they would.
    let other = format!("FROM scratch\nADD http://127.0.0.1:{secret}/file /stolen\n");
    build(&other, &network).fails_with(&["its address is not allowed"]);
    build(&other, &["--plain-http", "--net", "public"]).fails_with(&["its address is not allowed"]);
    build(&other, &[&network[..], &["--allow", &format!("127.0.0.1:{secret}")]].concat()).succeeds();
    let pinned = |digits: &str| format!("FROM scratch\nADD --checksum=sha256:{digits} {url} /x\n");
    // sha256 of "content"
    let right = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73";
    build(&pinned(right), &network).succeeds();
    build(&pinned(&right.replace("ed", "00")), &network).fails_with(&["its digest is sha256:ed7002", "expected"]);
    build("FROM scratch\nADD https://a.example/b.git /x\n", &network).fails_with(&["the git repository"]);
    home.cli(["image", "prune", "--all"]).run().succeeds();
    home.assert_nothing_left();
}

#[test]
fn a_template_has_its_start_command_running_and_needs_a_shell() {
    let Some(home) = Home::with_kvm() else { return };
    let layout = small_image(&home);
    home.cli(["image", "load", "-i", layout.to_str().unwrap(), "--name", "example.test/base:1"]).run().succeeds();
    let context = home.scratch("context");
    fs::create_dir_all(&context).unwrap();
    // busybox has no applet of this name.
    fs::write(context.join("bash"), "#!/bin/sh\nexec /bin/sh \"$@\"\n").unwrap();
    let template = |text: &str, start: &str| {
        fs::write(context.join("Dockerfile"), text).unwrap();
        let commands = ["--cmd", start, "--ready-cmd", "[ -e /tmp/started ]"];
        let machine = ["template", "build", "--name", "web", "-m", SMALL, "--disk", "256M", "-t", "web:1"];
        home.cli([&machine[..], &commands, &[context.to_str().unwrap()]].concat()).run()
    };
    let start = "echo $A >/tmp/started; exec sleep 1000";
    template("FROM example.test/base:1\n", start).fails_with(&["the image has no /bin/bash"]);
    assert_eq!(home.cli(["snapshot", "ls", "-q"]).run().succeeds().out(), "");
    let text = "FROM example.test/base:1\nENV A=of-the-template\nCOPY --chmod=755 bash /bin/bash\n";
    let made = template(text, start).succeeds();
    assert_eq!(made.out(), "template-web\n");
    assert!(made.err().contains("[templates.web]\nsnapshot = \"template-web\"\nuser = \"app\"\n"), "{}", made.err());
    let created = home.cli(["create", "--from", "template-web"]).run().succeeds();
    let sandbox = Sandbox::printed(&home, &created);
    let seen = sandbox.exec(["sh", "-c", "cat /tmp/started /proc/[0-9]*/cmdline"]).run().succeeds().out();
    assert!(seen.starts_with("of-the-template\n") && seen.contains("sleep\x001000"), "{seen:?}");
    sandbox.remove();
    // The next one replaces it, and the image is the one that `build` makes.
    assert_eq!(template(text, "echo other >/tmp/started").succeeds().out(), "template-web\n");
    let seen = home.cli(["run", "--from", "template-web", "--", "cat", "/tmp/started"]).run().succeeds().out();
    assert_eq!(seen, "other\n");
    home.cli(["image", "inspect", "web:1"]).run().succeeds();
    home.cli(["snapshot", "rm", "template-web"]).run().succeeds();
    home.cli(["image", "prune", "--all"]).run().succeeds();
    home.assert_nothing_left();
}
