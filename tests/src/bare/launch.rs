//! Starts a VMM and sends it a machine. The manager's code for that takes only sandboxes, so this
//! is separate; [`sandboxvm_protocol::vmm::LaunchConfig`] is the contract of both.

use super::shape::Shape;
use crate::artefacts::Artefacts;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use sandboxvm_images::template::{self, DiskSize};
use sandboxvm_protocol::{
    frame::Message,
    ids::{GuestCid, SandboxId},
    machine::{MIB, MemorySize, VcpuCount},
    network::{MacAddress, Mtu},
    vmm::{
        ConsoleConfig, DeviceConfig, DiskConfig, FdIndex, LaunchConfig, MAX_FDS, MAX_MESSAGE, MachineSource, NetConfig,
        VsockConfig, WIRE,
    },
};
use std::{
    fs::{self, File},
    io::{IoSlice, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    process::{Child, Command, Stdio},
};

/// The files of a machine, with the names that the manager gives them.
pub(super) const CONSOLE: &str = "console.log";
pub(super) const LOG: &str = "vmm.log";
pub(super) const VSOCK: &str = "vsock.sock";
pub(super) const CONTROL: &str = "control.sock";
/// The disk layer to which the machine writes.
pub(super) const LAYER: &str = "layer";

pub(super) fn new_file(directory: &Path, name: &str) -> File {
    File::options().read(true).write(true).create_new(true).open(directory.join(name)).expect("a new file")
}

/// Creates a disk of this size whose first MiB consists of `byte`.
fn disk(directory: &Path, name: &str, size: u64, byte: u8) -> OwnedFd {
    let mut file = new_file(directory, name);
    file.write_all(&vec![byte; 1 << 20]).expect("space for a disk");
    file.set_len(size).expect("a sparse file");
    file.into()
}

fn open(path: &Path) -> OwnedFd {
    File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).into()
}

/// Creates the disk below the layers of the writable disk.
fn template_of(directory: &Path, shape: Shape) -> OwnedFd {
    const SECTOR: usize = 512;
    if !shape.disk_is_numbered {
        return disk(directory, "template", shape.disk_bytes, 0x22);
    }
    let mut content = vec![0; usize::try_from(shape.disk_bytes).expect("a small disk")];
    for (sector, number) in content.chunks_exact_mut(SECTOR).zip(2_u64..) {
        sector[..8].copy_from_slice(&number.to_le_bytes());
    }
    let mut file = new_file(directory, "template");
    file.write_all(&content).expect("space for a disk");
    file.into()
}

