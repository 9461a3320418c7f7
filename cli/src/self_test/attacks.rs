//! What a hostile guest does: each trial attacks the host as root in a sandbox, and fails if the attack reaches it. Where
//! it can, a trial shows that the attack would find what it looks for.

use super::{
    rig::{DISK_MIB, Doing, Fault, MEMORY_MIB, Rig, ended, shell},
    uses::with,
};
use sandboxvm_manager::{ExitReason, MIB, Sandbox, SandboxSpec, StartFrom, State};
use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    time::{Duration, Instant},
};
use tokio::time::sleep;

/// Memory that a VMM may use beside that of its guest, in MiB.
const OVERHEAD_MIB: u64 = 96;
/// Space on the host that metadata of a disk may take, in MiB.
const DISK_OVERHEAD_MIB: u64 = 32;
/// Maximum time in which another sandbox has to answer during an attack.
const OTHERS_ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Looks everywhere in the guest for a file of the host.
pub(super) async fn files(rig: &Rig) -> Result<String, Fault> {
    const NAME: &str = "canary-of-the-self-test";
    let path = rig.directory()?.join(NAME);
    fs::write(&path, NAME).doing("write a file on the host")?;
    let started = rig.start(StartFrom::Ready).await?;
    with(started, async |sandbox| {
        let search = |below: &str| {
            format!("cat '{}' 2>/dev/null; find {below} -name {NAME} -print 2>/dev/null; true", path.display())
        };
        let found = shell(sandbox, &search("/")).await?;
        if !found.is_empty() {
            return Err(Fault::new(format_args!("a guest found a file of the host: {found}")));
        }
        // The same search finds a file that is there.
        let own = shell(sandbox, &format!("touch /root/{NAME}; {}", search("/root"))).await?;
        if own != format!("/root/{NAME}") {
            return Err(Fault::new(format_args!("the search found {own:?} and not the file that was made for it")));
        }
        Ok("a guest finds none of them".to_owned())
    })
    .await
}

/// Connects to a service of the host under all its addresses.
pub(super) async fn network(rig: &Rig) -> Result<String, Fault> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).doing("listen on the host")?;
    let port = listener.local_addr().doing("listen on the host")?.port();
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).doing("connect to it from the host")?;
    listener.accept().doing("accept a connection of the host")?;
    listener.set_nonblocking(true).doing("listen on the host")?;
    let mut addresses = vec!["127.0.0.1".to_owned(), "10.0.2.2".to_owned(), "169.254.169.254".to_owned()];
    addresses.extend(own_address().map(|address| address.to_string()));
    let started = rig.start(StartFrom::Ready).await?;
    with(started, async |sandbox| {
        // The search that finds nothing of the host finds a service that the guest has then.
        let script = format!(
            "python3 - <<'END'\nimport socket\ndef search(address, port, found):\n    try:\n        \
             socket.create_connection((address, port), 2)\n        print(found)\n    except OSError:\n        pass\n\
             for address in {addresses:?}:\n    search(address, {port}, address)\n\
             for port in ({port}, 22, 1, 1024, 2375):\n    try:\n        s = socket.socket(socket.AF_VSOCK)\n        \
             s.settimeout(2)\n        s.connect((2, port))\n        print('vsock', port)\n    except OSError:\n        pass\n\
             own = socket.create_server(('127.0.0.1', 0))\nsearch('127.0.0.1', own.getsockname()[1], 'own')\nEND"
        );
        let reached = shell(sandbox, &script).await?;
        let accepted = listener.accept();
        let Some(reached) = reached.strip_suffix("own") else {
            return Err(Fault::new(format_args!("the search did not find the guest's own service: {reached:?}")));
        };
        if !reached.is_empty() || !matches!(&accepted, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            return Err(Fault::new(format_args!("a guest reached the host: {reached} {accepted:?}")));
        }
        Ok(format!("a guest reaches it under none of {} addresses", addresses.len()))
    })
    .await
}

/// The address from which this host would reach others, if it has a route. Nothing is sent.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // An address of documentation (RFC 5737).
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Starts processes without end.
pub(super) async fn fork_bomb(rig: &Rig) -> Result<String, Fault> {
    beside_another(rig, async |sandbox| {
        shell(sandbox, "setsid perl -e 'while (1) { fork }' >/dev/null 2>&1 </dev/null & true").await?;
        sleep(Duration::from_secs(2)).await;
        Ok(String::new())
    })
    .await
}

