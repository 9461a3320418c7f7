# The bundle: the directory with the files that `sandboxvm` needs at run time, and how
# it is built. Sourced, never run.
#
# Owns: the list of artefacts, the commands that build them, and their installation. The CLI looks for a bundle in $SANDBOXVM_BUNDLE, else `../lib/sandboxvm`,
# else `bundle`, both relative to its own executable. A bundle holds
#     sandboxvm-vmm  sandboxvm-egress  sandboxvm-layers  sandboxvm-share  vmlinux  base.erofs  agent.erofs
# shellcheck shell=bash

# shellcheck source=prerequisites.sh
source "$(dirname "${BASH_SOURCE[0]}")/prerequisites.sh"
# shellcheck source=sdks.sh
source "$(dirname "${BASH_SOURCE[0]}")/sdks.sh"

target_dir=${CARGO_TARGET_DIR:-$repository/target}
# shellcheck disable=SC2034 # for the scripts that source this
release_dir=$target_dir/release
musl_dir=$target_dir/$MUSL_TARGET/machine
if ((EUID == 0)); then
    cache_dir=${SANDBOXVM_CACHE:-/var/cache/sandboxvm}
else
    cache_dir=${SANDBOXVM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sandboxvm}
fi
log_dir=$cache_dir/logs

# build_machine: builds the programs of a machine.
build_machine() {
    step "building the monitor and the guest agent" "$log_dir/cargo-musl.log" \
        cargo build --manifest-path "$repository/Cargo.toml" --locked --profile machine --target "$MUSL_TARGET" \
        -p sandboxvm-vmm -p sandboxvm-guest-agent || exit 125
}

# build_artifacts [FEATURE...]: builds every artefact that is out of date, the command line
# tool with FEATUREs, and sets vmm, egress, layers, share, kernel, image and agent to the paths of the results.
build_artifacts() {
    local cargo_features=() paths
    # cargo takes the names of features with their package, since the other programs have none of them.
    (($# == 0)) || cargo_features=(--features "${*/#/sandboxvm-cli/}")
    # The kernel's build leaves a core idle for much of its time, and so does cargo's.
    paths=$(mktemp)
    # shellcheck disable=SC2016 # the inner shell expands it
    beside "$paths" bash -euc 'source "$1/scripts/lib/bundle.sh"
        trap stop_step EXIT
        trap "exit 143" TERM
        "$1/images/kernel/build"
        "$1/images/base/build"
        build_machine' "$0" "$repository"
    step "building the command line tool" "$log_dir/cargo-host.log" \
        cargo build --manifest-path "$repository/Cargo.toml" --locked --release -p sandboxvm-cli -p sandboxvm-egress -p sandboxvm-layers -p sandboxvm-share \
        "${cargo_features[@]}" || exit 125
    join_beside || exit 125
    { read -r kernel && read -r image; } <"$paths" || refuse "the builds of kernel and image printed no paths"
    rm -f "$paths"
    vmm=$musl_dir/sandboxvm-vmm
    egress=$release_dir/sandboxvm-egress
    layers=$release_dir/sandboxvm-layers
    share=$release_dir/sandboxvm-share
    agent=$musl_dir/agent.erofs
    "$repository/images/base/agent-disk" "$musl_dir/sandboxvm-agent" "$agent" || exit 125
}

# stamp_commit: the commit that `sandboxvm -V` prints. For installations only: the
# compiler builds the command line tool again whenever the variable changes, so other
# builds leave it unset.
stamp_commit() {
    local commit
    commit=$(git -C "$repository" describe --always --dirty --abbrev=12 --exclude='*' 2>/dev/null) || return 0
    export SANDBOXVM_COMMIT=$commit
}

# place copy|share|link SOURCE DESTINATION: replaces DESTINATION atomically, since a
# running sandbox may have the old file open. `share` may create a hard link: use it for
# files that are never written to again.
place() {
    local how=$1 source=$2 destination=$3 new
    [[ -e $source ]] || refuse "$source was not built: this is a bug in $PROGRESS_NAME"
    if [[ $how != link && -f $destination && ! -L $destination ]]; then
        if [[ $source -ef $destination ]] || cmp -s "$source" "$destination"; then return 0; fi
    fi
    new=$(dirname "$destination")/.$(basename "$destination").new
    rm -f "$new"
    case $how in
        link) ln -s "$source" "$new" ;;
        share) ln "$source" "$new" 2>/dev/null || cp --reflink=auto "$source" "$new" ;;
        copy) cp --reflink=auto "$source" "$new" ;;
    esac
    mv -fT "$new" "$destination"
}

# install_bundle DIR: installs a bundle that does not depend on the checkout or the cache.
install_bundle() {
    mkdir -p "$1"
    place share "$kernel" "$1/vmlinux"
    place share "$image" "$1/base.erofs"
    place copy "$agent" "$1/agent.erofs"
    place copy "$vmm" "$1/sandboxvm-vmm"
    place copy "$egress" "$1/sandboxvm-egress"
    place copy "$layers" "$1/sandboxvm-layers"
    place copy "$share" "$1/sandboxvm-share"
}

# link_bundle DIR: makes a bundle of symbolic links to the build results, for tests and
# benchmarks.
link_bundle() {
    mkdir -p "$1"
    place link "$kernel" "$1/vmlinux"
    place link "$image" "$1/base.erofs"
    place link "$agent" "$1/agent.erofs"
    place link "$vmm" "$1/sandboxvm-vmm"
    place link "$egress" "$1/sandboxvm-egress"
    place link "$layers" "$1/sandboxvm-layers"
    place link "$share" "$1/sandboxvm-share"
}

# prepare_guest [PACKAGE...]: installs the packages that building needs and PACKAGEs,
# builds everything that a real guest needs, and sets SANDBOXVM_BUNDLE and SANDBOXVM_BIN.
prepare_guest() {
    require_x86_64
    require_packages "$log_dir" "${build_packages[@]}" "$@"
    require_rust "$log_dir"
    # Tests and benchmarks are of everything that can be built.
    build_artifacts otlp
    # Both profiles use one bundle: a debug build of the CLI drives the same guest.
    link_bundle "$release_dir/bundle"
    mkdir -p "$target_dir/debug"
    ln -sfnT ../release/bundle "$target_dir/debug/bundle"
    export SANDBOXVM_BUNDLE=$release_dir/bundle SANDBOXVM_BIN=$release_dir/sandboxvm
}

# build_drills: builds the VMM that attacks its own confinement, for tests/tests/isolation/drills.rs,
# and sets SANDBOXVM_DRILLS. It is a separate program, which no bundle contains.
build_drills() {
    step "building the escape drills" "$log_dir/cargo-drills.log" \
        cargo build --manifest-path "$repository/Cargo.toml" --locked --profile machine --target "$MUSL_TARGET" \
        -p sandboxvm-vmm --features escape-drills --bin sandboxvm-vmm-drills || exit 125
    export SANDBOXVM_DRILLS=$musl_dir/sandboxvm-vmm-drills
}

# prepare_tests: prepares everything that a test run needs before nextest starts.
prepare_tests() {
    local interpreter
    if [[ ${SANDBOXVM_NO_KVM-} == 1 ]]; then
        say "SANDBOXVM_NO_KVM=1: end-to-end tests are off"
        require_x86_64
        require_packages "$log_dir" gcc libc6-dev "${test_packages[@]}"
        require_rust "$log_dir"
    else
        mapfile -t interpreter < <(interpreter_packages)
        prepare_guest "${test_packages[@]}" "${interpreter[@]}"
        build_drills
        prepare_sdks
    fi
    require_nextest "$log_dir"
}
