//! Launch frames and requests that no manager sends: every one is refused, and nothing panics.

use super::*;
use crate::channel::descriptors::ReceivedFds;
use proptest::prelude::*;
use sandboxvm_protocol::{
    ids::GuestCid,
    network::{MacAddress, Mtu},
    vmm::{DiskConfig, FdIndex, MAX_DISKS, NetConfig, VsockConfig},
};
use std::{fs::File, os::unix::net::UnixListener};

fn blank(size: u64) -> OwnedFd {
    let file = tempfile::tempfile().unwrap();
    file.set_len(size).unwrap();
    file.into()
}

/// Files as a manager sends them: an image, a template, a layer, a listener and two more layers.
struct Files {
    fds: ReceivedFds,
    _directory: tempfile::TempDir,
}

const IMAGE: FdIndex = FdIndex(0);
const TEMPLATE: FdIndex = FdIndex(1);
const LAYER: FdIndex = FdIndex(2);
const LISTENER: FdIndex = FdIndex(3);
const TOP: FdIndex = FdIndex(4);
const CHILD_LISTENER: FdIndex = FdIndex(5);

fn files() -> Files {
    let directory = tempfile::tempdir().unwrap();
    let listener = |name: &str| UnixListener::bind(directory.path().join(name)).unwrap().into();
    let fds = vec![blank(1 << 20), blank(1 << 20), blank(0), listener("vsock"), blank(0), listener("child")];
    Files { fds: ReceivedFds::new(fds), _directory: directory }
}

fn image() -> DeviceConfig {
    DeviceConfig::Block(DiskConfig::ReadOnly { image: IMAGE })
}

fn disk() -> DeviceConfig {
    DeviceConfig::Block(DiskConfig::Writable { template: TEMPLATE, layers: vec![LAYER] })
}

fn vsock() -> DeviceConfig {
    DeviceConfig::Vsock(VsockConfig { listener: LISTENER, cid: GuestCid::DEFAULT })
}

fn card() -> DeviceConfig {
    DeviceConfig::Net(NetConfig { mac: MacAddress::GUEST, mtu: Mtu::GUEST })
}

fn types(devices: &[Box<dyn VirtioDevice>]) -> Vec<u32> {
    devices.iter().map(|device| device.device_type().number()).collect()
}

fn released() -> Arc<ReleasedPages> {
    Arc::new(ReleasedPages::none_of(64))
}

#[test]
fn the_order_of_kinds_is_that_of_the_list() {
    let mut files = files();
    let shuffled = [card(), DeviceConfig::Balloon, vsock(), image(), DeviceConfig::Rng, disk()];
    let devices = UnbuiltDevices::take(&shuffled, &mut files.fds).unwrap();
    assert_eq!(devices.largest_file().unwrap(), 1 << 20);
    let (devices, set) = devices.build(&released()).unwrap();
    // Snapshots hold devices in this order, and the address and interrupt of a device follow from it.
    assert_eq!(types(&devices), [2, 2, 4, 19, 5, 1]);
    assert!(set.network_card().is_some());
    assert!(set.disks().push_tops(Vec::new()).is_err(), "one disk can be written");
}

/// What the filter of each kind of thread has for devices: a change here is one of the jail.
#[test]
fn the_system_calls_of_devices_are_these() {
    let sorted = |mut calls: Vec<libc::c_long>| {
        calls.sort_unstable();
        calls.dedup();
        calls
    };
    let DeviceCalls { event_loop, vcpu } = system_calls();
    let vsock = [
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_wait,
        libc::SYS_epoll_pwait,
        libc::SYS_timerfd_settime,
        libc::SYS_recvfrom,
        libc::SYS_sendto,
        libc::SYS_sendmsg,
        libc::SYS_shutdown,
    ];
    assert_eq!(sorted(vcpu), sorted(vsock.to_vec()));
    let more = [
        libc::SYS_accept4,
        libc::SYS_accept,
        libc::SYS_recvmsg,
        libc::SYS_getsockopt,
        libc::SYS_eventfd2,
        libc::SYS_timerfd_create,
        libc::SYS_epoll_create1,
    ];
    assert_eq!(sorted(event_loop), sorted([&vsock[..], &more].concat()));
}

