//! Snapshots kept as bytes (`vmm/tests/golden`): each format version that is read, as a build of its time wrote it, of a
//! bare machine without Linux. What is written today must be the newest one's bytes, and all that is pinned must still
//! come to life in real KVM.
//!
//! The golden machine was made on one processor and has to continue on any. So what belongs to the processor (CPUID, MSRs,
//! XCRs, XSAVE area) and the host mode are the present host's in the test that runs it; a real restore refuses another
//! host (`host.mode` and `host.cpu` of the manifest). All else comes from the golden bytes: general, special and debug
//! registers, local APIC, interrupt controllers, clock, UART, virtio devices, memory map and memory.
//!
//! `UPDATE_GOLDEN=1 cargo test -p sandboxvm-vmm the_golden_state` makes the files again (with KVM). That is right after
//! [`format::VERSION`] was raised, and only then: snapshots that people have are of the old version.

use super::{
    MachineState, SnapshotState,
    format::{self, FormatError},
    memory_map::MemoryMap,
};
use crate::{
    arch::x86_64::{host_mode, layout},
    devices::{
        GuestAccess,
        board::lock,
        console::SerialState,
        virtio::{
            balloon::{self, BalloonDevice},
            block::BlockDevice,
            device::VirtioDevice,
            rng::RngDevice,
            transport::{QueueRegisters, QueueState, TransportState},
            vsock::{VsockDevice, VsockOptions},
        },
    },
    machine::{self, BootSource, Machine, MachineParts, context::MachineContext},
    memory,
    memory::{
        GuestMemory,
        pages::{PAGE, page_count},
        released::ReleasedPages,
    },
    timeline::StartTimes,
};
use sandboxvm_protocol::{
    ids::GuestCid,
    machine::{MemorySize, VcpuCount},
    vmm::ExitReason,
};
use std::{
    fmt::Write as _,
    fs::{self, File},
    os::unix::{fs::FileExt, net::UnixListener},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use vm_memory::{Bytes, GuestAddress};

const CODE: u64 = layout::HIGH_BASE;
/// What the guest has in memory, and the byte it waits for.
const DATA: u64 = CODE + PAGE;
const GO_ON: u64 = DATA + 1;
/// The entropy device's queue, and where it puts its bytes.
const QUEUE: u64 = CODE + 2 * PAGE;
const ENTROPY: u64 = CODE + 3 * PAGE;
/// Position of the entropy device among the virtio devices of every machine: after the disks.
const RNG: usize = 2;
/// The balloon's queue of free pages, and one that the guest gives back.
const REPORTS: u64 = QUEUE + 0x400;
const FREE: u64 = CODE + 4 * PAGE;
/// Position of the balloon: the last, from version 2 on.
const BALLOON: usize = 4;
/// Where the rings are behind the descriptors.
const AVAILABLE: u64 = 0x80;
const USED: u64 = 0x100;

/// The guest. It puts a byte in a register, one in memory and one in the UART's scratch register, says `B`, and waits in
/// a loop, where the snapshot is taken. Once it continues, it says those three bytes and resets the machine.
#[rustfmt::skip]
const GUEST: &[u8] = &[
    0xb3, b'R',                                                 // mov bl, 'R'
    0xc6, 0x04, 0x25, 0x00, 0x10, 0x10, 0x00, b'M',             // mov byte [DATA], 'M'
    0x66, 0xba, 0xff, 0x03, 0xb0, b'S', 0xee,                   // mov dx, 0x3ff; mov al, 'S'; out dx, al
    0x66, 0xba, 0xf8, 0x03, 0xb0, b'B', 0xee,                   // mov dx, 0x3f8; mov al, 'B'; out dx, al
    0x80, 0x3c, 0x25, 0x01, 0x10, 0x10, 0x00, 0x00, 0x74, 0xf6, // wait: cmp byte [GO_ON], 0; je wait
    0x88, 0xd8, 0xee,                                           // mov al, bl; out dx, al
    0x8a, 0x04, 0x25, 0x00, 0x10, 0x10, 0x00, 0xee,             // mov al, [DATA]; out dx, al
    0x66, 0xba, 0xff, 0x03, 0xec,                               // mov dx, 0x3ff; in al, dx
    0x66, 0xba, 0xf8, 0x03, 0xee,                               // mov dx, 0x3f8; out dx, al
    0xb0, 0xfe, 0xe6, 0x64,                                     // mov al, 0xfe; out 0x64, al
    0xf4, 0xeb, 0xfd,                                           // halt: hlt; jmp halt
];

/// Pages that the golden memory holds: the GDT, page tables, code, data and queue. The boot tables that nothing reads
/// any more, a seed among them, are left out.
const PAGES: [std::ops::Range<u64>; 3] = [0..1, 9..12, CODE / PAGE..CODE / PAGE + 3];

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn pinned(version: u32) -> (Vec<u8>, SnapshotState) {
    let bytes =
        fs::read(golden(&format!("state-v{version}.bin"))).expect("the golden state file is kept in the repository");
    let state = format::decode(&bytes).unwrap_or_else(|error| panic!("{error}\n{CHANGED}"));
    (bytes, state)
}

const CHANGED: &str = "What a state file holds has changed: snapshots that people have would be misread. Either undo \
    it, or raise VERSION in vmm/src/snapshot/format.rs, say so in docs/snapshot-format.md and CHANGELOG.md, and make \
    the golden files again with UPDATE_GOLDEN=1";

fn kvm_is_wanted() -> bool {
    let wanted = std::env::var_os("SANDBOXVM_NO_KVM").is_none_or(|value| value != "1");
    if !wanted {
        eprintln!("left out: SANDBOXVM_NO_KVM=1");
    }
    wanted
}

/// A machine's files.
struct Rig {
    memory: Arc<GuestMemory>,
    console: File,
    _vsock: tempfile::TempDir,
}

impl Rig {
    /// As every machine is built, with small disks.
    fn build(with_balloon: bool, make: impl FnOnce(MachineParts) -> Machine) -> (Self, Machine) {
        let vsock = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(vsock.path().join("vsock")).unwrap();
        let disk = || {
            let file = tempfile::tempfile().unwrap();
            file.set_len(1 << 20).unwrap();
            file
        };
        let memory = Arc::new(memory::allocate(size()).unwrap());
        let released = Arc::new(ReleasedPages::none_of(page_count(&memory)));
        let mut devices: Vec<Box<dyn VirtioDevice>> = vec![
            Box::new(BlockDevice::read_only(disk()).unwrap()),
            Box::new(BlockDevice::writable(disk(), vec![tempfile::tempfile().unwrap()]).unwrap()),
            Box::new(RngDevice::new().unwrap()),
            Box::new(VsockDevice::new(VsockOptions::unlimited(GuestCid::DEFAULT), listener).unwrap()),
        ];
        if with_balloon {
            devices.push(Box::new(BalloonDevice::new(Arc::clone(&released)).unwrap()));
        }
        let kvm = machine::open_kvm().expect("KVM; SANDBOXVM_NO_KVM=1 leaves this test out");
        let console = tempfile::tempfile().unwrap();
        let parts = MachineParts {
            start_times: StartTimes::of_fork(),
            vm: machine::create_vm(&kvm).unwrap(),
            console: console.try_clone().unwrap(),
            context: MachineContext {
                kvm,
                host_mode: host_mode::detect().unwrap(),
                memory: Arc::clone(&memory),
                memory_size: size(),
                released: Arc::clone(&released),
                console_limit: 1 << 20,
            },
            devices,
        };
        (Self { memory, console, _vsock: vsock }, make(parts))
    }

    /// About to execute its first instruction.
    fn boot() -> (Self, Machine) {
        let kernel = tempfile::tempfile().unwrap();
        kernel.write_all_at(&elf(), 0).unwrap();
        let boot = BootSource { vcpus: VcpuCount::ONE, kernel, cmdline_extra: String::new() };
        Self::build(true, |parts| Machine::boot(parts, boot).unwrap())
    }

    /// Sets a device up as a driver does that uses one queue, at `place`, with one descriptor for all requests: `length`
    /// bytes at `buffer`, for the device to write.
    fn set_up(&self, machine: &Machine, device: usize, features: u32, queue: usize, place: u64, buffer: (u64, u32)) {
        let window = layout::VIRTIO_MMIO + device as u64 * layout::VIRTIO_MMIO_SIZE;
        let write = |register: u64, value: u32| {
            machine.board().mmio_write(window + register, &value.to_le_bytes()).unwrap();
        };
        let low = |address: u64| u32::try_from(address).unwrap();
        for (register, value) in [
            // Status: ACKNOWLEDGE, DRIVER; DriverFeatures: the low half, then VERSION_1 (bit 32); Status: FEATURES_OK.
            (0x70, 1),
            (0x70, 3),
            (0x24, 0),
            (0x20, features),
            (0x24, 1),
            (0x20, 1),
            (0x70, 11),
            // The queue: four descriptors, and where its parts are; ready. Status: DRIVER_OK.
            (0x30, u32::try_from(queue).unwrap()),
            (0x38, 4),
            (0x80, low(place)),
            (0x90, low(place + AVAILABLE)),
            (0xa0, low(place + USED)),
            (0x44, 1),
            (0x70, 15),
        ] {
            write(register, value);
        }
        let write_only: u16 = 2;
        self.memory.write_obj(buffer.0, GuestAddress(place)).unwrap();
        self.memory.write_obj(buffer.1, GuestAddress(place + 8)).unwrap();
        self.memory.write_obj(write_only, GuestAddress(place + 12)).unwrap();
    }

    /// Has the balloon take report `number`, the first being 1. Returns what the page reads as then, having been 7, and
    /// how many reports it says to have taken.
    fn give_back(&self, machine: &Machine, number: u16) -> (u8, u16) {
        self.memory.write_obj(7_u8, GuestAddress(FREE)).unwrap();
        self.memory.write_obj(number, GuestAddress(REPORTS + AVAILABLE + 2)).unwrap();
        lock(&machine.board().virtio()[BALLOON]).queue_notified(balloon::REPORTING);
        (
            self.memory.read_obj(GuestAddress(FREE)).unwrap(),
            self.memory.read_obj(GuestAddress(REPORTS + USED + 2)).unwrap(),
        )
    }

    /// Has the entropy device serve request `number`, the first being 1. Returns what it gave, and how many requests
    /// it says to have served.
    fn draw(&self, machine: &Machine, number: u16) -> ([u8; 16], u16) {
        self.memory.write_obj(number, GuestAddress(QUEUE + AVAILABLE + 2)).unwrap();
        lock(&machine.board().virtio()[RNG]).queue_notified(0);
        (
            self.memory.read_obj(GuestAddress(ENTROPY)).unwrap(),
            self.memory.read_obj(GuestAddress(QUEUE + USED + 2)).unwrap(),
        )
    }

    fn said(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.console.metadata().unwrap().len()).unwrap()];
        self.console.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }
}

