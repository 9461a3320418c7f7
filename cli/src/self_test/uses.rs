//! What users do: each trial uses sandboxes as they do, and fails if the result is not what it should be.

use super::rig::{Doing, Fault, Rig, shell};
use sandboxvm_manager::{HostMode, Sandbox, SandboxName, SandboxSpec, StartFrom, StartedSandbox, VcpuCount};
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// Instructions of the guest's kernel, in millions, from the start of a VMM until the agent listens, in a machine with
/// [`super::rig::MEMORY_MIB`]. They are counted where the host interprets them (mode pvm), and hardly depend on the host.
const BOOT_MILLIONS: f64 = 10.0;
/// By how much they may differ: some of them wait for devices and clocks.
const TOLERANCE: f64 = 0.3;

/// Boots a kernel, without a snapshot.
pub(super) async fn boot(rig: &Rig) -> Result<String, Fault> {
    let started = rig.start(StartFrom::Boot).await?;
    with(started, async |sandbox| {
        shell(sandbox, "true").await?;
        let stats = sandbox.stats().await.doing("read the counters")?;
        let Some(mark) = stats.boot else { return Err(Fault::new("the VMM did not see the guest boot")) };
        let millions = mark.insn_emulation as f64 / 1e6;
        let elapsed = format!("agent after {} ms", mark.elapsed_ns / 1_000_000);
        if stats.host_mode != HostMode::Pvm {
            return Ok(elapsed);
        }
        let counted = format!("{elapsed}, {millions:.1} million kernel instructions (expected {BOOT_MILLIONS:.1})");
        if (millions / BOOT_MILLIONS - 1.0).abs() <= TOLERANCE { Ok(counted) } else { Err(Fault::new(counted)) }
    })
    .await
}

/// Starts from the ready snapshot, which the first start makes.
pub(super) async fn ready(rig: &Rig) -> Result<String, Fault> {
    rig.start(StartFrom::Ready).await?.finish().await.doing("remove a sandbox")?;
    let begin = Instant::now();
    let started = rig.start(StartFrom::Ready).await?;
    let running = begin.elapsed();
    with(started, async |sandbox| {
        shell(sandbox, "true").await?;
        let first = begin.elapsed() - running;
        Ok(format!("running after {} ms, first command in {} ms", running.as_millis(), first.as_millis()))
    })
    .await
}

/// Uses two vCPUs.
pub(super) async fn two_vcpus(rig: &Rig) -> Result<String, Fault> {
    let vcpus = VcpuCount::try_from(2).doing("number of vCPUs")?;
    let started = rig.start_as(SandboxSpec { vcpus, ..Rig::spec()? }).await?;
    with(started, async |sandbox| {
        let both = "for cpu in 0 1; do taskset -c $cpu sh -c 'grep -c ^processor /proc/cpuinfo' & done; wait";
        same("processors", &shell(sandbox, both).await?, "2\n2")?;
        Ok("both run programs".to_owned())
    })
    .await
}

/// Restores memory, processes and disk from a snapshot.
pub(super) async fn snapshot(rig: &Rig) -> Result<String, Fault> {
    let name = SandboxName::try_from("self-test".to_owned()).doing("name of the snapshot")?;
    let started = rig.start(StartFrom::Ready).await?;
    let written = with(started, async |sandbox| {
        shell(sandbox, "echo kept >/root/file; echo kept >/dev/shm/file; sleep 10000 >/dev/null 2>&1 & true").await?;
        let begin = Instant::now();
        sandbox.snapshot(name.clone()).await.doing("write the snapshot")?;
        let written = begin.elapsed();
        shell(sandbox, "echo later >/root/file").await?;
        Ok(written)
    })
    .await?;
    let begin = Instant::now();
    let started = rig.start_as(SandboxSpec { start_from: StartFrom::Snapshot(name.clone()), ..Rig::spec()? }).await?;
    let restored = begin.elapsed();
    let found =
        with(started, async |sandbox| shell(sandbox, "cat /root/file /dev/shm/file; pgrep -c -x sleep").await).await?;
    rig.manager.remove_snapshot(name.as_str()).doing("remove the snapshot")?;
    same("disk, memory and processes", &found, "kept\nkept\n1")?;
    Ok(format!("written in {} ms, restored in {} ms", written.as_millis(), restored.as_millis()))
}

