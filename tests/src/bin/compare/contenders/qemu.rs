//! A full virtual machine: QEMU's microvm machine with the same kernel, the base image on a
//! separate disk, a shell script as init, and only the serial console as output. It uses KVM if
//! QEMU can, and otherwise TCG, which the report states.

use super::{Contender, Disk, Job, MACHINE_MIB, MonitorSurface, size};
use crate::{
    execution::{self, short},
    guard::Guard,
    scene::Scene,
};
use sandboxvm_tests::artefacts::Artefacts;
use std::{
    env, fs,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

/// The kernel's command line sets `$job`. The end of init is a panic, which ends the machine
/// immediately.
const INIT: &str = "#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
case $job in
    idle) echo ready; exec sleep 86400 ;;
    rogue) python3 -S -E - </dev/vdb >/dev/ttyS0 2>&1; sync ;;
    remove) rm -rf /etc /usr/lib/python3; sync ;;
    *) true ;;
esac
";

/// Runs before the rogue's program, because the base image has no mount(8).
const MOUNTS: &str = "import ctypes
for t, d in (('proc', '/proc'), ('sysfs', '/sys')): ctypes.CDLL(None).mount(t.encode(), d.encode(), t.encode(), 0, None)
del t, d
";

/// The contender QEMU.
#[derive(Debug, Default)]
pub struct Qemu {
    directory: PathBuf,
    kernel: PathBuf,
    version: String,
    accelerator: &'static str,
    reason: String,
    jobs: usize,
}

impl Qemu {
    /// Debian's packages cannot always be installed beside those of another QEMU. Then the script
    /// unpacks them and sets COMPARE_QEMU_ROOT.
    fn program(&self) -> Command {
        let Some(root) = env::var_os("COMPARE_QEMU_ROOT").map(PathBuf::from) else {
            return Command::new("qemu-system-x86_64");
        };
        let mut command = Command::new(root.join("usr/bin/qemu-system-x86_64"));
        let library = |place: &str| root.join(place).join("x86_64-linux-gnu").display().to_string();
        command.env("LD_LIBRARY_PATH", format!("{}:{}", library("usr/lib"), library("lib")));
        for data in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(root.join(data));
        }
        command
    }

    fn machine(&self, accelerator: &str, job: &str, script: &str) -> Result<Command, String> {
        let disk = self.directory.join(if job == "idle" { "idle.raw" } else { "root.raw" });
        let input = self.directory.join(format!("job{}", self.jobs));
        let mut text = format!("{MOUNTS}{script}");
        // A disk consists of whole sectors, and Python ignores empty lines.
        text.push_str(&"\n".repeat(512 - text.len() % 512));
        fs::write(&input, text).map_err(|error| format!("cannot write {}: {error}", input.display()))?;
        let mut command = self.program();
        // `snapshot=on` stores writes in this directory.
        command.env("TMPDIR", &self.directory);
        let (pic, cpu) = if accelerator == "kvm" { ("off", "host") } else { ("on", "max") };
        command.arg("-M").arg(format!("microvm,x-option-roms=off,rtc=on,pit={pic},pic={pic},isa-serial=on,acpi=off"));
        command.args(["-accel", accelerator, "-cpu", cpu, "-m", &MACHINE_MIB.to_string(), "-nodefaults"]);
        command.args(["-no-user-config", "-no-reboot", "-display", "none", "-serial", "file:/dev/stdout", "-kernel"]);
        command
            .arg(&self.kernel)
            .arg("-append")
            .arg(format!("root=/dev/vda rw console=ttyS0 quiet reboot=t panic=-1 init=/sbin/compare-init job={job}"));
        let idle = if job == "idle" { ",snapshot=on" } else { "" };
        command.arg("-drive").arg(format!("if=none,id=root,format=raw,file={}{idle}", disk.display()));
        command.args(["-device", "virtio-blk-device,drive=root", "-drive"]);
        command.arg(format!("if=none,id=job,format=raw,readonly=on,file={}", input.display()));
        command.args(["-device", "virtio-blk-device,drive=job"]);
        Ok(command)
    }

    fn make_disk(&self) -> Result<(), String> {
        let mut make = Command::new("mkfs.ext4");
        make.args(["-q", "-F", "-E", "root_owner=0:0", "-d"]).arg(self.directory.join("tree"));
        make.arg(self.directory.join("root.raw")).arg("1G");
        execution::run(make, "", super::patience())?.success().map(drop)
    }

    /// Boots once with an accelerator. Returns the output if that fails.
    fn try_boot(&self, accelerator: &str) -> Result<(), String> {
        let command = self.machine(accelerator, "true", "")?;
        let ended = execution::run(command, "", Duration::from_secs(60))?;
        // If the machine boots, init ends, and QEMU ends with it.
        if ended.code == Some(0) && ended.out.contains("Attempted to kill init") {
            return Ok(());
        }
        Err(ended.reason())
    }
}

