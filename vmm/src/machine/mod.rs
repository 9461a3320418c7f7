//! One virtual machine: KVM's objects, guest memory, devices and vCPU threads, built in the order KVM wants them.
//!
//! Order that matters: memslots before the irqchip (each later one waits for a grace period of milliseconds), the
//! irqchip before vCPUs (they get their local APIC from it), CPUID before everything that depends on it. Knows
//! nothing of sockets or of the process that launched it. Stopping and continuing is in [`standstill`].

pub mod context;
pub(crate) mod drill_hooks;
mod error;
pub(crate) mod mailbox;
pub mod phase;
mod standstill;
pub(crate) mod timeslice;

pub use error::MachineError;

use crate::{
    arch::x86_64::{
        boot, cmdline, cpuid, layout, registers, saved_cpu,
        state::{self, ChipsetState, VcpuState},
    },
    devices::{
        GuestAccess,
        board::{Board, lock},
        console::{BoundedLog, SerialConsole},
        virtio::{
            device::{Interrupt, VirtioDevice},
            transport::MmioTransport,
        },
    },
    memory,
    memory::GuestMemory,
    snapshot::MachineState,
    stats::VcpuCounters,
    timeline::StartTimes,
    vcpu::{self, VcpuContext, VcpuThread},
};
use context::MachineContext;
use error::{host, kvm};
use kvm_bindings::{KVM_CAP_PMU_CAPABILITY, KVM_MAX_CPUID_ENTRIES, KVM_PMU_CAP_DISABLE, kvm_enable_cap};
use kvm_ioctls::{IoEventAddress, Kvm, VcpuFd, VmFd};
use phase::Shared;
use sandboxvm_protocol::machine::VcpuCount;
use std::{
    fs::File,
    io,
    sync::{Arc, PoisonError},
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

fn eventfd() -> Result<EventFd, MachineError> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(host("cannot create an eventfd"))
}

/// What every machine is built from.
#[derive(Debug)]
pub struct MachineParts {
    /// What it keeps. Its memory is filled, or about to be.
    pub context: MachineContext,
    /// When the process started and what it did since.
    pub start_times: StartTimes,
    /// From [`create_vm`].
    pub vm: VmFd,
    /// Console log.
    pub console: File,
    /// virtio devices in window order.
    pub devices: Vec<Box<dyn VirtioDevice>>,
}

/// What a machine that boots needs in addition.
#[derive(Debug)]
pub struct BootSource {
    /// vCPUs.
    pub vcpus: VcpuCount,
    /// An ELF vmlinux.
    pub kernel: File,
    /// Appended to the kernel command line.
    pub cmdline_extra: String,
}

/// Opens /dev/kvm.
///
/// # Errors
/// [`MachineError::OpenKvm`].
pub fn open_kvm() -> Result<Arc<Kvm>, MachineError> {
    Kvm::new().map(Arc::new).map_err(MachineError::OpenKvm)
}

/// A machine whose vCPUs wait at the gate.
#[derive(Debug)]
pub struct Machine {
    // Field order is drop order: threads hold vCPUs, the VM holds memslots into the memory of `context`.
    vcpus: Vec<VcpuThread>,
    board: Arc<Board>,
    shared: Arc<Shared>,
    queue_events: Vec<Vec<EventFd>>,
    vm: VmFd,
    context: MachineContext,
}

impl Machine {
    /// Builds a machine that is about to execute its kernel's first instruction.
    ///
    /// # Errors
    /// See [`MachineError`].
    pub fn boot(parts: MachineParts, mut boot: BootSource) -> Result<Self, MachineError> {
        let context = &parts.context;
        add_memory_and_irqchip(&parts)?;
        let line = cmdline::build(context.host_mode, parts.devices.len(), &boot.cmdline_extra)?;
        let entry = boot::load(&context.memory, context.memory_size, boot.vcpus, &mut boot.kernel, &line)?;
        let fds = create_boot_vcpus(&context.kvm, &parts.vm, boot.vcpus)?;
        registers::set_boot_state(&fds[0], entry)?;
        Self::assemble(fds, parts, None)
    }

