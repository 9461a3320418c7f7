//! `bench shares`: jobs with files in a live share, on the sandbox's own disk, in a workspace, and on the host itself,
//! whose directory is what a bind mount of a container is too.

use crate::table::{self, Row};
use sandboxvm_tests::home::{Home, Sandbox};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

/// Memory of the guest.
const MEMORY: &str = "512M";

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Number of runs of each job
    #[arg(short = 'n', long = "runs", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Number of small files of a job
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(10..=100_000))]
    files: u32,
    /// Size of the large file in MiB
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    mib: u32,
    /// Number of small files of the tree that is copied in by `run --workspace`; 0 leaves that out
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    copy_in: u32,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// A job: a script that prepares it, and one that is measured. Both run in the directory, with `$N` and `$M`.
struct Job {
    name: &'static str,
    prepare: &'static str,
    measured: &'static str,
}

const JOBS: [Job; 5] = [
    Job {
        name: "small files: create, list, rename, remove",
        prepare: "mkdir meta",
        measured: "cd meta; i=0; while [ $i -lt $N ]; do echo $i >f$i; i=$((i+1)); done; ls -l >/dev/null; mv f0 g; rm -r ../meta",
    },
    Job {
        name: "large file: write, sync, read",
        prepare: "true",
        measured: "dd if=/dev/zero of=large bs=128k count=$((M*8)) conv=fsync 2>/dev/null; cat large >/dev/null; rm large",
    },
    Job {
        name: "git status",
        prepare: "git init -q repo; cd repo; i=0; while [ $i -lt $N ]; do echo $i >f$i; i=$((i+1)); done; git add .; \
                  git -c user.name=a -c user.email=a@example commit -qm a",
        measured: "cd repo; git -c safe.directory='*' status --short",
    },
    Job {
        name: "unpack an archive of small files",
        prepare: "mkdir tree; i=0; while [ $i -lt $N ]; do mkdir -p tree/d$((i%20)); echo $i >tree/d$((i%20))/f$i; i=$((i+1)); done; \
                  tar cf tree.tar tree; rm -r tree",
        measured: "tar xf tree.tar",
    },
    Job {
        name: "compile modules (python -m compileall)",
        prepare: "mkdir src; i=0; while [ $i -lt $((N/10)) ]; do echo \"def f(x): return [x + n for n in range($i)]\" >src/m$i.py; \
                  i=$((i+1)); done",
        measured: "python3 -m compileall -q src",
    },
];

/// What a job took.
struct Cost {
    seconds: f64,
    cpu: f64,
    instructions: f64,
}

pub fn run(arguments: &Arguments) {
    let home = Home::with_kvm().expect("a benchmark without KVM measures nothing: unset SANDBOXVM_NO_KVM");
    let (shared, copied, bare) = (home.scratch("shared"), home.scratch("copied"), home.scratch("bare"));
    for directory in [&shared, &copied, &bare] {
        fs::create_dir(directory).expect("a new directory");
    }
    let mount = format!("{}:/share", shared.display());
    let workspace = copied.display().to_string();
    let sandbox = home.create(&["-m", MEMORY, "-v", &mount, "--workspace", &workspace]);
    let mut rows = Vec::new();
    for job in &JOBS {
        for (place, directory) in [("own disk", "/root"), ("workspace", "/workspace"), ("share", "/share")] {
            eprintln!("bench: {}: {place}", job.name);
            let costs: Vec<Cost> =
                (0..arguments.runs).map(|_| in_guest(&home, &sandbox, job, directory, arguments)).collect();
            rows.extend(rows_of(job.name, place, &costs, true));
        }
        eprintln!("bench: {}: host", job.name);
        let costs: Vec<Cost> = (0..arguments.runs).map(|_| on_host(job, &bare, arguments)).collect();
        rows.extend(rows_of(job.name, "host", &costs, false));
    }
    if arguments.copy_in > 0 {
        rows.extend(copy_in(&home, arguments.copy_in, arguments.runs));
    }
    let title = format!(
        "shares: {} runs, {} small files, a large file of {} MiB, guest of {MEMORY}",
        arguments.runs, arguments.files, arguments.mib
    );
    table::report(&title, &rows, arguments.json);
}

fn rows_of(job: &str, place: &str, costs: &[Cost], is_guest: bool) -> Vec<Row> {
    let of =
        |unit: &'static str, value: fn(&Cost) -> f64| Row::of(format!("{job}: {place}"), unit, costs.iter().map(value));
    let mut rows = vec![of("s", |cost| cost.seconds), of("s of processors", |cost| cost.cpu)];
    if is_guest {
        rows.push(of("M insns", |cost| cost.instructions / 1e6));
    }
    rows
}

