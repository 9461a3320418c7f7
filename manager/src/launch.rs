//! Starting a VMM process and handing it its machine: one frame with every open file, over a socket that is the VMM's
//! standard input and stays open as its launch channel.
//!
//! The VMM gets no argument, no environment and no path: it opens nothing but /dev/kvm itself. It makes a session of its
//! own first of all (a terminal's Ctrl-C is not for it); doing that here would take fork(2) instead of vfork(2).

use crate::{
    control::ControlClient,
    directory::DirectoryError,
    group::Group,
    pidfd::Pidfd,
    spawn::{Spawned, spawn},
};
use rustix::{
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
    process::{Pid, WaitOptions, waitpid},
};
use sandboxvm_protocol::{
    frame::{FrameError, Message},
    vmm::{FdIndex, LaunchConfig, MAX_FDS, MAX_MESSAGE, WIRE},
};
use std::{
    fs::File,
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{net::UnixStream as StdUnixStream, process::ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Instant,
};
use tokio::{net::UnixStream, sync::watch};

/// Why no VMM was started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The process did not start.
    #[error("cannot run the VMM {}: {source}", .path.display())]
    Spawn {
        /// The program.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Setting up or using the launch channel failed.
    #[error("cannot send the VMM its configuration: {0}")]
    Channel(#[from] io::Error),
    /// Where its processes are cannot be written down.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The configuration does not fit a frame.
    #[error("cannot send the VMM its configuration: {0}")]
    Frame(#[from] FrameError),
}

/// Collects the descriptors that a [`LaunchConfig`] names by index.
#[derive(Debug, Default)]
pub(crate) struct LaunchFiles<'a>(Vec<BorrowedFd<'a>>);

impl<'a> LaunchFiles<'a> {
    /// Adds a file and says what to call it. A launch has some dozen; the protocol's cap is checked on sending.
    pub(crate) fn add(&mut self, file: &'a impl AsFd) -> FdIndex {
        let index = FdIndex(u8::try_from(self.0.len()).unwrap_or(u8::MAX));
        self.0.push(file.as_fd());
        index
    }
}

/// A VMM process that this process started. Dropping it kills the VMM unless it was let go.
#[derive(Debug)]
pub(crate) struct VmmProcess {
    /// The launch channel.
    pub(crate) channel: ControlClient,
    pidfd: Pidfd,
    exited: watch::Receiver<Option<ExitStatus>>,
    kill_on_drop: bool,
    /// Its process, for as long as it is not reaped.
    pub(crate) pid: Pid,
    /// It is in the control group that it was given.
    pub(crate) is_in_group: bool,
    /// When it was asked for.
    pub(crate) spawned_at: Instant,
}

impl VmmProcess {
    /// Starts `program` in `group` with `log` as its stderr. It leaves the host meanwhile, and waits to be told its machine.
    pub(crate) fn spawn(program: &Path, log: File, group: Option<&Group>) -> Result<Self, LaunchError> {
        let spawned_at = Instant::now();
        let (ours, theirs) = StdUnixStream::pair()?;
        let Spawned { pid, is_in_group } = spawn(program, theirs.into(), log, group)
            .map_err(|source| LaunchError::Spawn { path: program.to_owned(), source })?;
        ours.set_nonblocking(true)?;
        let channel = ControlClient::over(UnixStream::from_std(ours)?);
        let pidfd = Pidfd::open(pid)?;
        let exited = reap(pid, pidfd.try_clone()?);
        Ok(Self { channel, pidfd, exited, kill_on_drop: true, pid, is_in_group, spawned_at })
    }

    /// Hands it `config` with `files`, in one message, and returns at once: what becomes of the machine comes as events
    /// on the channel, and of a VMM that is gone already as the channel's end.
    pub(crate) fn hand_over(&self, config: &LaunchConfig, files: &LaunchFiles<'_>) -> Result<(), LaunchError> {
        match self.channel.send_with(config, files) {
            Err(LaunchError::Channel(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            sent => sent,
        }
    }

    /// Lets the VMM live on after this value, and after this process.
    pub(crate) fn let_go(mut self) {
        self.kill_on_drop = false;
    }

    /// Sends SIGKILL; nothing happens when it is gone already.
    pub(crate) fn kill(&self) {
        // ESRCH is the only failure that can be: the pidfd is of our own child.
        let _ = self.pidfd.kill();
    }

    /// Waits until the process is gone and its files and locks with it. Cancel safe.
    pub(crate) async fn wait(&mut self) -> Option<ExitStatus> {
        self.exited.wait_for(Option::is_some).await.ok().and_then(|status| *status)
    }
}

impl Drop for VmmProcess {
    fn drop(&mut self) {
        if self.kill_on_drop {
            self.kill();
        }
    }
}

/// A task of its own waits for the child, so that no zombie stays whatever becomes of the [`VmmProcess`].
fn reap(pid: Pid, pidfd: Pidfd) -> watch::Receiver<Option<ExitStatus>> {
    let (told, exited) = watch::channel(None);
    tokio::spawn(async move {
        // The wait after it does not block, and the number is the child's until then.
        if pidfd.ended().await.is_ok() {
            let status = waitpid(Some(pid), WaitOptions::empty()).ok().flatten();
            told.send_replace(status.map(|(_, status)| ExitStatus::from_raw(status.as_raw())));
        }
    });
    exited
}

/// One sendmsg with frame and descriptors: a stream delivers descriptors with the first byte they were sent with.
pub(crate) fn send(channel: impl AsFd, message: &impl Message, files: &LaunchFiles<'_>) -> Result<(), LaunchError> {
    let mut frame = Vec::new();
    WIRE.append_message(&mut frame, message, MAX_MESSAGE)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&files.0)) {
        return Err(io::Error::other(format!("{} files are more than one message takes", files.0.len())).into());
    }
    // The socket's buffer is empty and larger than any launch frame, so a short write cannot be.
    let sent = sendmsg(channel, &[IoSlice::new(&frame)], &mut ancillary, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
        .map_err(io::Error::from)?;
    if sent == frame.len() {
        Ok(())
    } else {
        Err(io::Error::other(format!("only {sent} of {} bytes were taken", frame.len())).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    use sandboxvm_protocol::{
        frame::FrameDecoder,
        identity::{GuestCid, SandboxId},
        machine::{MemorySize, VcpuCount},
        vmm::{ConsoleConfig, DiskConfig, MachineSource, VsockConfig},
    };
    use std::{
        fs::{self, Permissions},
        io::{IoSliceMut, Read, Write},
        os::{fd::OwnedFd, unix::fs::PermissionsExt},
        time::Duration,
    };

    fn config() -> LaunchConfig {
        LaunchConfig {
            sandbox: SandboxId::try_from("abcdefgh".to_owned()).unwrap(),
            vcpus: VcpuCount::ONE,
            memory: MemorySize::try_from(256 << 20).unwrap(),
            source: MachineSource::Boot { kernel: FdIndex(0), cmdline_extra: String::new() },
            disks: vec![DiskConfig::ReadOnly { image: FdIndex(1) }],
            vsock: VsockConfig { listener: FdIndex(0), cid: GuestCid::DEFAULT },
            console: ConsoleConfig { log: FdIndex(0), limit: 1 << 20 },
            control: FdIndex(0),
            status: FdIndex(0),
            lock: FdIndex(0),
            start: true,
            tie_to_launcher: false,
        }
    }

    #[test]
    fn the_peer_reads_the_configuration_and_the_very_files_in_one_message() {
        let (ours, theirs) = StdUnixStream::pair().unwrap();
        let mut first = tempfile::tempfile().unwrap();
        first.write_all(b"first").unwrap();
        let mut second = tempfile::tempfile().unwrap();
        second.write_all(b"second").unwrap();
        let mut files = LaunchFiles::default();
        assert_eq!((files.add(&first), files.add(&second)), (FdIndex(0), FdIndex(1)));
        send(&ours, &config(), &files).unwrap();

        let mut bytes = vec![0; MAX_MESSAGE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let read =
            recvmsg(&theirs, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
        let received: Vec<OwnedFd> = ancillary
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            .collect();
        let mut decoder = FrameDecoder::new(WIRE, MAX_MESSAGE);
        decoder.push(&bytes[..read.bytes]);
        let frame = decoder.next_frame().unwrap().unwrap();
        assert_eq!(WIRE.decode_message::<LaunchConfig>(frame.body).unwrap(), config());
        let contents: Vec<String> = received
            .into_iter()
            .map(|fd| {
                let mut text = String::new();
                let mut file = File::from(fd);
                std::io::Seek::rewind(&mut file).unwrap();
                file.read_to_string(&mut text).unwrap();
                text
            })
            .collect();
        assert_eq!(contents, ["first", "second"]);
    }

    fn program(dir: &Path, script: &str) -> PathBuf {
        let path = dir.join("vmm");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[tokio::test]
    async fn the_process_has_no_environment_and_its_words_in_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = program(dir.path(), "echo $$ >&2; tr '\\0' '\\n' </proc/$$/environ >&2; exit 3");
        let log = File::create(dir.path().join("log")).unwrap();
        let mut vmm = VmmProcess::spawn(&path, log, None).unwrap();
        vmm.hand_over(&config(), &LaunchFiles::default()).unwrap();
        assert_eq!(vmm.wait().await.unwrap().code(), Some(3));
        assert!(vmm.channel.ready().await.is_err());
        let words = fs::read_to_string(dir.path().join("log")).unwrap();
        let lines: Vec<&str> = words.lines().collect();
        assert_eq!(lines.len(), 1, "PID and no environment: {words}");
    }

    #[tokio::test]
    async fn a_dropped_vmm_is_killed_and_reaped_and_one_let_go_lives_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = program(dir.path(), "exec sleep 60");
        let launch = || {
            let log = File::create(dir.path().join("log")).unwrap();
            VmmProcess::spawn(&path, log, None).unwrap()
        };
        let vmm = launch();
        let mut exited = vmm.exited.clone();
        drop(vmm);
        let status = exited.wait_for(Option::is_some).await.unwrap().unwrap();
        assert_eq!(status.signal(), Some(9));

        let vmm = launch();
        let (pidfd, mut exited) = (vmm.pidfd.try_clone().unwrap(), vmm.exited.clone());
        vmm.let_go();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(exited.borrow().is_none());
        pidfd.kill().unwrap();
        exited.wait_for(Option::is_some).await.unwrap();
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let log = tempfile::tempfile().unwrap();
        let error = VmmProcess::spawn(Path::new("/no/vmm"), log, None).unwrap_err();
        assert!(error.to_string().contains("/no/vmm"), "{error}");
    }
}
