//! Order, caching, copies, secrets, failures: what the engine asks of machines.

pub(crate) mod recorder;

use super::*;
use crate::dockerfile::Dockerfile;
use recorder::Recorder;
use std::{fs, sync::Mutex};

#[derive(Default)]
struct Events(Mutex<Vec<String>>);

impl Progress for Events {
    fn notify(&self, event: Event<'_>) {
        let line = match event {
            Event::Step { text, cached, number, of, .. } => {
                format!("{}{number}/{of} {text}", if cached { "cached " } else { "" })
            }
            Event::Output(_, bytes) => format!("> {}", String::from_utf8_lossy(bytes)),
            Event::Note(text) => format!("note: {text}"),
            Event::Stored(digest) => digest.to_owned(),
        };
        self.0.lock().unwrap().push(line);
    }
}

struct Setup {
    directory: tempfile::TempDir,
    machines: Recorder,
    secrets: Secrets,
    use_cache: bool,
}

impl Setup {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("a.txt"), "1").unwrap();
        fs::create_dir(directory.path().join("d")).unwrap();
        fs::write(directory.path().join("d/b"), "2").unwrap();
        Self { directory, machines: Recorder::default(), secrets: Secrets::default(), use_cache: true }
    }

    /// Builds, and returns the log of the machines and the events.
    fn build(&self, text: &str) -> (Result<Built, BuildError>, Vec<String>, Vec<String>) {
        let file = Dockerfile::parse("D", text).unwrap();
        let context = Context::open(self.directory.path()).unwrap();
        let request = BuildRequest {
            file: &file,
            context: &context,
            args: &BuildArgs::new(),
            target: None,
            secrets: &self.secrets,
            use_cache: self.use_cache,
            tag: Some("app"),
            created: None,
        };
        let events = Events::default();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let built = runtime.block_on(build(&request, &self.machines, &events));
        (built, self.machines.log(), events.0.into_inner().unwrap())
    }
}

#[test]
fn steps_are_executed_in_order_and_cached_the_next_time() {
    let setup = Setup::new();
    let text = "FROM base\nENV A=1\nWORKDIR /w\nCOPY a.txt .\nUSER app\nRUN make\nCMD [\"x\"]\n";
    let (built, log, events) = setup.build(text);
    assert_eq!((built.as_ref().unwrap().executed, built.unwrap().cached), (3, 0));
    let expected = [
        "start sha256:base",
        "save",
        "extract /w/a.txt 0:0",
        "save",
        "run make as \"app\" in /w",
        "save",
        "publish the changes",
    ];
    assert_eq!(log, expected);
    assert_eq!(setup.machines.0.lock().unwrap().below_mounts, 1);
    assert_eq!(events[0], "1/3 WORKDIR /w");
    assert_eq!(events.last().unwrap(), "sha256:built");

    // Nothing changed, so no machine is started.
    let (built, log, events) = setup.build(text);
    assert_eq!((built.unwrap().cached, log), (3, vec!["publish a known layer".to_owned()]));
    assert_eq!(events[2], "cached 3/3 RUN make");
    // Another configuration with the same files.
    let (_, log, _) = setup.build(&text.replace("\"x\"", "\"y\""));
    assert_eq!(log, ["publish a known layer"]);
    let published = &setup.machines.0.lock().unwrap().published;
    assert_eq!((published[2].config.cmd.join(""), published[2].history.len()), ("y".into(), 6));
}

/// Returns the names in an archive.
fn names(bytes: &[u8]) -> Vec<String> {
    let mut reader = sandboxvm_archive::Reader::new(bytes);
    let mut names = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        names.push(String::from_utf8(entry.path).unwrap());
    }
    names
}

