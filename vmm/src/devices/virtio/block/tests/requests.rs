//! Requests through a whole device: transport, queue, request, disk.

use super::super::{BLOCK_SIZE, BlockDevice, BlockError, DiskPace, REQUESTS_PER_WAKE, pace::Cost};
use crate::devices::virtio::device::VirtioDevice;
use crate::devices::virtio::mock_driver::{BUFFERS, HIGH_START, LOW_END, MockDriver, Part};
use sandboxvm_protocol::{machine::DiskLimits, vmm::SLOT_CAPACITY};
use std::{fs::File, io::Write, os::unix::fs::FileExt, time::Instant};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

const HEADER: u64 = BUFFERS;
const STATUS: u64 = BUFFERS + 0x100;
const DATA: u64 = HIGH_START;

/// What no request writes to a status byte.
const UNTOUCHED: u8 = 0xa5;

/// Sixteen blocks in which every sector says its number.
fn image() -> File {
    let mut file = tempfile::tempfile().unwrap();
    for sector in 0..128_u32 {
        file.write_all(&sector.to_le_bytes().repeat(128)).unwrap();
    }
    file
}

fn sector(number: u32) -> Vec<u8> {
    number.to_le_bytes().repeat(128)
}

fn read_only() -> MockDriver {
    MockDriver::live(Box::new(BlockDevice::read_only(image()).unwrap()))
}

fn writable() -> MockDriver {
    let device = BlockDevice::writable(image(), vec![tempfile::tempfile().unwrap()]).unwrap();
    MockDriver::live(Box::new(device))
}

/// One request with the given data parts; returns the status byte.
fn request(driver: &mut MockDriver, kind: u32, sector: u64, data: &[Part]) -> u8 {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    driver.fill(HEADER, &header);
    driver.fill(STATUS, &[UNTOUCHED]);
    let mut parts = vec![Part::Readable(HEADER, 16)];
    parts.extend(data);
    parts.push(Part::Writable(STATUS, 1));
    let used = driver.used_index(0);
    driver.set_chain(0, 0, &parts);
    driver.publish(0, 0);
    driver.kick(0);
    assert!(!driver.needs_reset(), "{:?}", driver.transport.last_failure());
    assert_eq!(driver.used_index(0), used.wrapping_add(1));
    assert_eq!(driver.last_used(0).0, 0);
    driver.bytes(STATUS, 1)[0]
}

fn read_sectors(driver: &mut MockDriver, sector: u64, count: u32) -> Vec<u8> {
    assert_eq!(request(driver, VIRTIO_BLK_T_IN, sector, &[Part::Writable(DATA, count * 512)]), OK);
    driver.bytes(DATA, count as usize * 512)
}

fn write_sectors(driver: &mut MockDriver, sector: u64, bytes: &[u8]) -> u8 {
    driver.fill(DATA, bytes);
    request(driver, VIRTIO_BLK_T_OUT, sector, &[Part::Readable(DATA, bytes.len() as u32)])
}

fn clear(driver: &mut MockDriver, kind: u32, ranges: &[(u64, u32, u32)]) -> u8 {
    let mut bytes = Vec::new();
    for (sector, count, flags) in ranges {
        bytes.extend(sector.to_le_bytes());
        bytes.extend(count.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
    }
    driver.fill(DATA, &bytes);
    request(driver, kind, 0, &[Part::Readable(DATA, bytes.len() as u32)])
}

#[test]
fn reads_go_where_the_driver_says_in_pieces_across_memory_regions() {
    let mut driver = read_only();
    assert_eq!(read_sectors(&mut driver, 5, 1), sector(5));
    // A buffer of odd pieces, one of which ends with the first memory region.
    let parts = [Part::Writable(BUFFERS + 0x1001, 511), Part::Writable(LOW_END - 1, 1), Part::Writable(DATA + 3, 512)];
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 126, &parts), OK);
    assert_eq!(driver.bytes(BUFFERS + 0x1001, 511), sector(126)[..511]);
    assert_eq!(driver.bytes(LOW_END - 1, 1), sector(126)[511..]);
    assert_eq!(driver.bytes(DATA + 3, 512), sector(127));
    assert_eq!(driver.last_used(0), (0, 1024 + 1));
}

fn slot(file: &File) -> MockDriver {
    MockDriver::live(Box::new(BlockDevice::slot(file.try_clone().unwrap()).unwrap()))
}

