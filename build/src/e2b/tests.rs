use super::{accounts, plan::Doing, *};
use crate::engine::{
    BaseImage, Disk, Event, Machines, Progress,
    tests::recorder::{Recorded, Recorder},
};
use sandboxvm_archive::{Entry, Kind, Timestamp, Writer};
use sandboxvm_oci::config::ImageConfig;
use std::{
    fs::File,
    io::{self, Write},
    path::PathBuf,
    sync::Mutex,
};

const HASH: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

#[derive(Default)]
struct Events(Mutex<Vec<String>>);

impl Progress for Events {
    fn notify(&self, event: Event<'_>) {
        if let Event::Step { text, cached, number, .. } = event {
            self.0.lock().unwrap().push(format!("{}{number} {text}", if cached { "cached " } else { "" }));
        }
    }
}

#[derive(Debug)]
struct Directory(PathBuf);

impl Uploads for Directory {
    fn open(&self, hash: &str) -> io::Result<File> {
        File::open(self.0.join(hash))
    }
}

fn entry(path: &str, kind: Kind) -> Entry {
    let (path, modified) = (path.as_bytes().to_vec(), Timestamp::default());
    Entry { path, kind, mode: 0o600, uid: 77, gid: 78, modified, attributes: Vec::new() }
}

fn archive(entries: &[(&str, Kind)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (path, kind) in entries {
        writer.begin(&entry(path, kind.clone())).unwrap();
        writer.content(&vec![b'c'; usize::try_from(kind.stored()).unwrap()]).unwrap();
        writer.end().unwrap();
    }
    writer.finish().unwrap()
}

fn file(size: u64) -> Kind {
    Kind::File { size, extents: None }
}

struct Setup {
    directory: tempfile::TempDir,
    machines: Recorder,
}

fn steps(json: &str) -> Vec<TemplateStep> {
    serde_json::from_str(json).unwrap()
}

fn planned(owner: &str, json: &str) -> Result<TemplatePlan, FaultyStep> {
    let (origin, setting) = ("sha256:base", Setting::of_image(vec!["PATH=/bin".into()]));
    plan(&PlanRequest { owner, origin, setting, force: false, steps: &steps(json) })
}

impl Setup {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), machines: Recorder::default() }
    }

    fn upload(&self, bytes: &[u8]) {
        std::fs::write(self.directory.path().join(HASH), bytes).unwrap();
    }

    fn build(
        &self,
        owner: &str,
        json: &str,
    ) -> (Result<Finished<Recorded>, TemplateFailure>, Vec<String>, Vec<String>) {
        let plan = planned(owner, json).unwrap();
        let base = BaseImage { digest: "sha256:base".into(), config: ImageConfig::default() };
        let uploads = Directory(self.directory.path().to_owned());
        let request = TemplateRequest { plan: &plan, base: &base, uploads: &uploads, max_upload: 1 << 20 };
        let events = Events::default();
        let built = block_on(build_template(&request, &self.machines, &events));
        (built, self.machines.log(), events.0.into_inner().unwrap())
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

const STEPS: &str = r#"[
    {"type":"USER","args":["root"],"force":false},
    {"type":"WORKDIR","args":["/app"],"force":false},
    {"type":"ENV","args":["A","1","B","x y $A$PATH \"q\""],"force":false},
    {"type":"COPY","args":["src/*.txt","d/","","0644"],"filesHash":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","force":false,"forceUpload":null},
    {"type":"RUN","args":["make","app"],"force":false},
    {"type":"USER","args":["user"],"force":false},
    {"type":"WORKDIR","args":["work"],"force":false}
]"#;

#[test]
fn steps_of_a_template_are_executed_in_order_and_known_the_next_time() {
    let setup = Setup::new();
    setup.upload(&archive(&[("src/a.txt", file(1)), ("src/b.c", file(1))]));
    let (built, log, events) = setup.build("1", STEPS);
    let built = built.unwrap();
    assert_eq!((built.executed, built.cached, built.workdir.as_str()), (7, 0, "/app/work"));
    let expected = [
        "start sha256:base",
        "extract /etc/passwd 0:0",
        "extract /etc/group 0:0",
        "save",
        "save",
        "save",
        "extract /app/d/a.txt 0:0",
        "save",
        "run make as \"app\" in /app",
        "save",
        "save",
        "save",
    ];
    assert_eq!(log, expected);
    // Processes of the template have to see the files, also where something is mounted.
    assert_eq!(setup.machines.0.lock().unwrap().below_mounts, 0);
    assert_eq!(events[..2], ["0 prepare the base", "1 USER root"]);
    // An ENV changes no file.
    assert_eq!(events[3], "4 COPY src/*.txt d/  0644");
    let (built, log, events) = setup.build("1", STEPS);
    assert_eq!((built.unwrap().cached, log), (7, vec!["restore".to_owned()]));
    assert_eq!(events[4], "cached 5 RUN make app");
}

#[test]
fn states_of_one_owner_are_not_those_of_another() {
    let setup = Setup::new();
    setup.upload(&archive(&[("src/a.txt", file(1))]));
    setup.build("1", STEPS).0.unwrap();
    // The hash is the same, and the files may be others.
    assert_eq!(setup.build("2", STEPS).0.unwrap().cached, 0);
}

#[test]
fn forced_step_is_executed_with_those_after_it() {
    let setup = Setup::new();
    let json = |force: bool| {
        format!(
            r#"[{{"type":"RUN","args":["one"]}},{{"type":"RUN","args":["two"],"force":{force}}},{{"type":"RUN","args":["three"]}}]"#
        )
    };
    setup.build("1", &json(false)).0.unwrap();
    let (built, log, _) = setup.build("1", &json(true));
    assert_eq!((built.unwrap().executed, log[0].as_str()), (2, "restore"));
    assert_eq!(setup.build("1", &json(false)).0.unwrap().executed, 0);
}

#[test]
fn environment_of_an_image_is_extended() {
    let plan = planned("1", STEPS).unwrap();
    assert_eq!(plan.setting.env, ["PATH=/bin", "A=1", "B=x y /bin \"q\""]);
    assert_eq!((plan.setting.user.as_str(), plan.setting.workdir.as_str()), ("user", "/app/work"));
    assert_eq!(plan.uploads().collect::<Vec<_>>(), [HASH]);
    let Doing::Run { env, user, .. } = &plan.steps[4].doing else { panic!() };
    assert_eq!((env.len(), user.as_str()), (3, "app"));
    // Without a WORKDIR, paths are relative to the home.
    let plan = planned("1", r#"[{"type":"WORKDIR","args":["a/../b/"]}]"#).unwrap();
    assert_eq!(plan.setting.workdir, "b");
}

#[test]
fn steps_that_are_not_valid_are_named() {
    let problem = |json: &str| planned("1", json).unwrap_err().to_string();
    assert_eq!(
        problem(r#"[{"type":"RUN","args":["x"]},{"type":"ADD","args":[]}]"#),
        "step 2: invalid type \"ADD\": expected RUN, COPY, ENV, WORKDIR or USER"
    );
    assert_eq!(problem(r#"[{"type":"RUN"}]"#), "step 1: RUN needs a command");
    assert_eq!(problem(r#"[{"type":"ENV","args":["A"]}]"#), "step 1: ENV needs a value for each name");
    for json in [
        r#"[{"type":"COPY","args":["a","b"],"filesHash":"../../etc"}]"#,
        r#"[{"type":"USER","args":["a:b:c"]}]"#,
        r#"[{"type":"USER","args":["x\ny"]}]"#,
        r#"[{"type":"RUN","args":["x\u0000"]}]"#,
        r#"[{"type":"ENV","args":["A=B","c"]}]"#,
    ] {
        assert!(planned("1", json).is_err(), "{json}");
    }
    let mode = format!(r#"[{{"type":"COPY","args":["a","b","","99"],"filesHash":"{HASH}"}}]"#);
    assert!(problem(&mode).contains("invalid mode"));
    let many = serde_json::to_string(&vec![TemplateStep { kind: "ENV".into(), ..TemplateStep::default() }; 513]);
    assert!(problem(&many.unwrap()).contains("at most 512 steps"));
    let doubled: String = (0..40).map(|_| r#",{"type":"ENV","args":["A","$A$A"]}"#).collect();
    assert!(
        problem(&format!(r#"[{{"type":"ENV","args":["A","xxxxxxxx"]}}{doubled}]"#))
            .contains("the environment has more")
    );
}

#[test]
fn failures_of_a_template_name_the_step() {
    let setup = Setup::new();
    let failed = |json: &str| {
        let failure = setup.build("1", json).0.unwrap_err();
        (failure.step, failure.to_string())
    };
    let json = r#"[{"type":"ENV","args":[]},{"type":"RUN","args":["exit 3"]}]"#;
    assert_eq!(failed(json), (2, "the command exited with code 3".into()));
    let json = format!(r#"[{{"type":"COPY","args":["a","b"],"filesHash":"{HASH}"}}]"#);
    assert!(failed(&json).1.starts_with("cannot open the files of COPY a: "));
    setup.upload(&archive(&[("b", file(1))]));
    assert!(failed(&json).1.contains("does not exist"));
}

#[test]
fn hostile_uploads_are_refused() {
    let refused = |bytes: &[u8], max: u64| {
        let mut input = tempfile::tempfile().unwrap();
        input.write_all(bytes).unwrap();
        upload::rooted(input, max, tempfile::tempfile().unwrap()).unwrap_err().to_string()
    };
    let all = 1 << 20;
    assert!(refused(&archive(&[("../x", file(1))]), all).contains("a path with .."));
    assert!(refused(&archive(&[("a/../../x", Kind::Directory)]), all).contains("a path with .."));
    assert!(refused(&archive(&[("a", file(1)), ("b", Kind::HardLink(b"../../a".to_vec()))]), all).contains(".."));
    let device = Kind::Device { is_block: true, major: 8, minor: 0 };
    for kind in [device, Kind::Fifo] {
        assert!(refused(&archive(&[("x", kind)]), all).contains("device, pipe"));
    }
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&archive(&[("x", file(1 << 20))])).unwrap();
    assert!(refused(&gzip.finish().unwrap(), 1 << 20).contains("too large"));
    assert!(refused(&[7; 4096], all).contains("invalid archive"));
}

#[test]
fn missing_user_is_made_without_a_program_of_the_image() {
    let machines = Recorder::default();
    let base = BaseImage { digest: "sha256:base".into(), config: ImageConfig::default() };
    let read = |machine: &mut Recorded, path: &str| {
        String::from_utf8(block_on(machine.read(path, 1 << 20)).unwrap().unwrap()).unwrap()
    };
    let mut machine = block_on(machines.start(&base)).unwrap();
    // The number 1000 belongs to another user.
    block_on(accounts::ensure(&mut machine, "user", true)).unwrap();
    assert!(read(&mut machine, "/etc/passwd").ends_with("\nuser:*:1001:1001::/home/user:/bin/bash\n"));
    assert!(read(&mut machine, "/etc/group").ends_with("\nuser:x:1001:\n"));
    assert_eq!(block_on(accounts::home(&mut machine, "user")).unwrap(), "/home/user");
    assert_eq!(block_on(accounts::home(&mut machine, "1000")).unwrap(), "/home/app");
    assert_eq!(block_on(accounts::home(&mut machine, "none")).unwrap(), "/");
    let before = read(&mut machine, "/etc/passwd");
    for name in ["user", "root", "1234", "app"] {
        block_on(accounts::ensure(&mut machine, name, false)).unwrap();
    }
    assert_eq!(read(&mut machine, "/etc/passwd"), before);
    assert!(block_on(machine.find("/etc/sudoers.d/user")).unwrap().is_none(), "there is no sudo");
}

#[test]
fn image_without_a_shell_is_refused() {
    let setup = Setup::new();
    let plan = planned("1", "[]").unwrap();
    let base = BaseImage { digest: "sha256:no-shell".into(), config: ImageConfig::default() };
    let uploads = Directory(setup.directory.path().to_owned());
    let request = TemplateRequest { plan: &plan, base: &base, uploads: &uploads, max_upload: 1 << 20 };
    let failure = block_on(build_template(&request, &setup.machines, &Events::default())).unwrap_err();
    assert_eq!((failure.step, failure.to_string().as_str()), (0, "an image without /bin/bash is not supported"));
}

#[test]
fn hostile_environment_of_an_image_is_left_out() {
    let long = format!("L={}", "x".repeat(200 << 10));
    let env = ["A=1", "", "=x", "B", "C=\0", &long, "D=2"].map(str::to_owned).to_vec();
    assert_eq!(Setting::of_image(env).env, ["A=1", "D=2"]);
}