    /// Builds a machine that continues from `state`, over memory that is as it was then.
    ///
    /// # Errors
    /// See [`MachineError`]; nothing has run then.
    pub fn restore(parts: MachineParts, state: &MachineState) -> Result<Self, MachineError> {
        let here = parts.context.host_mode;
        if state.host_mode != here {
            return Err(MachineError::OtherHostMode { saved: state.host_mode, here });
        }
        let max = usize::from(VcpuCount::MAX);
        if !(1..=max).contains(&state.vcpus.len()) {
            return Err(MachineError::OtherShape { what: "vCPUs", saved: state.vcpus.len(), here: max });
        }
        add_memory_and_irqchip(&parts)?;
        let vm = &parts.vm;
        state.chipset.restore_irqchips(vm)?;
        let mut fds = Vec::with_capacity(state.vcpus.len());
        for (index, vcpu) in (0u64..).zip(&state.vcpus) {
            let fd = vm.create_vcpu(index).map_err(kvm("KVM_CREATE_VCPU"))?;
            vcpu.restore(&fd)?;
            fds.push(fd);
        }
        state.chipset.restore_clock(vm)?;
        let machine = Self::assemble(fds, parts, Some(state))?;
        machine.restore_devices(state)?;
        machine.tell_of_copy()?;
        Ok(machine)
    }

    fn assemble(fds: Vec<VcpuFd>, parts: MachineParts, state: Option<&MachineState>) -> Result<Self, MachineError> {
        let counters = fds
            .iter()
            .map(VcpuCounters::open)
            .collect::<io::Result<_>>()
            .map_err(host("cannot open KVM statistics"))?;
        let MachineParts { context, start_times, vm, console, devices } = parts;
        let shared = Arc::new(Shared::new(start_times, context.host_mode, counters, eventfd()?, state.is_some()));
        let log =
            BoundedLog::new(console, context.console_limit).map_err(host("cannot read the console log's size"))?;
        let serial_line = eventfd()?;
        vm.register_irqfd(&serial_line, layout::SERIAL_GSI).map_err(kvm("KVM_IRQFD"))?;
        let serial = match state {
            Some(state) => {
                SerialConsole::restored(serial_line, log, &state.serial).map_err(host("cannot restore the console"))?
            }
            None => SerialConsole::new(serial_line, log),
        };

        let (transports, queue_events) = wire_virtio(&vm, &context.memory, devices)?;
        let board = Arc::new(Board::new(Arc::clone(&shared), serial, transports));

        vcpu::install_kick_handler().map_err(host("cannot install the vCPU kick handler"))?;
        let run_size = context.kvm.get_vcpu_mmap_size().map_err(kvm("KVM_GET_VCPU_MMAP_SIZE"))?;
        let vcpus = fds
            .into_iter()
            .enumerate()
            .map(|(index, fd)| {
                let context = VcpuContext {
                    index,
                    shared: Arc::clone(&shared),
                    devices: Arc::clone(&board) as Arc<dyn GuestAccess>,
                    memory: Arc::clone(&context.memory),
                };
                VcpuThread::start(fd, run_size, context)
            })
            .collect::<io::Result<_>>()
            .map_err(host("cannot start a vCPU thread"))?;
        Ok(Self { vcpus, board, shared, queue_events, vm, context })
    }

    /// Reads the machine's state. All vCPUs must stand (see [`Machine::pause`]) and the event loop must be the caller,
    /// so that nothing moves meanwhile.
    ///
    /// # Errors
    /// When KVM does not give it.
    pub fn save(&self) -> Result<MachineState, MachineError> {
        let indices = state::msr_indices(&self.context.kvm)?;
        let vcpus = self
            .vcpus
            .iter()
            .map(|thread| {
                let fd = thread.vcpu().lock().unwrap_or_else(PoisonError::into_inner);
                VcpuState::save(&fd, &indices)
            })
            .collect::<Result<_, _>>()?;
        Ok(MachineState {
            host_mode: self.shared.host_mode,
            vcpus,
            chipset: ChipsetState::save(&self.vm)?,
            serial: lock(self.board.serial()).save(),
            devices: self.board.virtio().iter().map(|device| lock(device).save()).collect(),
        })
    }

