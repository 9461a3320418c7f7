//! What the vCPU threads and the event loop of one machine share: the run gate, the reason it ended, its counters.
//! Owns no KVM object.

use crate::{
    gate::RunGate,
    stats::{Counters, VcpuCounters},
    timeline::{self, StartTimes},
};
use sandboxvm_protocol::{
    machine::HostMode,
    vmm::{BootMark, ExitReason, Phase, Timeline, VcpuStats, VmStats},
};
use std::{
    io,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};
use vmm_sys_util::eventfd::EventFd;

/// Counters that only this VMM keeps, one set per vCPU.
#[derive(Debug, Default)]
pub struct ExitCounters {
    /// Port accesses handled here.
    pub ports: AtomicU64,
    /// MMIO accesses handled here.
    pub mmio: AtomicU64,
}

/// State shared between the threads of one machine.
#[derive(Debug)]
pub struct Shared {
    start_times: StartTimes,
    built_at: OnceLock<u64>,
    /// What executes guest ring 0.
    pub host_mode: HostMode,
    /// Holds vCPUs back.
    pub gate: RunGate,
    /// INT3 emulated.
    pub int3: AtomicU64,
    /// FWAIT skipped.
    pub fwait: AtomicU64,
    vcpus: Vec<(VcpuCounters, ExitCounters)>,
    first_run_ns: OnceLock<u64>,
    /// The agent listened already when this machine began: it came out of a snapshot.
    began_ready: bool,
    boot: OnceLock<BootMark>,
    shutdown_announced: AtomicBool,
    panicked: AtomicBool,
    reason: Mutex<Option<ExitReason>>,
    news: EventFd,
}

impl Shared {
    /// For a machine with one entry of `vcpus` per vCPU. `news` becomes readable when the phase changed.
    #[must_use]
    pub fn new(
        start_times: StartTimes,
        host_mode: HostMode,
        vcpus: Vec<VcpuCounters>,
        news: EventFd,
        began_ready: bool,
    ) -> Self {
        Self {
            start_times,
            built_at: OnceLock::new(),
            host_mode,
            gate: RunGate::new(vcpus.len()),
            int3: AtomicU64::new(0),
            fwait: AtomicU64::new(0),
            vcpus: vcpus.into_iter().map(|counters| (counters, ExitCounters::default())).collect(),
            first_run_ns: OnceLock::new(),
            began_ready,
            boot: OnceLock::new(),
            shutdown_announced: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            reason: Mutex::new(None),
            news,
        }
    }

    /// This VMM's own counters of vCPU `index`.
    #[must_use]
    pub fn exit_counters(&self, index: usize) -> &ExitCounters {
        &self.vcpus[index].1
    }

    /// The machine is over. The first reason stands.
    pub fn end(&self, reason: ExitReason) {
        let mut slot = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_none() {
            *slot = Some(reason);
        }
        drop(slot);
        self.tell();
    }

    /// The guest asked for a reset; what it said before tells why.
    pub fn end_by_reset(&self) {
        self.end(if self.panicked.load(Ordering::Relaxed) {
            ExitReason::GuestPanic
        } else if self.shutdown_announced.load(Ordering::Relaxed) {
            ExitReason::GuestShutdown
        } else {
            ExitReason::GuestReset
        });
    }

    /// A vCPU is about to execute its first guest instruction.
    pub fn mark_first_run(&self) {
        let mut first = false;
        self.first_run_ns.get_or_init(|| {
            first = true;
            self.elapsed_ns()
        });
        if first {
            self.tell();
        }
    }

    /// A vCPU came out of the guest and was not asked to: as if this process had been stopped. None runs before the event
    /// loop has looked into it.
    pub fn doubt(&self) {
        if self.gate.doubt() {
            self.tell();
        }
    }

    /// The agent listens. Only the first time counts.
    pub fn mark_ready(&self) {
        self.boot.get_or_init(|| {
            let mut mark = BootMark { elapsed_ns: self.elapsed_ns(), ..BootMark::default() };
            for (counters, _) in &self.vcpus {
                let now = counters.read();
                mark.insn_emulation += now.insn_emulation;
                mark.exits += now.exits;
            }
            mark
        });
        self.tell();
    }

    /// The agent is about to reset the machine, at the end of a graceful shutdown.
    pub fn mark_shutdown_announced(&self) {
        self.shutdown_announced.store(true, Ordering::Relaxed);
    }

    /// The guest kernel panicked; its reset follows.
    pub fn mark_panicked(&self) {
        self.panicked.store(true, Ordering::Relaxed);
    }

    /// Why the machine ended, once it did.
    #[must_use]
    pub fn reason(&self) -> Option<ExitReason> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where the machine is in its life.
    #[must_use]
    pub fn phase(&self) -> Phase {
        if self.reason().is_some() {
            Phase::Ended
        } else if self.first_run_ns.get().is_none() {
            Phase::Created
        } else if self.gate.is_paused() {
            Phase::Paused
        } else if self.began_ready || self.boot.get().is_some() {
            Phase::Ready
        } else {
            Phase::Booting
        }
    }

    /// Readable when the phase may have changed; draining it is the event loop's.
    #[must_use]
    pub fn news(&self) -> &EventFd {
        &self.news
    }

    /// Takes the pending signal off [`Shared::news`].
    pub fn drain_news(&self) {
        match self.news.read() {
            Ok(_) => {}
            // Nothing pending: another wake-up took it.
            Err(error) => debug_assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
    }

    /// KVM's counters of each vCPU.
    #[must_use]
    pub fn counters(&self) -> Vec<Counters> {
        self.vcpus.iter().map(|(kvm, _)| kvm.read()).collect()
    }

    /// True once a guest instruction was executed.
    #[must_use]
    pub fn has_run(&self) -> bool {
        self.first_run_ns.get().is_some()
    }

    /// All counters.
    #[must_use]
    pub fn stats(&self) -> VmStats {
        let vcpus = self.vcpus.iter().map(|(kvm, own)| {
            let now = kvm.read();
            VcpuStats {
                exits: now.exits,
                insn_emulation: now.insn_emulation,
                irq_injections: now.irq_injections,
                port_exits: own.ports.load(Ordering::Relaxed),
                mmio_exits: own.mmio.load(Ordering::Relaxed),
            }
        });
        VmStats {
            phase: self.phase(),
            host_mode: self.host_mode,
            vcpus: vcpus.collect(),
            first_run_ns: self.first_run_ns.get().copied(),
            boot: self.boot.get().cloned(),
            int3_emulated: self.int3.load(Ordering::Relaxed),
            fwait_skipped: self.fwait.load(Ordering::Relaxed),
        }
    }

    /// How the machine came to life.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        let StartTimes { process_start, confined, launched } = self.start_times;
        let first_run = self.first_run_ns.get().map(|after| process_start + after);
        Timeline { process_start, confined, launched, built: self.built_at.get().copied(), first_run }
    }

    /// All of the machine is there; its vCPUs wait at the gate.
    pub fn mark_built(&self) {
        self.built_at.get_or_init(timeline::now);
    }

    fn elapsed_ns(&self) -> u64 {
        timeline::now().saturating_sub(self.start_times.process_start)
    }

    fn tell(&self) {
        // Fails only when 2^64-2 signals are pending; one is enough for the loop to look.
        let _ = self.news.write(1);
    }
}