fn size() -> MemorySize {
    MemorySize::try_from(MemorySize::MIN).unwrap()
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} does not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The guest as an ELF file of one segment.
fn elf() -> Vec<u8> {
    const HEADERS: u64 = 64 + 56;
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    for word in [CODE, 64, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    bytes.extend([1, 0, 0, 0, 7, 0, 0, 0]);
    let length = GUEST.len() as u64;
    for word in [HEADERS, CODE, CODE, length, length, PAGE] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(GUEST);
    bytes
}

/// What a state file says, in words, but for KVM's own structures: those are stored as they are in memory, differ in size
/// from each other, and are asserted in `format.rs`. A field that is added, or goes, does not compile here.
fn in_words(state: &SnapshotState) -> String {
    let SnapshotState { memory_size, vcpu_count, memory, machine } = state;
    let MachineState { host_mode, vcpus, chipset: _, serial, devices } = machine;
    let SerialState { divisor, registers } = serial;
    let mut text = format!(
        "memory_size {}\nvcpu_count {vcpu_count}\nmemory {:?}\nhost_mode {host_mode}\nvcpus {}\n\
         serial divisor {divisor:x?} registers {registers:x?}\n",
        memory_size.bytes(),
        memory.runs(),
        vcpus.len()
    );
    for device in devices {
        let TransportState {
            device_type,
            status,
            device_features_sel,
            driver_features_sel,
            driver_features,
            queue_sel,
            interrupt_status,
            config_generation,
            queues,
            device,
        } = device;
        writeln!(
            text,
            "virtio {device_type}: status {status:#x} features_sel {device_features_sel} {driver_features_sel} \
             features {driver_features:#x} queue_sel {queue_sel} interrupt {interrupt_status} \
             generation {config_generation} own {device:x?}"
        )
        .unwrap();
        for QueueState { registers, next_available, next_used } in queues {
            let QueueRegisters { size, ready, descriptors, available, used } = registers;
            writeln!(
                text,
                "  queue: size {size} ready {ready} descriptors {descriptors:#x} available {available:#x} used \
                 {used:#x} next {next_available} {next_used}"
            )
            .unwrap();
        }
    }
    text
}

/// Memory as text: a line per page, its number and its bytes without the zeros at the end.
fn memory_text(memory: &GuestMemory) -> String {
    let mut text = String::new();
    for page in PAGES.into_iter().flatten() {
        let mut bytes = [0; 4096];
        memory.read_slice(&mut bytes, GuestAddress(page * PAGE)).unwrap();
        let used = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        write!(text, "{page:#x} ").unwrap();
        bytes[..used].iter().for_each(|byte| write!(text, "{byte:02x}").unwrap());
        text.push('\n');
    }
    text
}

/// The golden memory as a snapshot's memory file.
fn memory_file(version: u32) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(size().bytes()).unwrap();
    let text = fs::read_to_string(golden(&format!("memory-v{version}.txt")))
        .expect("the golden memory is kept in the repository");
    for line in text.lines() {
        let (page, hex) = line.split_once(' ').unwrap();
        let page = u64::from_str_radix(page.trim_start_matches("0x"), 16).unwrap();
        let bytes: Vec<u8> = hex
            .as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect();
        file.write_all_at(&bytes, page * PAGE).unwrap();
    }
    file
}