impl Contender for Qemu {
    fn name(&self) -> &'static str {
        "QEMU"
    }

    fn how(&self) -> String {
        format!(
            "{}, -M microvm -accel {}{}; the same kernel and base image, {MACHINE_MIB} MiB (its default), a raw disk, no network card",
            self.version, self.accelerator, self.reason
        )
    }

    fn prepare(&mut self, scene: &Scene, _: &Guard) -> Result<(), String> {
        let mut version = self.program();
        version.arg("--version");
        let said = execution::run(version, "", Duration::from_secs(30))?.success()?;
        self.version = short(said.out.lines().next().unwrap_or_default(), 60);
        self.kernel = Artefacts::find().part("vmlinux");
        self.directory = scene.path().join("qemu");
        let told = |error| format!("cannot lay out the machine's disk: {error}");
        fs::create_dir(&self.directory).map_err(told)?;
        let tree = self.directory.join("tree");
        scene.copy(&tree)?;
        fs::write(tree.join("sbin/compare-init"), INIT).map_err(told)?;
        fs::set_permissions(tree.join("sbin/compare-init"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .map_err(told)?;
        self.make_disk()?;
        self.accelerator = "kvm";
        if let Err(with_kvm) = self.try_boot("kvm") {
            self.accelerator = "tcg";
            self.reason = format!(" (a pure emulator, slower than KVM: with KVM it {with_kvm})");
            self.try_boot("tcg").map_err(|with_tcg| format!("with KVM it {with_kvm}; with TCG it {with_tcg}"))?;
        }
        // Idle machines must not depend on a disk that a rogue has changed.
        fs::copy(self.directory.join("root.raw"), self.directory.join("idle.raw")).map(drop).map_err(told)
    }

    fn command(&mut self, job: Job, script: &str) -> Result<Command, String> {
        self.jobs += 1;
        let job = match job {
            Job::Rogue => "rogue",
            Job::True => "true",
            Job::Idle => "idle",
        };
        self.machine(self.accelerator, job, script)
    }

    fn own_kernel(&self) -> bool {
        true
    }

    fn monitor(&mut self) -> Option<MonitorSurface> {
        let how = "QEMU has no filter unless -sandbox on is stated".to_owned();
        Some(MonitorSurface { allowed: None, how })
    }

    fn remark(&self, probe: &str) -> Option<&'static str> {
        (probe == "found").then_some("With -snapshot each run begins clean")
    }

    fn clean(&mut self, _: &Scene) -> Result<(Duration, &'static str), String> {
        self.jobs += 1;
        let command = self.machine(self.accelerator, "remove", "")?;
        execution::run(command, "", super::patience())?;
        let begin = Instant::now();
        self.make_disk()?;
        let idle = self.idle()?;
        let elapsed = begin.elapsed();
        self.end(idle);
        Ok((elapsed, "the disk was created again and the machine booted (with -snapshot, only the boot)"))
    }

    fn disk(&mut self) -> Result<Disk, String> {
        Ok(Disk { once: size(&self.kernel)?, each: size(&self.directory.join("root.raw"))? })
    }
}