#[test]
fn a_machine_may_lack_every_kind() {
    let mut files = files();
    let (devices, set) = UnbuiltDevices::take(&[], &mut files.fds).unwrap().build(&released()).unwrap();
    assert!(devices.is_empty() && set.network_card().is_none());
    set.disks().push_tops(Vec::new()).unwrap();
    let copy = set.take_for_copy(&[], &mut files.fds).unwrap();
    set.copy(copy).unwrap();
}

#[test]
fn a_second_device_of_a_kind_of_which_there_is_one_is_refused() {
    for twice in [DeviceConfig::Rng, DeviceConfig::Balloon, card()] {
        let refused = UnbuiltDevices::take(&[twice.clone(), twice], &mut files().fds).unwrap_err();
        assert!(matches!(refused, DeviceSetError::TooMany { given: 2, limit: 1, .. }), "{refused}");
    }
    let other = DeviceConfig::Vsock(VsockConfig { listener: CHILD_LISTENER, cid: GuestCid::DEFAULT });
    let refused = UnbuiltDevices::take(&[vsock(), other], &mut files().fds).unwrap_err();
    assert_eq!(refused.to_string(), "a machine has at most 1 Vsock devices, and 2 are given");
    assert_eq!(refused.kind(), RefusalKind::BadRequest);
}

#[test]
fn more_disks_than_a_machine_has_are_refused() {
    let images = |count: u8| -> (Vec<DeviceConfig>, ReceivedFds) {
        let configs = (0..count).map(|n| DeviceConfig::Block(DiskConfig::ReadOnly { image: FdIndex(n) })).collect();
        (configs, ReceivedFds::new((0..count).map(|_| blank(512)).collect()))
    };
    let (configs, mut fds) = images(u8::try_from(MAX_DISKS).unwrap());
    UnbuiltDevices::take(&configs, &mut fds).unwrap();
    let (configs, mut fds) = images(u8::try_from(MAX_DISKS).unwrap() + 1);
    let refused = UnbuiltDevices::take(&configs, &mut fds).unwrap_err();
    assert!(matches!(refused, DeviceSetError::TooMany { .. }), "{refused}");
}

#[test]
fn files_that_did_not_come_or_are_named_twice_are_refused() {
    let absent = DeviceConfig::Block(DiskConfig::ReadOnly { image: FdIndex(200) });
    let layers = DeviceConfig::Block(DiskConfig::Writable { template: TEMPLATE, layers: vec![LAYER, LAYER] });
    let both = DeviceConfig::Vsock(VsockConfig { listener: IMAGE, cid: GuestCid::DEFAULT });
    for devices in [vec![absent], vec![image(), image()], vec![layers], vec![image(), both]] {
        let refused = UnbuiltDevices::take(&devices, &mut files().fds).unwrap_err();
        assert!(matches!(refused, DeviceSetError::Fd(_)), "{devices:?}: {refused}");
        assert_eq!(refused.kind(), RefusalKind::BadRequest);
    }
}

#[test]
fn only_a_device_that_older_builds_did_not_have_may_be_missing_in_a_snapshot() {
    let mut saved = Vec::new();
    for number in [2, 4, 19] {
        saved.push(TransportState {
            device_type: number,
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            interrupt_status: 0,
            config_generation: 0,
            queues: Vec::new(),
            device: Vec::new(),
        });
    }
    let all = [image(), DeviceConfig::Rng, vsock(), DeviceConfig::Balloon];
    let restored = |saved: &[TransportState]| {
        let mut files = files();
        let mut devices = UnbuiltDevices::take(&all, &mut files.fds).unwrap();
        devices.leave_out_newer_than(saved);
        types(&devices.build(&released()).unwrap().0)
    };
    assert_eq!(restored(&saved), [2, 4, 19]);
    // Restoring their states finds that these are of other devices.
    assert_eq!(restored(&saved[..1]), [2, 4, 19]);
    saved[0].device_type = 5;
    assert_eq!(restored(&saved), [2, 4, 19, 5]);
}

/// A machine with one disk of each sort and all other devices, and the files for a copy.
fn machine() -> (DeviceSet, Files) {
    let mut files = files();
    let all = [image(), disk(), DeviceConfig::Rng, vsock(), DeviceConfig::Balloon, card()];
    let (_, set) = UnbuiltDevices::take(&all, &mut files.fds).unwrap().build(&released()).unwrap();
    (set, files)
}

const FOR_COPY: [ChildDevice; 2] = [ChildDevice::Block { top: TOP }, ChildDevice::Vsock { listener: CHILD_LISTENER }];