#[test]
fn copies_without_a_run_need_no_machine() {
    let setup = Setup::new();
    let text = "FROM base\nENV A=1\nWORKDIR /etc/w\nCOPY a.txt d ./\nCMD [\"x\"]\n";
    let (built, log, events) = setup.build(text);
    assert_eq!((built.as_ref().unwrap().executed, built.unwrap().cached), (2, 0));
    assert_eq!(log, ["extend sha256:base by WORKDIR /etc/w, COPY a.txt d ./", "publish a known layer"]);
    assert_eq!(events[..2], ["1/2 WORKDIR /etc/w", "2/2 COPY a.txt d ./"]);
    {
        let shared = setup.machines.0.lock().unwrap();
        assert_eq!(names(&shared.extended["sha256:base+"]), ["etc/", "etc/w/"]);
        assert_eq!(names(&shared.extended["sha256:base++"]), ["etc/", "etc/w/", "etc/w/a.txt", "etc/w/b"]);
        let published = &shared.published[0];
        assert_eq!((published.base.digest.as_str(), published.key), ("sha256:base++", None));
        // The layers have their own lines.
        assert_eq!(published.history, ["ENV A=1", "CMD [\"x\"]"]);
    }
    let (built, log, events) = setup.build(text);
    assert!(setup.machines.0.lock().unwrap().published[1].last_step.is_some());
    assert_eq!((built.unwrap().cached, log.len()), (2, 2));
    assert_eq!(events[1], "cached 2/2 COPY a.txt d ./");
    fs::write(setup.directory.path().join("a.txt"), "changed").unwrap();
    let (built, log, _) = setup.build(text);
    assert_eq!((built.as_ref().unwrap().executed, built.unwrap().cached), (1, 1));
    assert_eq!(log[..2], ["extend sha256:base by WORKDIR /etc/w", "extend sha256:base+ by COPY a.txt d ./"]);
}

#[test]
fn copies_into_an_image_with_too_many_names_are_made_in_a_machine() {
    let setup = Setup::new();
    setup.machines.0.lock().unwrap().unlisted = true;
    let (built, log, _) = setup.build("FROM base\nCOPY a.txt /x\n");
    assert_eq!(built.unwrap().executed, 1);
    assert_eq!(log, ["start sha256:base", "extract /x 0:0", "save", "publish the changes"]);
}

#[test]
fn copies_through_a_link_of_the_image_are_made_in_a_machine() {
    let setup = Setup::new();
    setup.machines.0.lock().unwrap().links.push("lib".into());
    let text = "FROM base\nCOPY a.txt /x\nCOPY a.txt /lib/\nCOPY a.txt /y\n";
    let (built, log, _) = setup.build(text);
    assert_eq!(built.unwrap().executed, 3);
    let expected = [
        "extend sha256:base by COPY a.txt /x",
        "start sha256:base+",
        "extract /lib/a.txt 0:0",
        "save",
        "extract /y 0:0",
        "save",
        "publish the changes",
    ];
    assert_eq!(log, expected);
    // What is known has the same layers below it.
    assert_eq!(setup.build(text).1, ["extend sha256:base by COPY a.txt /x", "publish a known layer"]);
    let published = setup.machines.0.lock().unwrap().published.clone();
    assert_eq!(published[1].base.digest, "sha256:base+");
    assert_eq!(published[0].history, published[1].history);
    // A user by name is one of the machine's.
    let (_, log, _) = setup.build("FROM base\nCOPY --chown=app a.txt /x\n");
    assert_eq!(log[..2], ["start sha256:base", "extract /x 1000:100"]);
}

#[test]
fn files_are_the_same_with_and_without_a_machine() {
    let setup = Setup::new();
    let left = |text: &str, first: &str| {
        let (built, log, _) = setup.build(text);
        built.unwrap();
        assert!(log[0].starts_with(first), "{log:?}");
        std::mem::take(&mut setup.machines.0.lock().unwrap().left)
    };
    let copies = "WORKDIR /w\nCOPY a.txt d ./\nCOPY --chown=5:6 d /opt/\nADD a.txt /etc/added\nCOPY <<F /f\nx\nF\n";
    let host = left(&format!("FROM scratch\n{copies}RUN last\n"), "extend sha256:empty");
    let machine = left(&format!("FROM scratch\nRUN last\n{copies}"), "start sha256:empty");
    assert_eq!(host, machine);
    assert!(host.iter().any(|line| line == "/opt/b=2"), "{host:?}");
}

