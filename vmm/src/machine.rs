//! One virtual machine: KVM's objects, guest memory, devices and vCPU threads, built in the order KVM wants them.
//!
//! Order that matters: memslots before the irqchip (each later one waits for a grace period of milliseconds), the
//! irqchip before vCPUs (they get their local APIC from it), CPUID before everything that depends on it. Called by
//! `main`; knows nothing of sockets or of who launched it.

use crate::{
    arch::x86_64::{boot, cmdline, cpuid, host_mode, layout, registers},
    devices::{
        GuestAccess,
        board::Board,
        console::{BoundedLog, SerialConsole},
        virtio::device::{GuestMemory, Interrupt, VirtioDevice},
        virtio::transport::{MmioTransport, QueueLimitError},
    },
    memory,
    shared::Shared,
    stats::VcpuCounters,
    vcpu::{self, VcpuContext, VcpuThread},
};
use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::{IoEventAddress, Kvm, VcpuFd, VmFd};
use sandboxvm_protocol::machine::{HostMode, MemorySize, VcpuCount};
use std::{fs::File, io, sync::Arc, time::Instant};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Why a machine cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// /dev/kvm.
    #[error("cannot open /dev/kvm: {0}; run as root or as a member of the group that owns it")]
    OpenKvm(kvm_ioctls::Error),
    /// No vendor module.
    #[error(transparent)]
    HostMode(#[from] host_mode::UnknownHostMode),
    /// A KVM call failed.
    #[error("{call} failed: {source}")]
    Kvm {
        /// The ioctl.
        call: &'static str,
        /// Why.
        source: kvm_ioctls::Error,
    },
    /// CPUID table.
    #[error("this host's CPUID has more entries than KVM takes back")]
    Cpuid,
    /// A host resource.
    #[error("{what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Memory.
    #[error(transparent)]
    Memory(#[from] memory::MemoryError),
    /// Command line.
    #[error(transparent)]
    Cmdline(#[from] cmdline::CmdlineError),
    /// Kernel.
    #[error(transparent)]
    Boot(#[from] boot::BootError),
    /// Registers.
    #[error(transparent)]
    Registers(#[from] registers::RegistersError),
    /// A device asks for what virtio does not have.
    #[error(transparent)]
    QueueLimit(#[from] QueueLimitError),
    /// More devices than interrupt lines.
    #[error("{0} virtio devices do not fit the {max} interrupt lines there are", max = layout::LAST_GSI - layout::VIRTIO_GSI + 1)]
    TooManyDevices(usize),
}

impl MachineError {
    /// True when another configuration would work on this host; false when the host is at fault.
    #[must_use]
    pub fn is_bad_config(&self) -> bool {
        matches!(self, Self::Cmdline(_) | Self::Boot(_) | Self::TooManyDevices(_) | Self::Memory(_))
    }
}

fn kvm(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> MachineError {
    move |source| MachineError::Kvm { call, source }
}

fn host(what: &'static str) -> impl FnOnce(io::Error) -> MachineError {
    move |source| MachineError::Host { what, source }
}

fn eventfd() -> Result<EventFd, MachineError> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(host("cannot create an eventfd"))
}

/// What a machine is built from.
#[derive(Debug)]
pub struct MachineParts {
    /// When the process started, for boot times.
    pub process_start: Instant,
    /// vCPUs.
    pub vcpus: VcpuCount,
    /// Guest memory.
    pub memory: MemorySize,
    /// An ELF vmlinux.
    pub kernel: File,
    /// Appended to the kernel command line.
    pub cmdline_extra: String,
    /// Console log and its limit in bytes.
    pub console: (File, u64),
    /// virtio devices in window order.
    pub devices: Vec<Box<dyn VirtioDevice>>,
}

/// A machine whose vCPUs wait at the gate.
#[derive(Debug)]
pub struct Machine {
    // Field order is drop order: threads hold vCPUs, the VM holds memslots into `memory`.
    vcpus: Vec<VcpuThread>,
    board: Arc<Board>,
    shared: Arc<Shared>,
    queue_events: Vec<Vec<EventFd>>,
    #[expect(dead_code, reason = "keeps the VM alive for as long as its vCPUs and irqfds")]
    vm: VmFd,
    #[expect(dead_code, reason = "backs the VM's memslots")]
    memory: Arc<GuestMemory>,
}

impl Machine {
    /// Builds a machine that is about to execute its kernel's first instruction.
    ///
    /// # Errors
    /// See [`MachineError`].
    pub fn boot(mut parts: MachineParts) -> Result<Self, MachineError> {
        let mode = host_mode::detect()?;
        let kvm_file = Kvm::new().map_err(MachineError::OpenKvm)?;
        let vm = kvm_file.create_vm().map_err(kvm("KVM_CREATE_VM"))?;
        let memory = Arc::new(memory::allocate(parts.memory)?);
        memory::register(&vm, &memory)?;
        vm.set_tss_address(layout::KVM_TSS).map_err(kvm("KVM_SET_TSS_ADDR"))?;
        vm.create_irq_chip().map_err(kvm("KVM_CREATE_IRQCHIP"))?;

        let line = cmdline::build(mode, parts.devices.len(), &parts.cmdline_extra)?;
        let entry = boot::load(&memory, parts.memory, parts.vcpus, &mut parts.kernel, &line)?;
        let fds = create_vcpus(&kvm_file, &vm, parts.vcpus)?;
        registers::set_boot_state(&fds[0], entry)?;

        Self::assemble(mode, vm, memory, fds, parts)
    }

    fn assemble(
        mode: HostMode,
        vm: VmFd,
        memory: Arc<GuestMemory>,
        fds: Vec<VcpuFd>,
        parts: MachineParts,
    ) -> Result<Self, MachineError> {
        let counters = fds
            .iter()
            .map(VcpuCounters::open)
            .collect::<io::Result<_>>()
            .map_err(host("cannot open KVM statistics"))?;
        let shared = Arc::new(Shared::new(parts.process_start, mode, counters, eventfd()?));
        let (log, limit) = parts.console;
        let log = BoundedLog::new(log, limit).map_err(host("cannot read the console log's size"))?;
        let serial_line = eventfd()?;
        vm.register_irqfd(&serial_line, layout::SERIAL_GSI).map_err(kvm("KVM_IRQFD"))?;
        let serial = SerialConsole::new(serial_line, log);

        let (transports, queue_events) = wire_virtio(&vm, &memory, parts.devices)?;
        let board = Arc::new(Board::new(Arc::clone(&shared), serial, transports));

        vcpu::install_kick_handler().map_err(host("cannot install the vCPU kick handler"))?;
        let vcpus = fds
            .into_iter()
            .enumerate()
            .map(|(index, fd)| {
                let context = VcpuContext {
                    index,
                    shared: Arc::clone(&shared),
                    devices: Arc::clone(&board) as Arc<dyn GuestAccess>,
                    memory: Arc::clone(&memory),
                };
                VcpuThread::start(fd, context)
            })
            .collect::<io::Result<_>>()
            .map_err(host("cannot start a vCPU thread"))?;
        Ok(Self { vcpus, board, shared, queue_events, vm, memory })
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

    /// Lets the vCPUs run.
    pub fn resume(&self) {
        self.shared.gate.open();
    }

    /// Stops all vCPUs between two instructions; returns when they stand.
    pub fn pause(&self) {
        self.shared.gate.close(|| self.kick());
    }

    /// Ends the vCPU threads; returns when none is in the guest.
    pub fn end(&self) {
        self.shared.gate.end(|| self.kick());
    }

    fn kick(&self) {
        self.vcpus.iter().for_each(VcpuThread::kick);
    }
}

fn create_vcpus(kvm_file: &Kvm, vm: &VmFd, count: VcpuCount) -> Result<Vec<VcpuFd>, MachineError> {
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