/// Makes a running copy, which has the memory of the original and different random numbers.
pub(super) async fn fork(rig: &Rig) -> Result<String, Fault> {
    let started = rig.start(StartFrom::Ready).await?;
    with(started, async |sandbox| {
        shell(sandbox, "echo kept >/dev/shm/file").await?;
        let begin = Instant::now();
        let forked = sandbox.fork(1).await.doing("fork")?;
        let took = begin.elapsed();
        let outcome = async {
            let Some(copy) = forked.copies.first() else { return Err(Fault::new("no copy was made")) };
            same("memory of the copy", &shell(copy, "cat /dev/shm/file").await?, "kept")?;
            let random = "od -A n -N 16 -t x1 /dev/urandom";
            if shell(sandbox, random).await? == shell(copy, random).await? {
                return Err(Fault::new("the copy draws the random numbers of the original"));
            }
            Ok(format!("a copy in {} ms, with different random numbers", took.as_millis()))
        };
        let outcome = outcome.await;
        for copy in &forked.copies {
            rig.manager.remove(copy.id().as_str(), true).await.doing("remove the copy")?;
        }
        outcome
    })
    .await
}

/// Returns a sandbox to its start.
pub(super) async fn reset(rig: &Rig) -> Result<String, Fault> {
    let started = rig.start(StartFrom::Ready).await?;
    with(started, async |sandbox| {
        shell(sandbox, "echo lost >/root/file; sleep 10000 >/dev/null 2>&1 & true").await?;
        let begin = Instant::now();
        let timeout = SandboxSpec::default().boot_timeout;
        sandbox.reset(&rig.bundle, None, timeout, || ()).await.doing("reset")?;
        let took = begin.elapsed();
        same("what is left", &shell(sandbox, "ls /root/file 2>/dev/null; pgrep -c -x sleep || true").await?, "0")?;
        Ok(format!("{} ms", took.as_millis()))
    })
    .await
}

/// Stands still for a time, and continues.
pub(super) async fn pause(rig: &Rig) -> Result<String, Fault> {
    let started = rig.start(StartFrom::Ready).await?;
    with(started, async |sandbox| {
        shell(sandbox, "(while :; do echo >>/dev/shm/ticks; sleep 0.1; done) >/dev/null 2>&1 & true").await?;
        sandbox.pause().await.doing("pause")?;
        sleep(Duration::from_secs(1)).await;
        sandbox.resume().await.doing("resume")?;
        let begin = Instant::now();
        let ticks = shell(sandbox, "wc -l </dev/shm/ticks; sleep 1; wc -l </dev/shm/ticks").await?;
        match ticks.split_once('\n') {
            Some((before, after)) if before != after => {
                Ok(format!("a process continues; first command in {} ms", begin.elapsed().as_millis() - 1000))
            }
            _ => Err(Fault::new(format_args!("a process stands still after the pause: {ticks}"))),
        }
    })
    .await
}

/// Lends a sandbox to `trial`, and removes it.
pub(super) async fn with<T>(
    started: StartedSandbox,
    trial: impl AsyncFnOnce(&Sandbox) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let outcome = trial(started.sandbox()).await;
    let removed = started.finish().await.doing("remove a sandbox");
    let outcome = outcome?;
    removed.map(|()| outcome)
}

fn same(what: &str, found: &str, wanted: &str) -> Result<(), Fault> {
    if found == wanted { Ok(()) } else { Err(Fault::new(format_args!("{what}: {found:?}, expected {wanted:?}"))) }
}