#[test]
fn a_machine_starts_from_large_copies() {
    let setup = Setup::new();
    let large = fs::File::create(setup.directory.path().join("large")).unwrap();
    large.set_len(17 << 20).unwrap();
    let text = "FROM base\nCOPY large /\nRUN one\nRUN two\n";
    let (_, log, _) = setup.build(text);
    assert_eq!(log[..3], ["extend sha256:base by COPY large /", "start sha256:base+", "run one as \"\" in /"]);
    // The state after the first RUN is of a machine with the layer.
    let (_, log, _) = setup.build(&text.replace("two", "three"));
    assert_eq!(log, ["restore", "run three as \"\" in /", "save", "publish the changes"]);
    // Without the layer, that above it is not known either.
    setup.machines.0.lock().unwrap().step_layers.clear();
    assert_eq!(setup.build(text).1[0], "restore");
}

#[test]
fn changed_step_is_executed_with_those_after_it() {
    let setup = Setup::new();
    let text = "FROM base\nRUN one\nCOPY a.txt /\nRUN two\n";
    setup.build(text).0.unwrap();
    fs::write(setup.directory.path().join("a.txt"), "changed").unwrap();
    let (built, log, _) = setup.build(text);
    assert_eq!((built.as_ref().unwrap().executed, built.unwrap().cached), (2, 1));
    assert_eq!(log[..2], ["restore", "extract /a.txt 0:0"]);
    // A file that no step copies is not part of a key.
    fs::write(setup.directory.path().join("d/b"), "changed").unwrap();
    assert_eq!(setup.build(text).0.unwrap().executed, 0);
    // Another base image changes all keys.
    assert_eq!(setup.build(&text.replace("base", "other")).0.unwrap().executed, 3);
    // So does another network.
    setup.machines.0.lock().unwrap().surroundings = b"other".to_vec();
    assert_eq!(setup.build(text).0.unwrap().executed, 3);
    let without = Setup { use_cache: false, ..setup };
    assert_eq!(without.build(text).0.unwrap().executed, 3);
}

#[test]
fn stages_are_copied_from_and_continued() {
    let setup = Setup::new();
    let text = "FROM base AS one\nRUN write /out\nFROM one AS two\nRUN write /more\nFROM scratch\nCOPY --from=one --chown=app:users /out /o/\nCOPY --from=two /m* /\nCOPY --from=img /etc/passwd /p\n";
    let (built, log, _) = setup.build(text);
    // The owner reads the users of the final machine, which the recorder has.
    assert_eq!(built.unwrap().executed, 3 + 2);
    let expected = [
        "start sha256:empty",
        "start sha256:base",
        "run write /out as \"\" in /",
        "save",
        "archive /out",
        "extract /o/out 1000:100",
        "save",
        "restore",
        "run write /more as \"\" in /",
        "save",
        "archive /",
        "extract /more 0:0",
        "save",
        "start sha256:img",
        "archive /etc/passwd",
        "extract /p 0:0",
        "save",
        "publish the changes",
    ];
    assert_eq!(log, expected);
    let published = setup.machines.0.lock().unwrap().published[0].clone();
    assert_eq!((published.base.digest.as_str(), published.history.len()), ("sha256:empty", 3));
    assert_eq!(setup.build(text).1, ["publish a known layer"]);
    let other = text.replace("write /more", "write /mode");
    // The first stage did not change, so its copy is still known.
    assert_eq!(setup.build(&other).0.unwrap().executed, 3);
}

#[test]
fn secrets_reach_their_step_and_nothing_else() {
    let mut setup = Setup::new();
    setup.secrets.insert("key".into(), b"top-secret".to_vec());
    let text = "FROM base\nRUN one\nRUN --mount=type=secret,id=key cat /run/secrets/key\nRUN --mount=type=secret,id=key,target=/root/k cat /root/k\nRUN cat /run/secrets/key\nRUN --mount=type=secret,id=other cat /run/secrets/other\n";
    let (built, log, events) = setup.build(text);
    built.unwrap();
    assert_eq!(log.iter().filter(|line| *line == "save").count(), 1, "{log:?}");
    let shown = |text: &str| events.iter().filter(|line| *line == text).count();
    assert_eq!((shown("> ***"), shown("> nothing")), (2, 2), "{events:?}");
    let shared = setup.machines.0.lock().unwrap();
    let everything = format!("{events:?} {:?} {:?} {:?}", shared.left, shared.saved, shared.published);
    assert!(!everything.contains("top-secret"), "{everything}");
    drop(shared);
    let required = "FROM base\nRUN --mount=type=secret,id=other,required=true x\n";
    let error = setup.build(required).0.unwrap_err().to_string();
    assert_eq!(error, "D:2: secret \"other\" is required, and the build has none of this ID");
}