/// Runs the guest to its loop and keeps it as the golden files.
fn make_golden() {
    let (rig, machine) = Rig::boot();
    rig.set_up(&machine, RNG, 0, 0, QUEUE, (ENTROPY, 16));
    let (entropy, served) = rig.draw(&machine, 1);
    assert!(entropy != [0; 16] && served == 1);
    rig.set_up(&machine, BALLOON, 1 << 5, balloon::REPORTING, REPORTS, (FREE, 4096));
    assert_eq!(rig.give_back(&machine, 1), (0, 1));
    // The page directory beyond the first 2 MiB, to keep the file small: the guest does not go there.
    rig.memory.write_slice(&[0; 4088], GuestAddress(layout::PAGE_TABLES.0 + 0x2008)).unwrap();
    machine.resume();
    eventually("the guest's start", || rig.said() == b"B");
    machine.pause();
    let state = SnapshotState {
        memory_size: size(),
        vcpu_count: VcpuCount::ONE,
        memory: MemoryMap::default().overlaid(&PAGES, 0),
        machine: machine.save().unwrap(),
    };
    fs::create_dir_all(golden("")).unwrap();
    let version = format::VERSION;
    fs::write(golden(&format!("state-v{version}.bin")), format::encode(&state).unwrap()).unwrap();
    fs::write(golden(&format!("state-v{version}.txt")), in_words(&state)).unwrap();
    fs::write(golden(&format!("memory-v{version}.txt")), memory_text(&rig.memory)).unwrap();
    machine.end();
}