#[test]
fn a_slot_reads_as_its_file_and_then_as_zeros() {
    // Half of sector 3 is behind the end of the file.
    let file = image();
    file.set_len(3 * 512 + 256).unwrap();
    let mut driver = slot(&file);
    driver.fill(DATA, &[0xee; 4 * 512]);
    let expected = [sector(2), sector(3)[..256].to_vec(), vec![0; 256], vec![0; 1024]].concat();
    assert_eq!(read_sectors(&mut driver, 2, 4), expected);
    let sectors = SLOT_CAPACITY / 512;
    driver.fill(DATA, &[0xee; 512]);
    assert_eq!(read_sectors(&mut driver, sectors - 1, 1), [0; 512]);
    for (first, count) in [(sectors, 1), (sectors - 1, 2), (u64::MAX / 512, 2)] {
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, first, &[Part::Writable(DATA, count * 512)]), IOERR);
    }
    // A file that became shorter meanwhile is an error, and not zeros.
    file.set_len(512).unwrap();
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 2, &[Part::Writable(DATA, 512)]), IOERR);
}

#[test]
fn a_slot_is_never_written() {
    let file = image();
    let mut driver = slot(&file);
    assert_eq!(write_sectors(&mut driver, 0, &[0xee; 512]), IOERR);
    assert_eq!(write_sectors(&mut driver, 4096, &[0xee; 512]), IOERR);
    assert_eq!(clear(&mut driver, VIRTIO_BLK_T_DISCARD, &[(0, 8, 0)]), UNSUPP);
    assert_eq!(clear(&mut driver, VIRTIO_BLK_T_WRITE_ZEROES, &[(0, 8, 0)]), UNSUPP);
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_FLUSH, 0, &[]), UNSUPP);
    assert_eq!(file.metadata().unwrap().len(), 128 * 512);
    assert_eq!(read_sectors(&mut driver, 0, 128), (0..128).flat_map(sector).collect::<Vec<_>>());
}

#[test]
fn slots_look_the_same_whatever_their_file_is() {
    let empty = tempfile::tempfile().unwrap();
    let config = |device: &BlockDevice| {
        let mut config = [0; 64];
        device.read_config(0, &mut config);
        (config, device.offered_features())
    };
    let (empty, full) = (BlockDevice::slot(empty).unwrap(), BlockDevice::slot(image()).unwrap());
    assert_eq!(config(&empty), config(&full));
    let long = tempfile::tempfile().unwrap();
    long.set_len(SLOT_CAPACITY + 1).unwrap();
    assert!(matches!(BlockDevice::slot(long), Err(BlockError::TooLong(_))));
}

#[test]
fn what_lies_outside_the_disk_is_an_io_error() {
    let mut driver = writable();
    for (first, count) in [(127, 2), (128, 1), (u64::MAX, 1), (u64::MAX / 512, 2), (1 << 55, 1)] {
        for part in [Part::Writable(DATA, count * 512), Part::Readable(DATA, count * 512)] {
            let kind = if matches!(part, Part::Writable(..)) { VIRTIO_BLK_T_IN } else { VIRTIO_BLK_T_OUT };
            assert_eq!(request(&mut driver, kind, first, &[part]), IOERR, "{first} {count} {part:?}");
        }
        assert_eq!(clear(&mut driver, VIRTIO_BLK_T_DISCARD, &[(first, count, 0)]), IOERR);
        assert_eq!(clear(&mut driver, VIRTIO_BLK_T_WRITE_ZEROES, &[(first, count, 0)]), IOERR);
    }
    // Not whole sectors.
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 0, &[Part::Writable(DATA, 511)]), IOERR);
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, 0, &[Part::Readable(DATA, 1)]), IOERR);
    assert_eq!(read_sectors(&mut driver, 0, 128)[127 * 512..], sector(127));
}

#[test]
fn a_request_beyond_the_announced_size_is_an_io_error() {
    let big = tempfile::tempfile().unwrap();
    big.set_len(64 << 20).unwrap();
    let mut driver = MockDriver::live(Box::new(BlockDevice::read_only(big).unwrap()));
    let parts = |count: usize| vec![Part::Writable(DATA, 64 * 1024); count];
    // 62 segments of 64 KiB, as size_max and seg_max say; all of them in the same memory.
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 0, &parts(62)), OK);
    let one_more = [parts(61), vec![Part::Writable(DATA, 64 * 1024 + 512)]].concat();
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 0, &one_more), IOERR);
}