/// Allocates memory until the guest has none left.
pub(super) async fn memory(rig: &Rig) -> Result<String, Fault> {
    beside_another(rig, async |sandbox| {
        let (code, _) = ended(sandbox, r#"python3 -c 'a = [b"x" * (1 << 20) for _ in range(1 << 20)]'"#).await?;
        if code == 0 {
            return Err(Fault::new("a guest got a terabyte of memory"));
        }
        let usage = sandbox.usage().doing("read what the sandbox uses")?;
        let used = usage.map_or(0, |usage| usage.resident_bytes / MIB);
        if used > MEMORY_MIB + OVERHEAD_MIB {
            return Err(Fault::new(format_args!("a guest of {MEMORY_MIB} MiB uses {used} MiB of the host")));
        }
        Ok(format!("{used} MiB of the host for a guest of {MEMORY_MIB} MiB; "))
    })
    .await
}

/// Writes until the disk is full.
pub(super) async fn disk(rig: &Rig) -> Result<String, Fault> {
    let started = rig.start(StartFrom::Ready).await?;
    with(started, async |sandbox| {
        let fill = r#"python3 -c 'f = open("/root/file", "wb", 0)
while True: f.write(b"x" * (1 << 20))' 2>&1; sync"#;
        // The directory also has the image and what was restored, whose files it shares.
        let before = allocated(&sandbox.path()).doing("read what the disk takes")?;
        let (code, text) = ended(sandbox, fill).await?;
        if !text.contains("No space left") {
            return Err(Fault::new(format_args!("the disk did not become full ({code}): {text}")));
        }
        let used = allocated(&sandbox.path()).doing("read what the disk takes")?.saturating_sub(before) / MIB;
        if used > DISK_MIB + DISK_OVERHEAD_MIB {
            return Err(Fault::new(format_args!("a disk of {DISK_MIB} MiB takes {used} MiB of the host")));
        }
        Ok(format!("{used} MiB of the host for a disk of {DISK_MIB} MiB"))
    })
    .await
}

/// Ends the machine from inside.
pub(super) async fn power_off(rig: &Rig) -> Result<String, Fault> {
    let started = rig.start_as(SandboxSpec { ..Rig::spec()? }).await?;
    with(started, async |sandbox| {
        // reboot(2) with LINUX_REBOOT_CMD_POWER_OFF.
        let _ = ended(sandbox, "perl -e 'syscall(169, 0xfee1dead, 672274793, 0x4321fedc)'").await;
        let begin = Instant::now();
        loop {
            match sandbox.state().doing("read the state")? {
                State::Exited { reason: reason @ ExitReason::HostFailure { .. } } => {
                    return Err(Fault::new(format_args!("the VMM failed: {reason}")));
                }
                State::Exited { reason } => return Ok(format!("noticed: {reason}")),
                _ if begin.elapsed() > OTHERS_ANSWER_WITHIN => return Err(Fault::new("it was not noticed")),
                _ => sleep(Duration::from_millis(100)).await,
            }
        }
    })
    .await
}

/// Runs an attack in one sandbox, and meanwhile a command in another.
async fn beside_another(
    rig: &Rig,
    attack: impl AsyncFnOnce(&Sandbox) -> Result<String, Fault>,
) -> Result<String, Fault> {
    let other = rig.start(StartFrom::Ready).await?;
    with(other, async |other| {
        let hostile = rig.start(StartFrom::Ready).await?;
        with(hostile, async |hostile| {
            let found = attack(hostile).await?;
            let begin = Instant::now();
            shell(other, "echo here").await?;
            let took = begin.elapsed();
            if took > OTHERS_ANSWER_WITHIN {
                return Err(Fault::new(format_args!("another sandbox answered after {} s", took.as_secs())));
            }
            Ok(format!("{found}another sandbox answers in {} ms", took.as_millis()))
        })
        .await
    })
    .await
}

/// Returns the bytes that the files of a directory take on the disk.
fn allocated(directory: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut sum = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        sum += if metadata.is_dir() { allocated(&entry.path())? } else { metadata.blocks() * 512 };
    }
    Ok(sum)
}