    /// Refuses the state of a machine with other parts than this one has, or with MSRs that are none of a
    /// vCPU's. What its vCPUs show the guest is not taken over.
    ///
    /// # Errors
    /// [`MachineError::OtherShape`], [`MachineError::State`].
    pub fn check(&self, state: &MachineState) -> Result<(), MachineError> {
        let devices = self.board.virtio().len();
        for (what, saved, here) in
            [("vCPUs", state.vcpus.len(), self.vcpus.len()), ("virtio devices", state.devices.len(), devices)]
        {
            if saved != here {
                return Err(MachineError::OtherShape { what, saved, here });
            }
        }
        Ok(saved_cpu::check_msrs(&self.context.kvm, &state.vcpus)?)
    }

    /// Puts a standing machine back to `state`, over memory that is as it was then.
    ///
    /// # Errors
    /// When KVM or a device refuses; the machine must not run any more then.
    pub fn reset_to(&self, state: &MachineState) -> Result<(), MachineError> {
        self.check(state)?;
        state.chipset.restore_irqchips(&self.vm)?;
        for (thread, vcpu) in self.vcpus.iter().zip(&state.vcpus) {
            let fd = thread.vcpu().lock().unwrap_or_else(PoisonError::into_inner);
            vcpu.restore_registers(&fd)?;
        }
        state.chipset.restore_clock(&self.vm)?;
        self.restore_devices(state)?;
        self.tell_of_copy()
    }

    fn restore_devices(&self, state: &MachineState) -> Result<(), MachineError> {
        let (saved, here) = (state.devices.len(), self.board.virtio().len());
        if saved != here {
            return Err(MachineError::OtherShape { what: "virtio devices", saved, here });
        }
        for (device, state) in self.board.virtio().iter().zip(&state.devices) {
            let mut transport = lock(device);
            transport.restore(state)?;
            // A notification or an interrupt may have been on its way when the state was read: both are repeated.
            transport.notify_all();
            if transport.interrupt().status() != 0 {
                transport.interrupt().line().write(1).map_err(host("cannot raise a device's interrupt"))?;
            }
        }
        Ok(())
    }

    /// What the machine keeps, and what its forks continue with.
    #[must_use]
    pub fn context(&self) -> &MachineContext {
        &self.context
    }

    /// State shared with the vCPU threads.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The devices.
    #[must_use]
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// Per virtio device, the eventfd that is signalled when the guest notifies each queue.
    #[must_use]
    pub fn queue_events(&self) -> &[Vec<EventFd>] {
        &self.queue_events
    }

    /// Stops all vCPUs for a moment; true when they ran before and are to run again after.
    #[must_use]
    pub fn hold(&self) -> bool {
        let was_running = !self.shared.gate.is_paused();
        self.pause();
        was_running
    }

    /// Stops the vCPUs of a machine that runs for a moment too short to be left out of the guest's time. True when none of
    /// them can ever execute another instruction: each is halted with interrupts disabled and nothing pending that wakes
    /// it anyway, or waits for another to start it. A device whose interrupt the guest routed as an NMI is not
    /// considered.
    ///
    /// # Errors
    /// When KVM does not say.
    pub fn can_never_run(&self) -> Result<bool, MachineError> {
        self.examine_interruption();
        self.shared.gate.close(|| self.kick());
        let mut halted = self.vcpus.iter().map(|thread| {
            let fd = thread.vcpu().lock().unwrap_or_else(PoisonError::into_inner);
            state::can_never_run(&fd)
        });
        let result = halted.try_fold(true, |all, one| Ok(all && one?));
        self.shared.gate.open();
        result
    }

    /// Ends the vCPU threads; returns when none is in the guest.
    pub fn end(&self) {
        self.shared.gate.end(|| self.kick());
    }

    fn kick(&self) {
        self.vcpus.iter().for_each(VcpuThread::kick);
    }
}