#[test]
fn cache_mounts_are_kept_and_leave_no_file() {
    let setup = Setup::new();
    let text = "FROM base\nRUN --mount=type=cache,target=/c write /c/item\nRUN --mount=type=cache,target=/c cat /c/item\nRUN --mount=type=cache,target=/etc write /etc/new\n";
    let (built, _, events) = setup.build(text);
    built.unwrap();
    assert!(events.contains(&"> written".to_owned()), "{events:?}");
    let left = setup.machines.0.lock().unwrap().left.join(" ");
    assert!(!left.contains("/c") && left.contains("/etc/passwd=root") && !left.contains("new"), "{left}");
}

#[test]
fn failures_name_the_line_and_repeat_the_output() {
    let setup = Setup::new();
    let (failed, log, _) = setup.build("FROM base\nRUN one\nRUN exit 3\nRUN two\n");
    let error = failed.unwrap_err();
    assert_eq!(error.to_string(), "D:3: the command exited with code 3");
    assert!(matches!(error, BuildError::Step { step: 2, problem: StepProblem::Exit { code: 3, .. }, .. }));
    assert!(!log.iter().any(|line| line.contains("two") || line.contains("publish")));
    // What succeeded is known the next time.
    assert_eq!(setup.build("FROM base\nRUN one\nRUN two\n").0.unwrap().executed, 1);
    let error = |text: &str| setup.build(text).0.unwrap_err().to_string();
    assert_eq!(
        error("FROM base\nCOPY --from=base /none /\n"),
        "D:2: source \"/none\" does not exist in the stage or image"
    );
    assert_eq!(error("FROM base\nUSER no\nWORKDIR /w\n"), "D:3: the machine has no user \"no\"");
    assert_eq!(error("FROM base\nCOPY --from=absent /x /\n"), "D:2: no such image");
    assert!(error("FROM absent\n").contains("no such image"));
    let inner = "FROM base AS a\nRUN exit 1\nFROM base\nCOPY --from=a /x /\n";
    assert_eq!(error(inner), "D:4: D:2: the command exited with code 1");
}

#[test]
fn add_extracts_archives_and_copy_does_not() {
    let setup = Setup::new();
    let mut writer = sandboxvm_archive::Writer::new(Vec::new());
    let kind = sandboxvm_archive::Kind::File { size: 1, extents: None };
    let modified = sandboxvm_archive::Timestamp::default();
    let (path, attributes) = (b"in/side".to_vec(), Vec::new());
    writer.begin(&sandboxvm_archive::Entry { path, kind, mode: 0o644, uid: 5, gid: 6, modified, attributes }).unwrap();
    writer.content(b"x").unwrap();
    writer.end().unwrap();
    let tar = writer.finish().unwrap();
    fs::write(setup.directory.path().join("t.tar"), &tar).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &tar).unwrap();
    fs::write(setup.directory.path().join("t.tgz"), gzip.finish().unwrap()).unwrap();
    let (built, log, _) = setup
        .build("FROM base\nRUN first\nADD t.tar a.txt /t/\nADD t.tgz /g\nCOPY t.tar /c\nCOPY <<E /doc\nhi $A\nE\n");
    built.unwrap();
    let extracted: Vec<_> = log.iter().filter(|line| line.starts_with("extract")).collect();
    let expected = [
        "extract /t/in/side 5:6",
        "extract /t/a.txt 0:0",
        "extract /g/in/side 5:6",
        "extract /c 0:0",
        "extract /doc 0:0",
    ];
    assert_eq!(extracted, expected);
}

