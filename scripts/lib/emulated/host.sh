# A host with hardware virtualisation, for an emulator: a small Debian with a Debian kernel. Sourced, never run.
#
# Owns: the parts of the emulated host that change seldom (root file system, kernel, first initrd, emulator), which are
# made of Debian's packages in the cache. Knows nothing about what runs in it.
# shellcheck shell=bash

# shellcheck source=../bundle.sh
source "$(dirname "${BASH_SOURCE[0]}")/../bundle.sh"

emulated_dir=$cache_dir/emulated

# What the tests call on their host, beside a minimal Debian.
readonly host_packages=(
    kmod iproute2 procps mount util-linux # the host itself
    busybox-static                        # the programs of small images
    python3 git sudo                      # clients of the server, workspaces, command lines under another user
    curl openssl ca-certificates          # an independent HTTP client and its certificates
    e2fsprogs erofs-utils attr            # disks and images
)
# The programs of the machine that runs the emulator.
# shellcheck disable=SC2034 # for the scripts that source this
readonly emulation_packages=(mmdebstrap debian-archive-keyring ca-certificates e2fsprogs cpio binutils)
# Modules that the initrd loads: disks of virtio and ATA, and the root's file system.
readonly initrd_modules=(virtio_pci virtio_blk ata_piix ata_generic sd_mod ext4)
# QEMU with what it links. It is unpacked, not installed: its packages may conflict with newer ones of this machine.
readonly qemu_packages=(
    qemu-system-x86 qemu-system-common qemu-system-data seabios ipxe-qemu libcapstone4 libfdt1 libslirp0 libpmem1
    libdaxctl1 libndctl6 libaio1 libbpf1 liburing2 libgnutls30 libnuma1 libpixman-1-0 libpng16-16 libsasl2-2
    libseccomp2 libusb-1.0-0 libvdeplug2 libfuse3-3 librdmacm1 libibverbs1 libglib2.0-0 libnettle8 libhogweed6
    libnl-3-200 libnl-route-3-200 libjpeg62-turbo libpcre2-8-0
)
# cached NAME KEY MAKE...: sets cached_dir to a directory of the cache that `MAKE DIR` filled. The directory is renamed
# when it is complete, and only one process fills it at a time.
cached() {
    local name=$1 key=$2
    shift 2
    cached_dir=$emulated_dir/$name-$(printf '%s\n' "$key" "$(declare -f "$1")" | sha256sum | cut -c1-32)
    [[ ! -d $cached_dir ]] || return 0
    mkdir -p "$emulated_dir"
    exec 8>"$emulated_dir/lock"
    flock 8
    if [[ ! -d $cached_dir ]]; then
        # Only the holder of the lock fills directories, so any other is of a process that was killed.
        rm -rf --one-file-system "$emulated_dir"/.new.*
        "$@" "$emulated_dir/.new.$$" || refuse "cannot make the emulated host's $name"
        mv -T "$emulated_dir/.new.$$" "$cached_dir"
    fi
    exec 8>&-
}