fn script(directory: &str, arguments: &Arguments, part: &str) -> String {
    let Arguments { files, mib, .. } = arguments;
    format!("N={files} M={mib}; mkdir -p {directory}/job && cd {directory}/job && {{ {part}\n}}")
}

fn in_guest(home: &Home, sandbox: &Sandbox<'_>, job: &Job, directory: &str, arguments: &Arguments) -> Cost {
    let run = |part: &str| drop(sandbox.sh(&script(directory, arguments, part)).succeeds());
    let _ = sandbox.sh(&format!("rm -rf {directory}/job")).succeeds();
    run(job.prepare);
    let _ = sandbox.sh("sync; echo 3 >/proc/sys/vm/drop_caches").succeeds();
    let (instructions, cpu, began) = (instructions(home, sandbox), cpu_of(sandbox), Instant::now());
    run(job.measured);
    let seconds = began.elapsed().as_secs_f64();
    Cost { seconds, cpu: cpu_of(sandbox) - cpu, instructions: self::instructions(home, sandbox) - instructions }
}

fn on_host(job: &Job, directory: &Path, arguments: &Arguments) -> Cost {
    let run = |part: &str| {
        let script = script(&directory.display().to_string(), arguments, part);
        let status = Command::new("sh").args(["-c", &script]).status().expect("there is a shell");
        assert!(status.success(), "{script}");
    };
    let _ = fs::remove_dir_all(directory.join("job"));
    run(job.prepare);
    let (cpu, began) = (cpu_of_children(), Instant::now());
    run(job.measured);
    Cost { seconds: began.elapsed().as_secs_f64(), cpu: cpu_of_children() - cpu, instructions: 0.0 }
}

/// `run --workspace` of a tree of small files with a command that does nothing: the first time, and again.
fn copy_in(home: &Home, files: u32, runs: u16) -> Vec<Row> {
    let (mut first, mut again) = (Vec::new(), Vec::new());
    for run in 0..runs {
        eprintln!("bench: copy in {files} files");
        let tree = home.scratch(&format!("tree{run}"));
        for number in 0..files {
            let directory = tree.join(format!("d{}", number % 256));
            if number < 256 {
                fs::create_dir_all(&directory).expect("a new directory");
            }
            fs::write(directory.join(number.to_string()), "a small file\n").expect("a new file");
        }
        for times in [&mut first, &mut again] {
            let began = Instant::now();
            let tree = tree.display().to_string();
            let _ = home.cli(["run", "-m", MEMORY, "--rm", "--workspace", &tree, "--", "true"]).run().succeeds();
            times.push(began.elapsed().as_secs_f64());
        }
        fs::remove_dir_all(&tree).expect("it can be removed");
    }
    vec![
        Row::of(format!("run --workspace with {files} files: the first time"), "s", first),
        Row::of(format!("run --workspace with {files} files: again"), "s", again),
    ]
}

/// Returns the number of guest-kernel instructions so far.
fn instructions(home: &Home, sandbox: &Sandbox<'_>) -> f64 {
    let out = home.cli(["stats", "--json", &sandbox.id]).run().succeeds().out();
    let stats: Value = serde_json::from_str(&out).expect("it is JSON");
    let vcpus = stats["vcpus"].as_array().expect("it has vCPUs");
    vcpus.iter().filter_map(|vcpu| vcpu["insn_emulation"].as_f64()).sum()
}

/// Returns the processor time of the VMM and of the process of the share in seconds.
fn cpu_of(sandbox: &Sandbox<'_>) -> f64 {
    let processes = fs::read_dir("/proc").expect("it is mounted").flatten().map(|entry| entry.path());
    let is_share = |process: &PathBuf| {
        let read = |file: &str| fs::read_to_string(process.join(file)).unwrap_or_default();
        read("comm") == "sandboxvm-share\n" && read("cgroup").contains(&sandbox.id)
    };
    let vmm = PathBuf::from(format!("/proc/{}", sandbox.vmm_pid()));
    processes.filter(is_share).chain([vmm]).map(|process| ticks(&process, 13)).sum::<f64>()
}

fn cpu_of_children() -> f64 {
    ticks(Path::new("/proc/self"), 15)
}

/// Returns the time in seconds of two neighbouring fields of proc(5), counted from 0.
fn ticks(process: &Path, field: usize) -> f64 {
    let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
    // Behind the name, which may contain spaces, follows field 2.
    let rest = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<f64> = rest.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    fields.iter().skip(field - 3).take(2).sum::<f64>() / 100.0
}