#[test]
fn owners_are_those_of_buildah() {
    let setup = Setup::new();
    let text = "FROM base AS one\nCOPY --chown=7:8 a.txt /a\nFROM base\nCOPY --chown=app a.txt /1\nCOPY --chown=5 a.txt /2\nCOPY --chown=:users a.txt /3\nCOPY --from=one /a /4\nCOPY --from=one --chown=0 /a /5\n";
    let (built, log, _) = setup.build(text);
    built.unwrap();
    let extracted: Vec<_> = log.iter().filter_map(|line| line.strip_prefix("extract /")).collect();
    assert_eq!(extracted, ["1 1000:100", "2 5:5", "3 0:100", "a 7:8", "4 7:8", "5 0:0"]);
}

#[test]
fn builds_can_be_given_up_while_files_are_read() {
    let setup = Setup::new();
    let context = Context::open(setup.directory.path()).unwrap();
    // The only thread for blocking work is taken.
    let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
    let (release, released) = std::sync::mpsc::channel::<()>();
    runtime.spawn_blocking(move || released.recv());
    // The first of them reads the context for its key, the second one the archive of another machine.
    for text in ["FROM base\nCOPY . /c/\n", "FROM base\nCOPY --from=img /etc /c/\n"] {
        let file = Dockerfile::parse("D", text).unwrap();
        let request = BuildRequest {
            file: &file,
            context: &context,
            args: &BuildArgs::new(),
            target: None,
            secrets: &setup.secrets,
            use_cache: true,
            tag: None,
            created: None,
        };
        let events = Events::default();
        let mut build = Box::pin(build(&request, &setup.machines, &events));
        runtime.block_on(async {
            let given_up = std::future::poll_fn(|task| std::task::Poll::Ready(build.as_mut().poll(task).is_pending()));
            assert!(given_up.await, "{text}");
        });
    }
    assert_eq!(setup.machines.log().last().unwrap(), "archive /etc");
    drop(release);
}

#[test]
fn absent_and_empty_options_have_different_keys() {
    let setup = Setup::new();
    let text = |flag: &str| format!("FROM base AS one\nFROM base\nARG E=\nCOPY --from=one {flag} /etc /o\n");
    for flag in ["", "--chown=$E", "--chmod=0"] {
        assert_eq!(setup.build(&text(flag)).0.unwrap().executed, 1, "{flag}");
        assert_eq!(setup.build(&text(flag)).0.unwrap().executed, 0, "{flag}");
    }
}

#[test]
fn secrets_are_gone_before_a_cache_is_packed() {
    let mut setup = Setup::new();
    setup.secrets.insert("key".into(), b"top-secret".to_vec());
    let flags = "--mount=type=secret,id=key --mount=type=cache,target=/etc";
    let (built, log, _) = setup.build(&format!("FROM base\nRUN {flags} cat /run/secrets/key\n"));
    built.unwrap();
    let expected = [
        "archive /etc",
        "remove /etc",
        "extract /run/sandboxvm/secrets/key 0:0",
        "extract /run/secrets/key 0:0",
        "run cat /run/secrets/key as \"\" in /",
        "remove /run/secrets/key",
        "remove /run/secrets",
        "remove /run/sandboxvm/secrets/key",
        "archive /etc",
        "remove /etc",
    ];
    assert_eq!(log[1..=expected.len()], expected);
    for flags in ["--mount=type=secret,id=key --mount=type=cache,target=/run/secrets", "--mount=type=cache,target=/run"]
    {
        let error = setup.build(&format!("FROM base\nRUN {flags} x\n")).0.unwrap_err().to_string();
        assert!(error.contains("of a mount: expected a path outside of /run"), "{error}");
    }
}

#[test]
fn unreadable_cache_is_taken_for_empty_and_replaced() {
    let setup = Setup::new();
    let text = "FROM base\nRUN --mount=type=cache,target=/c write /c/item\n";
    setup.build(text).0.unwrap();
    let cut = {
        let caches = &mut setup.machines.0.lock().unwrap().caches;
        let content = caches.get_mut("/c").unwrap();
        content.truncate(1000);
        content.clone()
    };
    let again = "FROM base\nRUN --mount=type=cache,target=/c cat /c/item\n";
    let (built, _, events) = setup.build(again);
    built.unwrap();
    assert!(events.contains(&"> nothing".to_owned()), "{events:?}");
    assert!(events.iter().any(|line| line.starts_with("note: cache \"/c\" is taken for empty: ")), "{events:?}");
    assert_ne!(setup.machines.0.lock().unwrap().caches["/c"], cut);
    let (built, _, events) = setup.build(&format!("{again}RUN next\n"));
    built.unwrap();
    assert!(!events.iter().any(|line| line.starts_with("note")), "{events:?}");
}

