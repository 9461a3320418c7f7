//! `bench images`: container images, from a registry on loopback to sandboxes. The image has the tree of the base
//! image, so its starts can be compared with those of the base image.

use crate::{
    rig::{Rig, micros},
    table::{self, Row},
};
use registry::Registry;
use sandboxvm_manager::{Bundle, ImageStore, SandboxSpec, StartedSandbox};
use sandboxvm_oci::{PullOptions, Silent, registry::RegistryOptions};
use sandboxvm_tests::{host::memory, library::run as exec};
use std::{
    process::{Command, Stdio},
    sync::Arc,
    time::Instant,
};

#[path = "../../../host/registry.rs"]
#[allow(dead_code, reason = "each user needs a part")]
mod registry;

const MEMORY_MIB: u64 = 256;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Number of pulls and of starts
    #[arg(short = 'n', long = "runs", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Number of sandboxes of the image at the same time
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    sandboxes: u16,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) {
    let rig = Rig::new(MEMORY_MIB);
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let (tree, layout) = (scratch.path().join("tree"), scratch.path().join("layout"));
    eprintln!("bench: making the image");
    let image = rig.bundle.image.display().to_string();
    registry::run("fsck.erofs", &[&format!("--extract={}", tree.display()), &image]);
    registry::layout(&layout, &tree, &["--config.cmd=true"]);
    let registry = Registry::start(tempfile::tempdir().expect("a temporary directory"), "", "");
    registry.fill(&layout, "test", "bench");
    let reference = format!("{}/bench:latest", registry.host());
    let options = RegistryOptions { plain_http: vec![registry.host()], ..RegistryOptions::default() };
    let store = rig.manager.images(&rig.bundle, options).expect("the store can be opened");

    let (mut pulled, mut unpacked, mut by_docker) = (Vec::new(), Vec::new(), Vec::new());
    let has_docker = is_success("docker", &["info"]);
    for _ in 0..arguments.runs {
        // A pull without its blobs transfers everything.
        let _ = store.remove(&reference);
        rig.block_on(async {
            let begin = Instant::now();
            let pull = store.images().pull(&reference, PullOptions::default(), Arc::new(Silent));
            pull.await.expect("the image can be pulled");
            pulled.push(begin.elapsed().as_secs_f64() * 1e3);
            let begin = Instant::now();
            store.bootable(&reference, |_| ()).await.expect("the image can be unpacked");
            unpacked.push(begin.elapsed().as_secs_f64() * 1e3);
        });
        if has_docker {
            let begin = Instant::now();
            registry::run("docker", &["pull", "--quiet", &reference]);
            by_docker.push(begin.elapsed().as_secs_f64() * 1e3);
            registry::run("docker", &["rmi", &reference]);
        }
    }

    let (mut own, mut of_image) = (Vec::new(), Vec::new());
    let mut first = 0.0;
    let (mut guests, mut vmms) = (Vec::new(), Vec::new());
    rig.block_on(async {
        let begin = Instant::now();
        finish(create(&rig, &store, &reference).await).await;
        first += begin.elapsed().as_secs_f64() * 1e3;
        finish(rig.create().await).await;
        for _ in 0..arguments.runs {
            let begin = Instant::now();
            let started = rig.create().await;
            own.push(micros(begin.elapsed()));
            finish(started).await;
            let begin = Instant::now();
            let started = create(&rig, &store, &reference).await;
            of_image.push(micros(begin.elapsed()));
            finish(started).await;
        }
        let mut all = Vec::new();
        for _ in 0..arguments.sandboxes {
            let started = create(&rig, &store, &reference).await;
            exec(started.sandbox(), &["true"]).await;
            let pid = started.sandbox().vmm_status().ok().flatten().expect("the VMM has written its status").pid;
            let used = memory::of_vmm(pid, MEMORY_MIB);
            guests.push(used.guest_private_kib as f64);
            vmms.push(used.overhead_private_kib as f64);
            all.push(started);
        }
        for started in all {
            finish(started).await;
        }
    });
    let mut rows = vec![
        Row::of("pull from a registry on loopback", "ms", pulled),
        Row::of("layers to a disk", "ms", unpacked),
        Row::of("first start: boot and ready snapshot", "ms", [first]),
        Row::of("later start", "us", of_image),
        Row::of("start of the base image", "us", own),
        Row::of("private memory of a guest after `true`", "KiB", guests),
        Row::of("private memory of a VMM beside it", "KiB", vmms),
    ];
    if has_docker {
        rows.insert(2, Row::of("docker pull, with its unpacking", "ms", by_docker));
    }
    let size: u64 =
        store.images().inspect(&reference).expect("it was pulled").layers.iter().map(|layer| layer.size).sum();
    let mib = size >> 20;
    let title = format!("images: a layer of {mib} MiB with gzip, {} sandboxes at the same time", arguments.sandboxes);
    table::report(&title, &rows, arguments.json);
}

async fn create(rig: &Rig, store: &ImageStore, reference: &str) -> StartedSandbox {
    let image = store.bootable(reference, |_| ()).await.expect("the image is here");
    let bundle = Bundle { image: image.disk, ..rig.bundle.clone() };
    let spec = SandboxSpec { image_defaults: Some(image.defaults), ..rig.spec.clone() };
    rig.manager.create(&bundle, &spec).await.unwrap_or_else(|error| panic!("create: {error}"))
}

async fn finish(started: StartedSandbox) {
    started.finish().await.expect("the sandbox can be removed");
}

fn is_success(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
