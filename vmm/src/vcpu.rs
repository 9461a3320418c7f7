//! A vCPU and the thread that runs it: enter the guest, serve its exit, again. Owns the vCPU's file; started by
//! [`crate::machine`]. Never blocks on anything but KVM_RUN, the run gate and a device's lock.
//!
//! An access to an MSR never gets here: KVM answers it (docs/threat-model.md says why there is no filter).

use crate::{
    arch::x86_64::emulation::{self, Emulated},
    confine,
    devices::GuestAccess,
    machine::{drill_hooks, phase::Shared, timeslice},
    memory::GuestMemory,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use sandboxvm_protocol::vmm::ExitReason;
use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

/// Longer than serving any exit takes on a host that runs this thread at all.
const LONG_OUTSIDE: Duration = Duration::from_millis(200);

/// Makes a vCPU thread leave KVM_RUN, or not enter it.
///
/// `immediate_exit` is set before the signal is sent: a thread inside KVM_RUN is interrupted by the signal, a thread on
/// its way in finds the flag. The thread clears the flag before it looks at the gate, so no kick is lost.
#[derive(Debug)]
struct Kick {
    immediate_exit: *const AtomicU8,
}

// SAFETY: the pointer leads into the kvm_run mapping, which lives as long as the VcpuFd beside it in `Vcpu` (kept by
// `VcpuThread` through an Arc); the field is only accessed atomically by us, and KVM reads it as shared memory.
unsafe impl Send for Kick {}
// SAFETY: as above.
unsafe impl Sync for Kick {}

impl Kick {
    fn new(fd: &mut VcpuFd) -> Self {
        Self { immediate_exit: (&raw mut fd.get_kvm_run().immediate_exit).cast::<AtomicU8>() }
    }

    /// Takes the kick back; true when there was one.
    fn take(&self) -> bool {
        // SAFETY: see `Send`; as in `set`.
        unsafe { &*self.immediate_exit }.swap(0, Ordering::SeqCst) != 0
    }

    fn set(&self, value: u8) {
        // SAFETY: see `Send`; AtomicU8 has the size and alignment of the u8 it points to.
        unsafe { &*self.immediate_exit }.store(value, Ordering::SeqCst);
    }
}

/// A vCPU thread, and the vCPU for the thread that closed the gate.
#[derive(Debug)]
pub struct VcpuThread {
    vcpu: Arc<Mutex<VcpuFd>>,
    kick: Arc<Kick>,
    thread: JoinHandle<()>,
}

/// Everything a vCPU thread works with.
#[derive(Debug)]
pub struct VcpuContext {
    /// Position among the machine's vCPUs.
    pub index: usize,
    /// State shared with the event loop.
    pub shared: Arc<Shared>,
    /// What the guest reaches by port and MMIO.
    pub devices: Arc<dyn GuestAccess>,
    /// Guest memory, to look at instructions KVM could not execute.
    pub memory: Arc<GuestMemory>,
}

/// The signal that interrupts KVM_RUN.
fn kick_signal() -> i32 {
    SIGRTMIN()
}

/// Installs the do-nothing handler without which the kick would end the process. To be called once, before the first
/// [`VcpuThread::start`].
///
/// # Errors
/// When sigaction(2) refuses.
pub fn install_kick_handler() -> io::Result<()> {
    extern "C" fn nothing(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(kick_signal(), nothing).map_err(|e| io::Error::from_raw_os_error(e.errno()))
}

impl VcpuThread {
    /// Starts the thread; it waits at the gate. `run_size` is KVM_GET_VCPU_MMAP_SIZE.
    ///
    /// # Errors
    /// When the host refuses another thread.
    pub fn start(mut fd: VcpuFd, run_size: usize, context: VcpuContext) -> io::Result<Self> {
        Self::keep_from_forks(&mut fd, run_size)?;
        let kick = Arc::new(Kick::new(&mut fd));
        let vcpu = Arc::new(Mutex::new(fd));
        let thread = thread::Builder::new().name(format!("vcpu{}", context.index)).spawn({
            let (vcpu, kick) = (Arc::clone(&vcpu), Arc::clone(&kick));
            move || run(&vcpu, &kick, &context)
        })?;
        Ok(Self { vcpu, kick, thread })
    }

    /// Makes the thread come to the gate.
    pub fn kick(&self) {
        self.kick.set(1);
        // Fails only for a thread that is gone, which then needs no kick.
        let _ = self.thread.kill(kick_signal());
    }

    /// Takes the kvm_run mapping out of what fork(2) copies: a child that inherited it would keep this machine alive
    /// for as long as it lives itself.
    fn keep_from_forks(fd: &mut VcpuFd, run_size: usize) -> io::Result<()> {
        let run: *mut kvm_bindings::kvm_run = fd.get_kvm_run();
        // SAFETY: the range is the kvm_run mapping that `fd` owns, of the size KVM states; the advice changes nothing
        // for this process.
        Ok(unsafe { rustix::mm::madvise(run.cast(), run_size, rustix::mm::Advice::LinuxDontFork) }?)
    }

    /// The vCPU itself. The thread holds it while the gate is open: call only between close and open of the gate.
    #[must_use]
    pub fn vcpu(&self) -> &Mutex<VcpuFd> {
        &self.vcpu
    }
}

fn run(vcpu: &Mutex<VcpuFd>, kick: &Kick, context: &VcpuContext) {
    timeslice::suit(context.shared.host_mode);
    if let Err(error) = confine::restrict_to_vcpu() {
        context.shared.gate.leave();
        context.shared.end(ExitReason::HostFailure { message: error.to_string() });
        return;
    }
    while context.shared.gate.pass() {
        // A poisoned lock means that a thread holding this vCPU panicked; the vCPU's state is KVM's and still whole.
        let mut fd = vcpu.lock().unwrap_or_else(PoisonError::into_inner);
        context.shared.mark_first_run();
        let left = run_until_interrupted(&mut fd, kick, context);
        drop(fd);
        match left {
            Ok(Interruption::Kick) => {}
            Ok(Interruption::Unknown) => context.shared.doubt(),
            Err(reason) => {
                context.shared.gate.leave();
                context.shared.end(reason);
                return;
            }
        }
    }
}

/// Why a vCPU left the guest that can run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Interruption {
    /// It was kicked, or has only now been started by another.
    Kick,
    /// A signal that stopped this process, a freezer, or more time outside the guest than anything done here takes.
    Unknown,
}

/// Runs the guest until it is to come to the gate. `Err` when this vCPU can never run again.
fn run_until_interrupted(fd: &mut VcpuFd, kick: &Kick, context: &VcpuContext) -> Result<Interruption, ExitReason> {
    let counters = context.shared.exit_counters(context.index);
    let mut outside = None::<Instant>;
    let mut was_long_outside = false;
    loop {
        if outside.is_some_and(|since| since.elapsed() >= LONG_OUTSIDE) {
            was_long_outside = true;
            // KVM finishes the instruction that was served, and nothing more.
            kick.set(1);
        }
        let exit = fd.run();
        outside = Some(Instant::now());
        match exit {
            Ok(VcpuExit::IoOut(port, data)) => {
                counters.ports.fetch_add(1, Ordering::Relaxed);
                if drill_hooks::is_asked(port, data, &context.shared) {
                    continue;
                }
                context.devices.port_write(port, data)?;
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                counters.ports.fetch_add(1, Ordering::Relaxed);
                context.devices.port_read(port, data)?;
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                counters.mmio.fetch_add(1, Ordering::Relaxed);
                context.devices.mmio_write(address, data)?;
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                counters.mmio.fetch_add(1, Ordering::Relaxed);
                context.devices.mmio_read(address, data)?;
            }
            Ok(VcpuExit::InternalError) => {
                match emulation::handle_internal_error(fd, &context.memory, context.shared.host_mode)? {
                    Emulated::Int3 => drop(context.shared.int3.fetch_add(1, Ordering::Relaxed)),
                    Emulated::Fwait => drop(context.shared.fwait.fetch_add(1, Ordering::Relaxed)),
                    Emulated::ExtendedState => {}
                }
            }
            Ok(VcpuExit::Shutdown) => return Err(ExitReason::TripleFault),
            Ok(VcpuExit::FailEntry(reason, _cpu)) => return Err(ExitReason::EntryFailure { reason }),
            Ok(VcpuExit::Intr) => {}
            Ok(other) => return Err(ExitReason::UnexpectedExit { name: format!("{other:?}") }),
            Err(error) if error.errno() == libc::EAGAIN => {
                kick.set(0);
                return Ok(Interruption::Kick);
            }
            // The kick's flag is set before its signal is sent, and a stop of this process sets none.
            Err(error) if error.errno() == libc::EINTR => {
                let was_kicked = kick.take();
                return Ok(if was_kicked && !was_long_outside { Interruption::Kick } else { Interruption::Unknown });
            }
            Err(error) => return Err(ExitReason::HostFailure { message: format!("KVM_RUN failed: {error}") }),
        }
    }
}