#[test]
fn hostile_caches_are_not_mounted() {
    let setup = Setup::new();
    let mut writer = sandboxvm_archive::Writer::new(Vec::new());
    let link = sandboxvm_archive::Kind::Symlink(b"/etc".to_vec());
    let file = sandboxvm_archive::Kind::File { size: 0, extents: None };
    let modified = sandboxvm_archive::Timestamp::default();
    for (path, kind) in [("x", sandboxvm_archive::Kind::Directory), ("x/l", link), ("x/l/passwd", file)] {
        let (path, attributes) = (path.into(), Vec::new());
        let entry = sandboxvm_archive::Entry { path, kind, mode: 0o755, uid: 0, gid: 0, modified, attributes };
        writer.begin(&entry).unwrap();
        writer.end().unwrap();
    }
    setup.machines.0.lock().unwrap().caches.insert("c".into(), writer.finish().unwrap());
    let (built, log, events) = setup.build("FROM base\nRUN --mount=type=cache,id=c,target=/c x\n");
    built.unwrap();
    assert!(!log.iter().any(|line| line.starts_with("extract")), "{log:?}");
    assert!(events.iter().any(|line| line.contains("what is above it is not a directory")), "{events:?}");
}

#[test]
fn file_that_changes_during_the_build_fails_its_step() {
    let mut setup = Setup::new();
    let directory = setup.directory.path().to_owned();
    for source in ["COPY a.txt /", "ADD a.txt /", "COPY . /c/"] {
        fs::write(directory.join("a.txt"), "1").unwrap();
        let file = directory.join("a.txt");
        setup.machines.0.lock().unwrap().on_run = Some((file, b"2".to_vec()));
        setup.use_cache = false;
        let error = setup.build(&format!("FROM base\nRUN one\n{source}\n")).0.unwrap_err().to_string();
        assert_eq!(error, "D:3: \"a.txt\" changed during the build");
    }
}