/// A virtual machine without memory, interrupt controllers or vCPUs: what any machine begins as.
///
/// # Errors
/// When KVM refuses.
pub fn create_vm(kvm_file: &Kvm) -> Result<VmFd, MachineError> {
    let vm = kvm_file.create_vm().map_err(kvm("KVM_CREATE_VM"))?;
    vm.set_tss_address(layout::KVM_TSS).map_err(kvm("KVM_SET_TSS_ADDR"))?;
    leave_out_performance_counters(kvm_file, &vm)?;
    Ok(vm)
}

/// Hiding the counters in CPUID keeps guests that obey it from them; this keeps KVM's code for them from every guest.
fn leave_out_performance_counters(kvm_file: &Kvm, vm: &VmFd) -> Result<(), MachineError> {
    // Not positive where KVM has none to give: an old kernel's, or one told so.
    let offered = kvm_file.check_extension_raw(KVM_CAP_PMU_CAPABILITY.into());
    if offered <= 0 || offered.cast_unsigned() & KVM_PMU_CAP_DISABLE == 0 {
        return Ok(());
    }
    let mut disable = kvm_enable_cap { cap: KVM_CAP_PMU_CAPABILITY, ..Default::default() };
    disable.args[0] = KVM_PMU_CAP_DISABLE.into();
    vm.enable_cap(&disable).map_err(kvm("KVM_ENABLE_CAP of KVM_CAP_PMU_CAPABILITY"))
}

fn add_memory_and_irqchip(parts: &MachineParts) -> Result<(), MachineError> {
    memory::register(&parts.vm, &parts.context.memory)?;
    parts.vm.create_irq_chip().map_err(kvm("KVM_CREATE_IRQCHIP"))
}

fn create_boot_vcpus(kvm_file: &Kvm, vm: &VmFd, count: VcpuCount) -> Result<Vec<VcpuFd>, MachineError> {
    let supported = kvm_file.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(kvm("KVM_GET_SUPPORTED_CPUID"))?;
    (0..count.get())
        .map(|index| {
            let fd = vm.create_vcpu(u64::from(index)).map_err(kvm("KVM_CREATE_VCPU"))?;
            let cpuid = cpuid::for_vcpu(&supported, index, count.get()).map_err(|_| MachineError::Cpuid)?;
            fd.set_cpuid2(&cpuid).map_err(kvm("KVM_SET_CPUID2"))?;
            registers::set_boot_msrs(&fd)?;
            registers::set_local_interrupts(&fd)?;
            Ok(fd)
        })
        .collect()
}

/// Gives each device its window, interrupt and queue notifications.
fn wire_virtio(
    vm: &VmFd,
    memory: &Arc<GuestMemory>,
    devices: Vec<Box<dyn VirtioDevice>>,
) -> Result<(Vec<MmioTransport>, Vec<Vec<EventFd>>), MachineError> {
    /// QueueNotify (virtio 1.2, 4.2.2).
    const QUEUE_NOTIFY: u64 = 0x50;
    let count = devices.len();
    let mut transports = Vec::with_capacity(count);
    let mut queue_events = Vec::with_capacity(count);
    for (index, device) in (0u32..).zip(devices) {
        let gsi = layout::VIRTIO_GSI + index;
        if gsi > layout::LAST_GSI {
            return Err(MachineError::TooManyDevices(count));
        }
        let line = eventfd()?;
        vm.register_irqfd(&line, gsi).map_err(kvm("KVM_IRQFD"))?;
        let window = layout::VIRTIO_MMIO + u64::from(index) * layout::VIRTIO_MMIO_SIZE;
        let address = IoEventAddress::Mmio(window + QUEUE_NOTIFY);
        let mut events = Vec::new();
        for queue in (0u32..).take(device.queue_limits().len()) {
            let event = eventfd()?;
            vm.register_ioevent(&event, &address, queue).map_err(kvm("KVM_IOEVENTFD"))?;
            events.push(event);
        }
        transports.push(MmioTransport::new(device, Arc::clone(memory), Interrupt::new(line))?);
        queue_events.push(events);
    }
    Ok((transports, queue_events))
}