/// The initial state of a machine.
#[derive(Debug)]
pub(super) enum Beginning<'a> {
    /// It boots an ELF file as its kernel.
    Boot(&'a [u8]),
    /// It is restored from the snapshot of another machine.
    Snapshot(&'a Saved),
    /// It boots the kernel of the bundle, with the agent and the base image.
    Linux(&'a Artefacts),
}

/// The files of a snapshot.
#[derive(Debug)]
pub struct Saved {
    pub(super) state: File,
    pub(super) memory: File,
    pub(super) layers: Vec<File>,
}

/// Starts `vmm` with all its files in `directory`, which must be empty.
///
/// The devices are, in this order: a read-only disk of ones, a writable disk of twos, entropy,
/// vsock, balloon, and a network card without a link.
pub(super) fn launch(vmm: &Path, directory: &Path, beginning: &Beginning<'_>, shape: Shape) -> (Child, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let log = new_file(directory, LOG);
    let mut command = match shape.descriptor_limit {
        None => Command::new(vmm),
        // prlimit(1) executes the VMM in its own process, so the PID stays the same.
        Some(limit) => {
            let mut command = Command::new("/usr/bin/prlimit");
            command.arg(format!("--nofile={limit}:{limit}")).arg(vmm);
            command
        }
    };
    command.env_clear().current_dir("/").stdin(Stdio::from(OwnedFd::from(theirs)));
    let child = command.stdout(Stdio::null()).stderr(Stdio::from(log)).spawn().expect("the VMM can be executed");

    let mut files: Vec<OwnedFd> = Vec::new();
    let mut add = |file: OwnedFd| {
        files.push(file);
        FdIndex(u8::try_from(files.len() - 1).expect("a dozen files"))
    };
    let shared = |file: &File| OwnedFd::from(file.try_clone().expect("a descriptor"));
    let listen = |name: &str| UnixListener::bind(directory.join(name)).expect("a short path");
    let mut layers = Vec::new();
    let source = match beginning {
        Beginning::Boot(elf) => {
            fs::write(directory.join("kernel"), elf).expect("a new file");
            let kernel = add(File::open(directory.join("kernel")).expect("just written").into());
            MachineSource::Boot { kernel, cmdline_extra: String::new() }
        }
        Beginning::Linux(artefacts) => {
            let kernel = add(open(&artefacts.part("vmlinux")));
            MachineSource::Boot { kernel, cmdline_extra: String::new() }
        }
        Beginning::Snapshot(saved) => {
            layers.extend(saved.layers.iter().map(|layer| add(shared(layer))));
            MachineSource::Snapshot { state: add(shared(&saved.state)), memory: vec![add(shared(&saved.memory))] }
        }
    };
    layers.push(add(new_file(directory, LAYER).into()));
    let (read_only, template) = match beginning {
        Beginning::Linux(artefacts) => {
            let size = DiskSize::try_from(64 * MIB).expect("a size");
            fs::create_dir(directory.join("templates")).expect("a new directory");
            let template = template::open(&directory.join("templates"), size).expect("mke2fs makes a disk");
            (vec![open(&artefacts.part("agent.erofs")), open(&artefacts.part("base.erofs"))], template.into())
        }
        _ => (vec![disk(directory, "image", 8 << 20, 0x11)], template_of(directory, shape)),
    };
    let images = read_only.into_iter().map(|image| DeviceConfig::Block(DiskConfig::ReadOnly { image: add(image) }));
    let mut devices: Vec<DeviceConfig> = images.collect();
    devices.extend([
        DeviceConfig::Block(DiskConfig::Writable { template: add(template), layers }),
        DeviceConfig::Rng,
        DeviceConfig::Vsock(VsockConfig { listener: add(listen(VSOCK).into()), cid: GuestCid::DEFAULT }),
        DeviceConfig::Balloon,
        DeviceConfig::Net(NetConfig { mac: MacAddress::GUEST, mtu: Mtu::GUEST }),
    ]);
    let config = LaunchConfig {
        sandbox: SandboxId::try_from("bareguest".to_owned()).expect("letters"),
        vcpus: VcpuCount::try_from(u32::from(shape.vcpus)).expect("a few"),
        memory: MemorySize::try_from(shape.memory_mib * MIB).expect("a guest's memory"),
        source,
        devices,
        console: ConsoleConfig { log: add(new_file(directory, CONSOLE).into()), limit: shape.console_limit },
        control: add(listen(CONTROL).into()),
        status: add(new_file(directory, "status.json").into()),
        lock: add(new_file(directory, "lock").into()),
        start: true,
        // If the test fails, its machine ends too.
        tie_to_launcher: true,
    };
    send(&ours, &config, &files);
    (child, ours)
}

/// Sends a message and its files.
pub(super) fn send(channel: &UnixStream, message: &impl Message, files: &[OwnedFd]) {
    let mut frame = Vec::new();
    WIRE.append_message(&mut frame, message, MAX_MESSAGE).expect("the message is small");
    let borrowed: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)), "a dozen files fit a message");
    }
    // A message that was not sent is never answered. The caller that waits for the response notices
    // that the VMM ended.
    let _ = sendmsg(channel, &[IoSlice::new(&frame)], &mut ancillary, SendFlags::NOSIGNAL);
}