# _unpack DIR PACKAGE...: downloads PACKAGEs and unpacks them in DIR.
_unpack() {
    local dir=$1 file
    shift
    mkdir -p "$dir.deb" "$dir"
    (cd "$dir.deb" && apt-get download "$@") || return
    for file in "$dir.deb"/*.deb; do dpkg -x "$file" "$dir" || return; done
    rm -rf "$dir.deb"
}

# shellcheck disable=SC2317 # cached calls the functions that make things
_make_emulator() {
    local dir=${*: -1}
    # An old list names versions that the archive no longer has.
    step "reading package lists" "$log_dir/apt-update.log" apt-get update || return
    export -f _unpack
    # shellcheck disable=SC2016 # the inner shell expands it
    step "unpacking the emulator" "$log_dir/emulator.log" bash -c '_unpack "$@"' bash "$dir" "${@:1:$#-1}"
}

# _kernel_image META: the package with the kernel that the meta package META depends on.
_kernel_image() {
    apt-cache depends "$1" | sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1
}

# _make_host KERNEL DIR: makes root.img, vmlinuz, initrd and release (the kernel's) in DIR.
# shellcheck disable=SC2317
_make_host() {
    local kernel=$1 dir=$2 image release include
    step "reading package lists" "$log_dir/apt-update.log" apt-get update || return
    image=$(_kernel_image "$kernel")
    [[ -n $image ]] || refuse "this machine's package sources have no $kernel"
    mkdir -p "$dir"
    include=$(IFS=,; echo "${host_packages[*]}")
    step "bootstrapping the emulated host" "$log_dir/emulated-bootstrap.log" \
        unshare --mount --propagation private mmdebstrap --quiet --mode=root --variant=minbase --include="$include" \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' bookworm "$dir/root" || return
    export -f _unpack
    # shellcheck disable=SC2016
    step "unpacking $image" "$log_dir/emulated-kernel.log" bash -c '_unpack "$@"' bash "$dir/kernel" "$image" || return
    release=$(ls "$dir/kernel/lib/modules")
    mkdir -p "$dir/root/lib/modules"
    mv "$dir/kernel/lib/modules/$release" "$dir/root/usr/lib/modules/"
    mv "$dir/kernel/boot/vmlinuz-$release" "$dir/vmlinuz"
    # The root's own kmod is used: this machine need not have one.
    chroot "$dir/root" depmod "$release" || return
    _make_initrd "$dir" "$release" || return
    # Modules of hardware that no emulator has are most of the disk.
    rm -rf "$dir/root/var/cache/apt" "$dir/root/var/lib/apt/lists" "$dir/kernel"
    rm -rf "$dir/root/lib/modules/$release"/kernel/{sound,drivers/{gpu,media,net,infiniband,iio,staging,usb}}
    chroot "$dir/root" depmod "$release" || return
    step "packing the emulated host's disk" "$log_dir/emulated-disk.log" \
        mke2fs -q -t ext4 -m 0 -d "$dir/root" "$dir/root.img" 8G || return
    rm -rf --one-file-system "$dir/root"
    echo "$release" >"$dir/release"
}

# _make_initrd DIR RELEASE: makes DIR/initrd, which mounts the root and the disk of the run.
# shellcheck disable=SC2317
_make_initrd() {
    local dir=$1 release=$2 tree module path
    tree=$dir/initrd.tree
    mkdir -p "$tree"/{bin,dev,proc,sys,modules,host}
    cp "$dir/root/bin/busybox" "$tree/bin/busybox"
    for module in "${initrd_modules[@]}"; do
        chroot "$dir/root" modprobe -S "$release" --show-depends "$module" || return
    done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++' >"$tree/order" || return
    while read -r path; do cp "$dir/root$path" "$tree/modules/" || return; done <"$tree/order"
    sed -i 's,.*/,/modules/,' "$tree/order"
    cat >"$tree/init" <<'INIT'
#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc; $b mount -t sysfs sys /sys; $b mount -t devtmpfs dev /dev
while read -r module; do $b insmod "$module" 2>/dev/null; done </order
for i in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/vdb ] || [ -b /dev/sdb ] || $b sleep 1; done
disk=/dev/vd; [ -b /dev/vda ] || disk=/dev/sd
$b mount -t ext4 -o noatime ${disk}a /host && $b mkdir -p /host/run-disk &&
    $b mount -t ext4 -o noatime ${disk}b /host/run-disk && $b umount /proc /sys && $b mount -o move /dev /host/dev &&
    exec $b switch_root /host /run-disk/init
echo "emulated host: cannot mount its disks"
echo o >/proc/sysrq-trigger
INIT
    chmod 755 "$tree/init"
    (cd "$tree" && find . | cpio --quiet -o -H newc) >"$dir/initrd" || return
    rm -rf "$tree"
}

# prepare_host KERNEL: makes the emulated host with the kernel of the Debian package KERNEL, and sets host_dir.
prepare_host() {
    local key
    key="$1 ${host_packages[*]} ${initrd_modules[*]} $(declare -f _make_initrd)"
    cached host "$key" _make_host "$1"
    # shellcheck disable=SC2034
    host_dir=$cached_dir
}

# prepare_qemu: unpacks QEMU, and sets qemu_dir.
prepare_qemu() {
    cached qemu "${qemu_packages[*]}" _make_emulator "${qemu_packages[@]}"
    # shellcheck disable=SC2034
    qemu_dir=$cached_dir
}