#[test]
fn stages_share_the_steps_of_their_base() {
    let setup = Setup::new();
    let file = Dockerfile::parse("D", "FROM base AS one\nRUN x\nFROM one AS two\nRUN y\nFROM two\nRUN z\n").unwrap();
    let context = Context::open(setup.directory.path()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let args = BuildArgs::new();
    let staging = runtime.block_on(Staging::of(&file, &context, &args, None, &setup.machines)).unwrap();
    let [one, _, three] = [0, 1, 2].map(|at| &staging.stages[&at]);
    assert_eq!((three.steps.len(), three.history.len()), (3, 3));
    assert!(Arc::ptr_eq(&one.steps[0], &three.steps[0]) && Arc::ptr_eq(&one.history[0], &three.history[0]));
}

#[test]
fn urls_are_downloaded_once_and_their_content_decides() {
    let setup = Setup::new();
    let url = "https://a.example/v/tool.tar?x";
    let set = |content: &str| drop(setup.machines.0.lock().unwrap().urls.insert(url.into(), content.into()));
    set("one");
    let text = format!("FROM base\nADD {url} /opt/\nADD --chown=app --chmod=755 {url} /opt/as\nRUN x\n");
    let (built, log, _) = setup.build(&text);
    assert_eq!(built.unwrap().executed, 3);
    let expected = [
        &format!("download {url}")[..],
        "start sha256:base",
        "extract /opt/tool.tar 0:0",
        "save",
        "extract /opt/as 1000:100",
        "save",
        "run x as \"\" in /",
        "save",
        "publish the changes",
    ];
    assert_eq!(log, expected);
    // The file is asked for again, and is the same.
    let (built, log, _) = setup.build(&text);
    assert_eq!((built.unwrap().cached, log.len()), (3, 2));
    set("two");
    assert_eq!(setup.build(&text).0.unwrap().executed, 3);
    // A file with a stated digest is not asked for while its state is known.
    let digest = sandboxvm_oci::Digest::of(b"two");
    let text = format!("FROM base\nADD --checksum={digest} {url} /opt/\nRUN x\n");
    // The state of the same content without one is known.
    assert_eq!(setup.build(&text).0.unwrap().executed, 1);
    assert_eq!(setup.build(&text).1, ["publish a known layer"]);
    set("three");
    setup.machines.log();
    let changed = setup.build(&text.replace("RUN x", "RUN y")).0.unwrap();
    assert_eq!((changed.cached, changed.executed), (1, 1));
    let error = setup.build(&text.replace("/opt/", "/srv/")).0.unwrap_err().to_string();
    assert!(error.starts_with("D:2: cannot download https://a.example/v/tool.tar?x: its digest is sha256:"), "{error}");
}

#[test]
fn sources_that_cannot_be_downloaded_are_refused() {
    let setup = Setup::new();
    let error = |text: &str| setup.build(&format!("FROM base\n{text}\n")).0.unwrap_err().to_string();
    for repository in ["git@a.example:b/c", "https://a.example/b.git#v1", "git://a.example/b", "ssh://a.example/b"] {
        let error = error(&format!("ADD {repository} /x/"));
        assert!(error.contains("ADD of the git repository"), "{error}");
    }
    assert_eq!(
        error("ADD https://a.example/none /x/"),
        "D:2: cannot download https://a.example/none: there is no such file"
    );
    setup.machines.0.lock().unwrap().urls.insert("https://a.example/".into(), Vec::new());
    assert!(error("ADD https://a.example/ /x/").contains("does not end with the name of a file"));
    assert!(error("ADD --checksum=sha256:0 https://a.example/ /x").contains("invalid checksum"));
    assert!(error("ADD --checksum=sha256:0 a.txt /x").contains("needs a single source"));
}

#[test]
fn bound_files_and_memory_are_there_for_one_step() {
    let setup = Setup::new();
    let text = "FROM other AS tools\nRUN write /tool\nFROM base\n\
                RUN --mount=target=/src --mount=from=tools,source=/tool,target=/bin/tool,rw \
                --mount=type=tmpfs,target=/tmp/t,size=1m cat /src/d/b\nRUN cat /src/d/b\n";
    let (built, log, events) = setup.build(text);
    assert_eq!(built.unwrap().executed, 3);
    let outputs: Vec<_> = events.iter().filter(|event| event.starts_with("> ")).collect();
    assert_eq!(outputs, ["> 2", "> nothing"]);
    let changes: Vec<_> = log.iter().filter(|line| line.contains("mount") || line.contains("remove")).collect();
    let expected = [
        "mount Bind { source: \"/.sandboxvm-binds/0\", writable: false } at /src",
        "mount Bind { source: \"/.sandboxvm-binds/1\", writable: true } at /bin/tool",
        "mount Tmpfs { size: Some(1048576) } at /tmp/t",
        "unmount /tmp/t",
        "remove /tmp/t",
        "unmount /bin/tool",
        "remove /bin/tool",
        "unmount /src",
        "remove /src",
        "remove /.sandboxvm-binds",
    ];
    assert_eq!(changes, expected);
    let left = setup.machines.0.lock().unwrap().left.clone();
    assert!(
        !left.iter().any(|file| file.contains("src") || file.contains("binds") || file.contains("tool")),
        "{left:?}"
    );
    // The content is part of the key, from the context and from the stage.
    assert_eq!(setup.build(text).0.unwrap().cached, 2);
    fs::write(setup.directory.path().join("d/b"), "3").unwrap();
    assert_eq!(setup.build(text).0.unwrap().executed, 2);
    assert_eq!(setup.build(&text.replace("write /tool", "write /tool ")).0.unwrap().cached, 2);
    // A path of the context that does not exist, and one that leaves it.
    let error = |flag: &str| setup.build(&format!("FROM base\nRUN --mount={flag} x\n")).0.unwrap_err().to_string();
    assert!(error("target=/x,source=none").contains("does not exist in the context"));
    assert!(error("target=/x,source=../y").contains("invalid source"));
    assert!(error("target=/x,from=base,source=/none").contains("does not exist in the stage or image"));
    assert!(error("target=/etc,source=a.txt").contains("a mount of a file over /etc, which is a directory,"));
}