#[test]
fn a_read_only_disk_refuses_to_change() {
    let mut driver = read_only();
    assert_eq!(write_sectors(&mut driver, 0, &[1; 512]), IOERR);
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_FLUSH, 0, &[]), UNSUPP);
    assert_eq!(clear(&mut driver, VIRTIO_BLK_T_DISCARD, &[(0, 8, 0)]), UNSUPP);
    assert_eq!(clear(&mut driver, VIRTIO_BLK_T_WRITE_ZEROES, &[(0, 8, 0)]), UNSUPP);
    assert_eq!(read_sectors(&mut driver, 0, 1), sector(0));
    let features = driver.offered_features();
    assert_ne!(features & 1 << VIRTIO_BLK_F_RO, 0);
    for absent in [VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES] {
        assert_eq!(features & 1 << absent, 0);
    }
}

#[test]
fn a_writable_disk_reads_back_what_was_written() {
    let mut driver = writable();
    let news: Vec<u8> = (0..3 * 512_u32).map(|i| (i % 251) as u8).collect();
    assert_eq!(write_sectors(&mut driver, 7, &news), OK);
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_FLUSH, 0, &[]), OK);
    assert_eq!(read_sectors(&mut driver, 6, 5), [sector(6), news, sector(10)].concat());
}

#[test]
fn discard_and_write_zeroes_do_what_their_flags_allow() {
    let mut driver = writable();
    assert_eq!(clear(&mut driver, VIRTIO_BLK_T_WRITE_ZEROES, &[(1, 2, 0), (20, 9, 1)]), OK);
    assert_eq!(read_sectors(&mut driver, 0, 4), [sector(0), vec![0; 1024], sector(3)].concat());
    assert_eq!(read_sectors(&mut driver, 19, 11), [sector(19), vec![0; 9 * 512], sector(29)].concat());
    // Whole blocks are discarded, the sectors beside them are not.
    assert_eq!(clear(&mut driver, VIRTIO_BLK_T_DISCARD, &[(39, 17, 0)]), OK);
    let kept = [sector(39), vec![0; 16 * 512], sector(56)].concat();
    assert_eq!(read_sectors(&mut driver, 39, 18), kept);
    // The unmap flag means nothing to discard, and no other flag anything to either.
    assert_eq!(clear(&mut driver, VIRTIO_BLK_T_DISCARD, &[(64, 8, 1)]), UNSUPP);
    assert_eq!(clear(&mut driver, VIRTIO_BLK_T_WRITE_ZEROES, &[(64, 8, 2)]), UNSUPP);
    // One bad range and none is touched; too many ranges; none; half of one.
    assert_eq!(clear(&mut driver, VIRTIO_BLK_T_WRITE_ZEROES, &[(64, 8, 0), (127, 2, 0)]), IOERR);
    assert_eq!(clear(&mut driver, VIRTIO_BLK_T_WRITE_ZEROES, &[(64, 1, 0); 17]), IOERR);
    assert_eq!(clear(&mut driver, VIRTIO_BLK_T_WRITE_ZEROES, &[(64, 1, 0); 16]), OK);
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_DISCARD, 0, &[]), IOERR);
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_DISCARD, 0, &[Part::Readable(DATA, 24)]), IOERR);
    assert_eq!(read_sectors(&mut driver, 65, 1), sector(65));
}

#[test]
fn each_kind_of_request_costs_the_operations_that_the_host_carries_out() {
    type Ask = fn(&mut MockDriver);
    let kinds: [(&str, u64, Ask); 4] = [
        ("read", 1, |driver| drop(read_sectors(driver, 0, 8))),
        ("flush", 1, |driver| assert_eq!(request(driver, VIRTIO_BLK_T_FLUSH, 0, &[]), OK)),
        ("unknown", 1, |driver| assert_eq!(request(driver, 99, 0, &[]), UNSUPP)),
        ("three ranges", 3, |driver| {
            let ranges = [(0, 8, 0), (8, 8, 0), (16, 8, 0)];
            assert_eq!(clear(driver, VIRTIO_BLK_T_DISCARD, &ranges), OK);
        }),
    ];
    for (kind, operations, ask) in kinds {
        let pace = DiskPace::default();
        let device = BlockDevice::writable(image(), vec![tempfile::tempfile().unwrap()]).unwrap();
        let mut driver = MockDriver::live(Box::new(device.at_pace(pace.clone())));
        let begin = Instant::now();
        pace.limit(DiskLimits { operations: 10.try_into().ok(), ..DiskLimits::default() });
        ask(&mut driver);
        // Ten more, so that more is owed than the quarter of a second that is free.
        pace.spend(Cost { bytes: 0, operations: 10 });
        let owed = pace.delay().map_or(0.0, |delay| (delay.as_secs_f64() + 0.25) * 10.0 - 10.0);
        let most = f64::from(u32::try_from(operations).unwrap());
        let paid = begin.elapsed().as_secs_f64() * 10.0;
        assert!(owed <= most && owed > most - paid - 0.1, "{kind}: {owed} operations");
    }
}