#[test]
fn the_golden_state_is_read_and_written_as_it_was() {
    if std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1") {
        make_golden();
    }
    assert_eq!(format::VERSION, 2, "golden files of the new version belong beside those of the old; {CHANGED}");
    for version in format::OLDEST_VERSION..=format::VERSION {
        let (bytes, state) = pinned(version);
        let written = format::encode(&state).unwrap();
        // The older ones' bodies are the same; what is written of them is of the newest version.
        let from = if version == format::VERSION { 0 } else { format::HEADER_LEN };
        assert!(written[from..] == bytes[from..], "{CHANGED}");
        let words = fs::read_to_string(golden(&format!("state-v{version}.txt"))).unwrap();
        assert_eq!(in_words(&state), words, "{CHANGED}");
    }
}

#[test]
fn golden_machine_continues_where_it_stood() {
    if !kvm_is_wanted() {
        return;
    }
    (format::OLDEST_VERSION..=format::VERSION).for_each(continues);
}

fn continues(version: u32) {
    let (_, mut state) = pinned(version);
    let has_balloon = state.machine.devices.len() > BALLOON;
    assert_eq!(has_balloon, version > 1);
    // See the module: what belongs to the processor is this one's, as a machine that boots here has it.
    let (_rig, here) = Rig::boot();
    let mut here = {
        let saved = here.save().unwrap();
        here.end();
        saved
    };
    state.machine.host_mode = here.host_mode;
    state.machine.vcpus[0].take_processor_of(here.vcpus.remove(0));

    let files = [Arc::new(memory_file(version))];
    let (rig, machine) = Rig::build(has_balloon, |parts| {
        state.memory.map_over(&parts.context.memory, &files).unwrap();
        Machine::restore(parts, &state.machine).unwrap()
    });
    // All is as it was saved, but for the vsock device, which tells its driver that connections are gone.
    let restored = machine.save().unwrap();
    assert_eq!(restored.serial, state.machine.serial);
    assert_eq!(restored.devices[..=RNG], state.machine.devices[..=RNG]);
    assert_eq!(state.machine.devices[RNG].queues[0].next_available, 1, "a machine whose devices did something");
    // The queue continues with its second request.
    let (entropy, served) = rig.draw(&machine, 2);
    assert_eq!(served, 2);
    assert_ne!(entropy, [0; 16]);
    if has_balloon {
        assert_eq!(restored.devices[BALLOON], state.machine.devices[BALLOON]);
        // Nothing is mapped there: the page is zero again.
        assert_eq!(rig.give_back(&machine, 2), (0, 2));
    }

    rig.memory.write_obj(1_u8, GuestAddress(GO_ON)).unwrap();
    machine.resume();
    eventually("the guest's end", || machine.shared().reason().is_some());
    // Its register, its memory, its UART's register; not `B`, which a guest says that boots.
    assert_eq!(String::from_utf8(rig.said()).unwrap(), "RMS", "{:?}", machine.shared().reason());
    assert_eq!(machine.shared().reason(), Some(ExitReason::GuestReset));
    machine.end();
    // The snapshot's own file is as it was.
    let mut untouched = [9];
    files[0].read_exact_at(&mut untouched, GO_ON).unwrap();
    assert_eq!(untouched, [0]);
}

#[test]
fn golden_state_of_another_version_is_refused_with_what_to_do() {
    let (bytes, _) = pinned(format::VERSION);
    let refused = |version: u32| {
        let mut bytes = bytes.clone();
        bytes[8..12].copy_from_slice(&version.to_le_bytes());
        let header = crc32fast::hash(&bytes[..20]);
        bytes[20..24].copy_from_slice(&header.to_le_bytes());
        format::decode(&bytes).unwrap_err()
    };
    let older = refused(0);
    assert!(matches!(older, FormatError::Older(0)));
    assert!(older.to_string().contains("older") && older.to_string().contains("make it again"), "{older}");
    let newer = refused(3);
    assert!(matches!(newer, FormatError::Newer(3)));
    assert!(newer.to_string().contains("newer") && newer.to_string().contains("upgrade"), "{newer}");
}
