# One run of an emulated host: the disk that is made for it, the emulator, and the verdict. Sourced, never run.
#
# Owns: starting and ending the emulator. A host that panics, hangs, resets or is switched off before its job has ended
# is a failure. Knows nothing about the job.
# shellcheck shell=bash disable=SC2154 # host.sh sets the directories

# shellcheck source=host.sh
source "$(dirname "${BASH_SOURCE[0]}")/host.sh"

_emulator_pid=''

# stop_emulator: ends the emulator. Call it from the script's EXIT trap.
stop_emulator() {
    [[ -n $_emulator_pid ]] || return 0
    kill -TERM "$_emulator_pid" 2>/dev/null || true
    local i
    for ((i = 0; i < 30; i++)); do
        kill -0 "$_emulator_pid" 2>/dev/null || break
        sleep 0.1
    done
    kill -KILL "$_emulator_pid" 2>/dev/null || true
    wait "$_emulator_pid" 2>/dev/null || true
    _emulator_pid=''
}

# begin_disk DIR MODULE JOB: starts the disk of a run in DIR: the host loads MODULE of KVM and executes the script JOB.
begin_disk() {
    mkdir -p "$1/tree/files"
    install -m 755 "$repository/scripts/lib/emulated/init" "$1/tree/init"
    install -m 755 "$3" "$1/tree/job"
    echo "$2" >"$1/tree/module"
    : >"$1/tree/paths"
}

# bring DIR PATH: the emulated host finds the directory $1/tree/files/PATH, which the caller fills, at PATH.
bring() {
    mkdir -p "$1/tree/files$2"
    grep -qxF -- "$2" "$1/tree/paths" || echo "$2" >>"$1/tree/paths"
}

# end_disk DIR: packs the disk of the run.
end_disk() {
    local size
    size=$(du -sm "$1/tree" | cut -f1)
    rm -f "$1/run.img"
    mke2fs -q -t ext4 -m 0 -d "$1/tree" "$1/run.img" "$((size + size / 8 + 512))M" || return
    rm -rf --one-file-system "$1/tree"
}

# _await SECONDS DIR: waits until the emulator ends, and shows what the host prints meanwhile.
# Returns 1 if it had to be ended.
_await() {
    local deadline=$((SECONDS + $1)) shown=0 size late=0
    while kill -0 "$_emulator_pid" 2>/dev/null; do
        # A host that has panicked says nothing more, and some emulators keep it.
        if ((SECONDS >= deadline)); then
            late=1
            break
        fi
        if grep -qs '^result ' "$2/results"; then
            sleep 2
            break
        fi
        if grep -qs 'Kernel panic - not syncing' "$2/console"; then break; fi
        size=$(stat -c %s "$2/console" 2>/dev/null || echo 0)
        if ((size > shown)); then
            tail -c "+$((shown + 1))" "$2/console" | head -c "$((size - shown))" | tr -d '\r' >&2
            shown=$size
        fi
        sleep 0.5
    done
    stop_emulator
    tail -c "+$((shown + 1))" "$2/console" 2>/dev/null | tr -d '\r' >&2
    return "$late"
}

# verdict DIR SECONDS: waits for the end of the run, and returns the exit code of the job, or 125 if the job did not end.
verdict() {
    local code
    if ! _await "$2" "$1"; then
        say "FAILED: the emulated host did not end in $2 s, so the emulator was ended"
        return 125
    fi
    if grep -q 'Kernel panic - not syncing' "$1/console"; then
        say "FAILED: the kernel of the emulated host panicked: $1/console"
        return 125
    fi
    code=$(sed -n '$s/^result \([0-9][0-9]*\)$/\1/p' "$1/results" 2>/dev/null)
    if [[ -z $code ]]; then
        say "FAILED: the emulated host ended before its job did: $1/console"
        return 125
    fi
    return "$code"
}

# run_svm DIR SECONDS: boots the host with SVM in QEMU, with the disk of DIR. Returns as verdict does.
# What the host prints is in DIR/console, what the job wrote to /dev/ttyS1 in DIR/results.
run_svm() {
    local lib=$qemu_dir/usr/lib/x86_64-linux-gnu:$qemu_dir/lib/x86_64-linux-gnu
    rm -f "$1/console" "$1/results"
    # Nothing that the host writes outlives the run, and the cache is never changed: QEMU keeps it in a temporary file.
    LD_LIBRARY_PATH=$lib TMPDIR=$1 "$qemu_dir/usr/bin/qemu-system-x86_64" \
        -L "$qemu_dir/usr/share/qemu" -L "$qemu_dir/usr/share/seabios" \
        -M q35 -accel tcg,thread=multi,tb-size=512 -cpu "max,+svm" -smp "${SANDBOXVM_EMULATED_CPUS:-2}" -m 4096 \
        -display none -monitor none -nic none -no-reboot \
        -kernel "$host_dir/vmlinuz" -initrd "$host_dir/initrd" \
        -append "console=ttyS0 quiet loglevel=4 mitigations=off panic=-1 nokaslr tsc=reliable no_timer_check" \
        -drive "file=$host_dir/root.img,format=raw,if=virtio,snapshot=on,cache=unsafe" \
        -drive "file=$1/run.img,format=raw,if=virtio,cache=unsafe" \
        -serial "file:$1/console" -serial "file:$1/results" </dev/null >"$1/emulator.log" 2>&1 &
    _emulator_pid=$!
    verdict "$1" "$2" || { local code=$?; sed 's/^/    /' "$1/emulator.log" >&2; return "$code"; }
}