#[test]
fn the_identifier_is_cut_to_the_buffer() {
    let mut driver = read_only();
    driver.fill(DATA, &[0xff; 24]);
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_GET_ID, 0, &[Part::Writable(DATA, 20)]), OK);
    assert_eq!(driver.bytes(DATA, 21), *b"sandboxvm-image\0\0\0\0\0\xff");
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_GET_ID, 0, &[Part::Writable(DATA + 100, 5)]), OK);
    assert_eq!(driver.bytes(DATA + 100, 6), *b"sandb\0");
}

#[test]
fn an_unknown_request_is_unsupported() {
    let mut driver = writable();
    for kind in [2, 3, 5, 10, 12, 14, 15, 0x8000_0000, u32::MAX] {
        assert_eq!(request(&mut driver, kind, 0, &[Part::Writable(DATA, 512)]), UNSUPP, "{kind}");
    }
}

#[test]
fn a_full_ring_is_served_in_turns_and_interrupts_once_a_turn() {
    let mut driver = read_only();
    driver.fill(HEADER, &[0; 16]);
    for head in 0..32 {
        let first = 2 * head;
        driver.set_chain(0, first, &[Part::Readable(HEADER, 16), Part::Writable(STATUS, 1)]);
    }
    // 64 heads, though only 32 chains: each is offered twice.
    for head in 0..64 {
        driver.publish(0, 2 * (head % 32));
    }
    driver.take_interrupts();
    let more = driver.kick_for(0, 0);
    assert!(more, "the device asks for another turn");
    assert_eq!(driver.used_index(0), u16::try_from(REQUESTS_PER_WAKE).unwrap());
    driver.kick(0);
    assert_eq!(driver.used_index(0), 64);
    assert!((1..=3).contains(&driver.take_interrupts()));
}

#[test]
fn the_driver_is_interrupted_no_more_often_than_it_asked() {
    let mut driver = read_only();
    // used_event (after the available ring) says: not before element 5 is used.
    let used_event = 0x1_4000 + 4 + 2 * 64;
    driver.fill(used_event, &4_u16.to_le_bytes());
    for done in 1..=6 {
        driver.take_interrupts();
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 0, &[Part::Writable(DATA, 512)]), OK);
        assert_eq!(driver.take_interrupts() > 0, done == 5, "request {done}");
    }
    // A driver without event indices gets an interrupt every time.
    let device = Box::new(BlockDevice::read_only(image()).unwrap());
    let mut driver = MockDriver::live_without(device, 1 << VIRTIO_RING_F_EVENT_IDX);
    for _ in 0..3 {
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 0, &[Part::Writable(DATA, 512)]), OK);
        assert_eq!(driver.take_interrupts(), 1);
    }
    driver.kick(0);
    assert_eq!(driver.take_interrupts(), 0, "for nothing");
}

#[test]
fn a_reset_between_two_turns_forgets_the_rest() {
    let mut driver = read_only();
    driver.set_chain(0, 0, &[Part::Readable(HEADER, 16), Part::Writable(STATUS, 1)]);
    for _ in 0..64 {
        driver.publish(0, 0);
    }
    assert!(driver.kick_for(0, 0));
    driver.write(virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS, 0);
    let used = driver.used_index(0);
    assert!(!driver.host_fd_is_readable());
    driver.transport.host_ready();
    driver.kick(0);
    assert_eq!(driver.used_index(0), used);
}

#[test]
fn the_configuration_space_says_how_large_the_disk_is() {
    let driver = writable();
    let mut config = [0xff; 70];
    driver.transport.read(0x100, &mut config);
    assert_eq!(config[..8], 128_u64.to_le_bytes());
    assert_eq!(config[8..12], (64 * 1024_u32).to_le_bytes());
    assert_eq!(config[12..16], 62_u32.to_le_bytes());
    assert_eq!(config[44..48], (BLOCK_SIZE / 512).to_le_bytes());
    assert_eq!(config[60..], [0; 10]);
    for offset in 0..0x1000 {
        let mut byte = [0xff];
        driver.transport.read(0x100 + offset, &mut byte);
        assert_eq!(byte[0], usize::try_from(offset).ok().and_then(|at| config.get(at)).copied().unwrap_or(0));
    }
}