#[test]
fn a_copy_has_the_devices_of_its_parent_in_whatever_order_its_files_are_named() {
    for given in [FOR_COPY, [FOR_COPY[1].clone(), FOR_COPY[0].clone()]] {
        let (set, mut files) = machine();
        set.disks().push_tops(vec![File::from(blank(0))]).unwrap();
        let copy = set.take_for_copy(&given, &mut files.fds).unwrap();
        let (devices, copy) = set.copy(copy).unwrap().build(&released()).unwrap();
        assert_eq!(types(&devices), [2, 2, 4, 19, 5, 1]);
        assert!(copy.network_card().is_some());
        assert!(copy.disks().push_tops(Vec::new()).is_err(), "one disk can be written");
    }
}

#[test]
fn a_copy_with_other_files_than_its_devices_need_is_refused() {
    let [block, vsock] = FOR_COPY;
    for given in [
        vec![],
        vec![block.clone()],
        vec![vsock.clone()],
        vec![block.clone(), vsock.clone(), block.clone()],
        vec![block.clone(), vsock.clone(), vsock.clone()],
        vec![block.clone(), ChildDevice::Vsock { listener: TOP }],
        vec![block, ChildDevice::Vsock { listener: FdIndex(99) }],
    ] {
        let (set, mut files) = machine();
        let refused = set.take_for_copy(&given, &mut files.fds).unwrap_err();
        assert_eq!(refused.kind(), RefusalKind::BadRequest, "{given:?}: {refused}");
    }
}

#[test]
fn a_machine_that_can_write_a_volume_is_not_copied() {
    for read_only in [false, true] {
        let mut fds = ReceivedFds::new(vec![blank(1 << 20)]);
        let volume = DeviceConfig::Block(DiskConfig::Volume { file: FdIndex(0), read_only });
        let (_, set) = UnbuiltDevices::take(&[volume], &mut fds).unwrap().build(&released()).unwrap();
        let files = set.take_for_copy(&[], &mut fds).unwrap();
        assert_eq!(set.copy(files).is_ok(), read_only);
    }
}

fn any_fd() -> impl Strategy<Value = FdIndex> {
    (0_u8..8).prop_map(FdIndex)
}

fn any_device() -> impl Strategy<Value = DeviceConfig> {
    prop_oneof![
        Just(DeviceConfig::Rng),
        Just(DeviceConfig::Balloon),
        Just(card()),
        any_fd().prop_map(|image| DeviceConfig::Block(DiskConfig::ReadOnly { image })),
        any_fd().prop_map(|file| DeviceConfig::Block(DiskConfig::Slot { file })),
        (any_fd(), any::<bool>())
            .prop_map(|(file, read_only)| DeviceConfig::Block(DiskConfig::Volume { file, read_only })),
        (any_fd(), prop::collection::vec(any_fd(), 0..4))
            .prop_map(|(template, layers)| DeviceConfig::Block(DiskConfig::Writable { template, layers })),
        any_fd().prop_map(|listener| DeviceConfig::Vsock(VsockConfig { listener, cid: GuestCid::DEFAULT })),
    ]
}

proptest! {
    /// Any devices with any files: a disk may be a socket, and a socket a disk.
    #[test]
    fn any_devices_are_built_or_refused(configs in prop::collection::vec(any_device(), 0..8)) {
        let mut files = files();
        if let Ok(devices) = UnbuiltDevices::take(&configs, &mut files.fds) {
            let _ = devices.largest_file();
            if let Ok((devices, set)) = devices.build(&released()) {
                prop_assert_eq!(devices.len(), configs.len());
                let _ = set.take_for_copy(&FOR_COPY, &mut files.fds).map(|copy| set.copy(copy));
            }
        }
    }
}

#[test]
fn a_reset_with_other_files_than_the_disks_need_is_refused() {
    let layers = |layers: &[u8]| ResetDevice::Block { layers: layers.iter().map(|index| FdIndex(*index)).collect() };
    for given in
        [vec![], vec![layers(&[4]), layers(&[5])], vec![layers(&[4, 4])], vec![layers(&[99])], vec![layers(&[])]]
    {
        let (set, mut files) = machine();
        let refused = set.prepare_reset(&given, &mut files.fds).unwrap_err();
        assert_eq!(refused.kind(), RefusalKind::BadRequest, "{given:?}: {refused}");
    }
    let (set, mut files) = machine();
    let prepared = set.prepare_reset(&[layers(&[4])], &mut files.fds).unwrap();
    set.reset(prepared);
}
