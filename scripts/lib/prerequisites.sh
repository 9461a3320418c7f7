# What a machine needs before anything can be built or run. Sourced, never run.
#
# Owns: the lists of Debian packages with their reasons, and the checks of user,
# architecture, KVM, disk space, packages and Rust. Every check either passes
# silently, installs what is missing, or says what to do and exits with 125.
# shellcheck shell=bash

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=progress.sh
source "$repository/scripts/lib/progress.sh"

readonly MUSL_TARGET=x86_64-unknown-linux-musl

# Debian packages that building needs.
# shellcheck disable=SC2034 # for the scripts that source this
build_packages=(
    gcc libc6-dev make          # linker of the Rust binaries, compiler of the kernel
    bc bison flex libelf-dev    # the kernel's build
    patch xz-utils linux-source-6.1 # its source, and our patches over it
    mmdebstrap                  # the base image's tree
    debian-archive-keyring ca-certificates # the trust anchors it is checked against
    erofs-utils                 # mkfs.erofs: the images
    e2fsprogs                   # mkfs.ext4: the sandbox's writable disk
    util-linux coreutils        # flock, setsid, unshare, sha256sum
)
# Debian packages that tests need in addition.
# shellcheck disable=SC2034
test_packages=(
    procps                      # ps
    curl                        # an independent HTTP client
    openssl                     # creates certificates for the server
    iproute2                    # ip: network namespaces
    nsd                         # a name server for the resolver
    microsocks tinyproxy        # upstream proxies for the dialer
    docker-registry skopeo umoci # a registry, and images that other programs made
    apache2-utils               # htpasswd: the passwords of that registry
    busybox-static              # the programs of small images
    attr                        # getfattr and setfattr: attributes of files in images
)

# interpreter_packages: lists the packages of the code interpreter's image, which tests of its
# service need on this machine.
interpreter_packages() { sed -E 's/[[:space:]]*#.*//; /^$/d' "$repository/images/code-interpreter/packages"; }

require_root() {
    [[ $EUID == 0 ]] || refuse "must run as root, to install packages and to open /dev/kvm: sudo $0"
}

require_x86_64() {
    local machine
    machine=$(uname -m)
    [[ $machine == x86_64 ]] || refuse "only x86-64 is supported, and this machine is $machine"
}

require_kvm() {
    if [[ ! -e /dev/kvm ]]; then
        refuse "/dev/kvm does not exist: switch virtualisation on in the firmware (in a virtual machine: nested" \
            "virtualisation on its host), then load the module: modprobe kvm_intel, or modprobe kvm_amd"
    fi
    { : 3<>/dev/kvm; } 2>/dev/null ||
        refuse "/dev/kvm cannot be opened: run as root; in a container, pass the device in (--device /dev/kvm)"
}

# require_space MIB DIR WHAT: refuses unless DIR, which may not exist yet, has MIB MiB free.
require_space() {
    local need=$1 dir=$2 what=$3 free
    while [[ ! -d $dir ]]; do dir=$(dirname "$dir"); done
    free=$(df --output=avail -BM "$dir" | tail -n 1 | tr -dc 0-9)
    ((free >= need)) ||
        refuse "$dir has $free MiB free, $what needs $need MiB: free some space, or choose another place (see --help)"
}

_missing_packages() {
    local package
    for package in "$@"; do
        # shellcheck disable=SC2016 # dpkg-query expands this
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || echo "$package"
    done
}

# require_packages LOGDIR PACKAGE...: installs the missing packages. Uses the network
# only if a package is missing.
require_packages() {
    local logs=$1 missing
    shift
    command -v dpkg-query >/dev/null ||
        refuse "this machine has no dpkg: quickstart supports Debian 12; elsewhere install the equivalents of: $*"
    mapfile -t missing < <(_missing_packages "$@")
    ((${#missing[@]} > 0)) || return 0
    [[ $EUID == 0 ]] || refuse "missing packages: run as root: apt-get install ${missing[*]}"
    say "missing packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    step "reading package lists" "$logs/apt-update.log" apt-get update ||
        refuse "apt-get update failed: fix the package sources of this machine, then run $0 again"
    step "installing ${#missing[@]} packages" "$logs/apt-install.log" \
        apt-get install --yes --no-install-recommends "${missing[@]}" ||
        refuse "cannot install ${missing[*]}: install them by hand, then run $0 again"
    # Tests start their own servers: those that a package starts are not wanted.
    if [[ -d /run/systemd/system ]]; then
        local service
        for service in nsd tinyproxy docker-registry; do
            [[ " ${missing[*]} " == *" $service "* ]] || continue
            systemctl disable --now --quiet "$service" || say "cannot stop a server that was installed for tests: $service"
        done
    fi
}

# find_cargo: adds ~/.cargo/bin to PATH if needed: often only a login shell has it there.
find_cargo() {
    local bin=${CARGO_HOME:-$HOME/.cargo}/bin
    if ! command -v cargo >/dev/null && [[ -x $bin/cargo ]]; then export PATH=$bin:$PATH; fi
}

# require_rust LOGDIR: refuses unless cargo has at least the rust-version of the workspace; adds the
# musl target.
require_rust() {
    local logs=$1 want have
    find_cargo
    want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$repository/Cargo.toml")
    command -v cargo >/dev/null ||
        refuse "cargo is missing: install Rust $want or newer with rustup for this user (rustc of Debian 12 is too old)"
    have=$(cd "$repository" && rustc --version | cut -d' ' -f2)
    [[ $(printf '%s\n' "$want" "${have%%-*}" | sort -V | head -n 1) == "$want" ]] ||
        refuse "rustc $have is too old, $want or newer is needed: rustup update stable"
    [[ -d $(cd "$repository" && rustc --print target-libdir --target "$MUSL_TARGET") ]] && return 0
    command -v rustup >/dev/null ||
        refuse "the Rust standard library for $MUSL_TARGET is missing, and so is rustup: install it from your distribution"
    step "adding Rust target $MUSL_TARGET" "$logs/rustup-target.log" \
        rustup target add --toolchain "$(cd "$repository" && rustup show active-toolchain | cut -d' ' -f1)" "$MUSL_TARGET" ||
        refuse "cannot add the target: run rustup target add $MUSL_TARGET, then $0 again"
}

# require_nextest LOGDIR: installs the test runner if it is missing.
require_nextest() {
    command -v cargo-nextest >/dev/null && return 0
    step "installing cargo-nextest" "$1/cargo-nextest.log" cargo install cargo-nextest --locked ||
        refuse "cannot install cargo-nextest: run cargo install cargo-nextest --locked, then $0 again"
}