#[test]
fn images_that_cannot_be_disks_are_refused() {
    let empty = tempfile::tempfile().unwrap();
    assert!(matches!(BlockDevice::read_only(empty), Err(BlockError::Empty)));
    let cut = tempfile::tempfile().unwrap();
    cut.write_all_at(&[0; 1000], 0).unwrap();
    assert!(matches!(BlockDevice::read_only(cut), Err(BlockError::Truncated(1000))));
}

#[test]
fn an_image_cut_under_the_guest_is_an_io_error() {
    let file = image();
    let mut driver = MockDriver::live(Box::new(BlockDevice::read_only(file.try_clone().unwrap()).unwrap()));
    file.set_len(4096 + 100).unwrap();
    assert_eq!(read_sectors(&mut driver, 0, 8), (0..8).flat_map(sector).collect::<Vec<_>>());
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 8, &[Part::Writable(DATA, 512)]), IOERR);
}

fn volume(file: &File, read_only: bool) -> MockDriver {
    MockDriver::live(Box::new(BlockDevice::volume(file.try_clone().unwrap(), read_only).unwrap()))
}

#[test]
fn a_volume_is_its_file_and_nothing_behind_it_is_written() {
    let file = image();
    let mut driver = volume(&file, false);
    assert_eq!(write_sectors(&mut driver, 2, &[0xee; 1024]), OK);
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_FLUSH, 0, &[]), OK);
    let mut content = [0; 1024];
    file.read_exact_at(&mut content, 2 * 512).unwrap();
    assert_eq!(content, [0xee; 1024]);
    // The file keeps its length, whatever the driver writes.
    let sectors = SLOT_CAPACITY / 512;
    for (first, count) in [(127, 2), (128, 1), (sectors - 1, 1), (sectors, 1)] {
        assert_eq!(write_sectors(&mut driver, first, &vec![0xee; count * 512]), IOERR, "{first}");
    }
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(clear(&mut driver, kind, &[(0, 8, 0), (127, 2, 0)]), IOERR);
    }
    assert_eq!(file.metadata().unwrap().len(), 128 * 512);
    assert_eq!(read_sectors(&mut driver, 127, 2), [sector(127), vec![0; 512]].concat());
    assert_eq!(read_sectors(&mut driver, 0, 2), [sector(0), sector(1)].concat());
}

#[test]
fn discarded_blocks_of_a_volume_are_holes_of_its_file() {
    use std::os::unix::fs::MetadataExt;
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&vec![0xee; 1 << 20], 0).unwrap();
    file.sync_all().unwrap();
    let before = file.metadata().unwrap().blocks();
    let mut driver = volume(&file, false);
    assert_eq!(clear(&mut driver, VIRTIO_BLK_T_DISCARD, &[(0, 1024, 0), (1500, 0, 0)]), OK);
    assert_eq!(clear(&mut driver, VIRTIO_BLK_T_WRITE_ZEROES, &[(1025, 3, 0)]), OK);
    assert!(file.metadata().unwrap().blocks() <= before / 2 + 8, "no space was returned");
    assert_eq!(read_sectors(&mut driver, 1023, 1), [0; 512]);
    assert_eq!(read_sectors(&mut driver, 1024, 5), [[0xee; 512].as_slice(), &[0; 3 * 512], &[0xee; 512]].concat());
}

#[test]
fn a_volume_to_read_is_never_written() {
    let file = image();
    let mut driver = volume(&file, true);
    assert_eq!(write_sectors(&mut driver, 0, &[0xee; 512]), IOERR);
    assert_eq!(clear(&mut driver, VIRTIO_BLK_T_DISCARD, &[(0, 8, 0)]), UNSUPP);
    assert_eq!(clear(&mut driver, VIRTIO_BLK_T_WRITE_ZEROES, &[(0, 8, 0)]), UNSUPP);
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_FLUSH, 0, &[]), UNSUPP);
    assert_eq!(read_sectors(&mut driver, 0, 128), (0..128).flat_map(sector).collect::<Vec<_>>());
}

#[test]
fn volumes_look_the_same_whatever_their_file_is() {
    let config = |device: &BlockDevice| {
        let mut config = [0; 64];
        device.read_config(0, &mut config);
        (config, device.offered_features())
    };
    for read_only in [false, true] {
        let blank = BlockDevice::volume(tempfile::tempfile().unwrap(), read_only).unwrap();
        assert_eq!(config(&blank), config(&BlockDevice::volume(image(), read_only).unwrap()));
        assert_eq!(blank.offered_features() & (1 << VIRTIO_BLK_F_RO) != 0, read_only);
    }
}
