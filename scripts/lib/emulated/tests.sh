# End-to-end tests in an emulated host: which are run, and what they need there. Sourced, never run.
#
# Owns: the selection, the part of the checkout and of the build results that a host needs, and the judgement of the
# tests' results. The executables are those that this machine's cargo built; nothing is compiled in the emulator.
# shellcheck shell=bash disable=SC2154 # bundle.sh sets the directories

# shellcheck source=run.sh
source "$(dirname "${BASH_SOURCE[0]}")/run.sh"

# Tests whose verdict would only be about the emulator's speed. They compare durations with each other or with a rate.
# shellcheck disable=SC2034 # for the scripts that source this
readonly judged_by_time=(
    limits::a_processor_share_is_enforced_and_its_control_group_is_removed_with_the_sandbox
    limits::the_output_rate_limits_a_sandbox_and_its_copy
    limits::disk_rates_hold_after_a_fork_and_a_reset_too
    time::a_machine_with_one_vcpu_notices_no_absence
)
# From BINARY::TEST, as nextest names them: what a host of another mode could do differently.
readonly quick_tests=(
    lifecycle::stories::a_sandbox_works_from_create_to_rm           # boot, exec, stop
    snapshots::stories::forks_continue_from_one_state_and_share_nothing_afterwards
    snapshots::stories::a_snapshot_after_a_reset_has_no_earlier_files
    hostile_guest::first_light::the_second_vcpu_and_interrupts_work
    hostile_guest::instructions::instructions_that_the_vmm_executes_work
    hostile_guest::registers::every_register_survives_every_access
    isolation::drills::each_vmm_has_its_own_user
    isolation::drills::no_program_can_be_executed
    isolation::drills::memory_ends_at_the_limit
    isolation::confinement::a_running_vmm_has_nothing_of_the_host   # control groups of version 2 with controllers
)
readonly more_tests=(
    commands::self_test::self_test_passes_on_this_host_and_leaves_nothing # two vCPUs, pause, attacks
    snapshots::stories::each_snapshot_of_a_chain_restores_its_own_state
    snapshots::stories::clones_of_a_snapshot_are_distinct
    lifecycle::crash::power_off_and_halt_end_the_machine_with_their_reasons
    lifecycle::crash::a_kernel_panic_is_reported_with_the_last_console_lines
    lifecycle::ending::a_child_outlives_its_sandbox_only_without_group_and_filter
    lifecycle::stories::doctor_describes_this_host
    lifecycle::limits::processes_and_open_files_are_limited_and_a_fork_bomb_does_not_stop_the_agent
    guest::linux::the_guest_is_the_linux_that_is_documented
    hostile_guest::first_light::a_guest_that_can_never_run_again_is_ended
    hostile_guest::first_light::a_guest_with_one_permanently_halted_vcpu_keeps_running
    hostile_guest::instructions::extended_state_at_any_address_is_executed_or_ends_the_machine
    hostile_guest::instructions::invalid_extended_state_is_executed_or_ends_the_machine
    hostile_guest::instructions::unusual_instructions_are_executed_or_end_the_machine
    hostile_guest::instructions::model_specific_registers
    hostile_guest::instructions::interprocessor_interrupts
    hostile_guest::instructions::processors_that_stand_still
    hostile_guest::rings::broken_rings_stop_their_device_and_nothing_else
    hostile_guest::second_vcpu::rings_that_change_while_the_device_reads_them_do_no_harm
    hostile_guest::snapshots::a_forged_processor_is_not_restored
    hostile_guest::snapshots::a_misbehaving_machine_can_be_saved_at_any_moment
    isolation::drills::a_file_of_the_host_cannot_be_read
    isolation::drills::no_socket_reaches_the_network
    isolation::drills::another_vmm_cannot_be_traced
    isolation::drills::a_fork_bomb_ends_at_the_limit
    isolation::drills::nothing_can_be_mounted_and_no_namespace_created
    isolation::drills::root_privileges_cannot_be_regained
    isolation::drills::writable_memory_cannot_be_made_executable
    isolation::drills::a_vcpu_thread_has_fewer_calls_than_the_event_loop
    server::control::a_sandbox_is_created_paused_to_disk_resumed_forked_and_killed
    server::sdks::sandboxes_work_for_the_python_client              # the official client
)

# select_tests SET: sets selected to the tests of SET, which is quick or all.
select_tests() {
    selected=("${quick_tests[@]}")
    [[ $1 == quick ]] || selected+=("${more_tests[@]}")
}

# _filter: the expression by which nextest finds exactly the selected tests.
_filter() {
    local test expression=''
    for test in "${selected[@]}"; do
        expression+="${expression:+ | }(binary(=${test%%::*}) & test(=${test#*::}))"
    done
    printf '%s\n' "$expression"
}

# build_tests DIR: builds the executables of the tests, and writes what nextest has to know of them to DIR.
build_tests() {
    # shellcheck disable=SC2016 # the inner shell expands it
    step "building the tests" "$log_dir/emulated-tests.log" bash -euc 'cd "$1"
        cargo nextest list --locked -p sandboxvm-tests --list-type binaries-only --message-format json >"$2/binaries.json"
        cargo metadata --locked --format-version 1 >"$2/metadata.json"' bash "$repository" "$1" || exit 125
}

# _executables DIR: prints the paths of the executables that have a selected test. Writes DIR/tree/binaries.json with
# these alone: nextest runs each to list its tests.
_executables() {
    python3 - "$1" "${selected[@]}" <<'PYTHON'
import json, sys
directory, selected = sys.argv[1], sys.argv[2:]
wanted = {name.split("::", 1)[0] for name in selected}
with open(f"{directory}/binaries.json") as file:
    found = json.load(file)
binaries = {key: value for key, value in found["rust-binaries"].items()
            if value["binary-name"] in wanted and value["kind"] == "test"}
missing = wanted - {value["binary-name"] for value in binaries.values()}
if missing:
    sys.exit(f"no such tests: {' '.join(sorted(missing))}")
found["rust-binaries"] = binaries
with open(f"{directory}/tree/binaries.json", "w") as file:
    json.dump(found, file)
for value in binaries.values():
    print(value["binary-path"])
PYTHON
}

# bring_tests DIR: adds the selected tests to the disk of a run, with all that they need. The artefacts are those of
# prepare_tests, and DIR has the files of build_tests.
bring_tests() {
    local dir=$1 files=$1/tree/files path executables
    bring "$dir" "$repository"
    git -C "$repository" ls-files -z -- . ':!fuzz' | (cd "$repository" && xargs -0 cp --parents -P -t "$files$repository") || return
    executables=$(_executables "$dir") || return
    while read -r path; do
        mkdir -p "$files$(dirname "$path")"
        # Debug information is most of an executable, and no test reads it.
        strip --strip-debug -o "$files$path" "$path" || return
    done <<<"$executables"
    [[ $target_dir/ == "$repository"/* ]] || bring "$dir" "$target_dir"
    cp "$dir/metadata.json" "$dir/tree/"
    cp "$(command -v cargo-nextest)" "$dir/tree/"
    _filter >"$dir/tree/filter"
    # The programs under test have the same paths too: the bundle is a directory of links, which are followed.
    for path in "$SANDBOXVM_BUNDLE" "$SANDBOXVM_BIN" "$SANDBOXVM_DRILLS" "$SANDBOXVM_TEST_SDKS/python"; do
        [[ $path == "$repository"/* ]] || bring "$dir" "$(dirname "$path")"
        mkdir -p "$files$(dirname "$path")"
    done
    cp -L "$SANDBOXVM_BIN" "$files$SANDBOXVM_BIN"
    cp -L "$SANDBOXVM_DRILLS" "$files$SANDBOXVM_DRILLS"
    cp -rL "$SANDBOXVM_BUNDLE" "$files$SANDBOXVM_BUNDLE"
    mkdir -p "$files$SANDBOXVM_TEST_SDKS/python"
    cp -r "$SANDBOXVM_TEST_SDKS/python/lib" "$files$SANDBOXVM_TEST_SDKS/python/"
    # The clients are Python alone; the interpreter is the emulated host's.
    mkdir -p "$files$SANDBOXVM_TEST_SDKS/python/bin" "$files$SANDBOXVM_TEST_SDKS/js/node_modules"
    # shellcheck disable=SC2016 # the shell of the emulated host expands it
    printf '#!/bin/sh\nPYTHONPATH=$(echo %s/python/lib/python3*/site-packages) exec /usr/bin/python3 "$@"\n' \
        "$SANDBOXVM_TEST_SDKS" >"$files$SANDBOXVM_TEST_SDKS/python/bin/python"
    chmod 755 "$files$SANDBOXVM_TEST_SDKS/python/bin/python"
    {
        # Deadlines end tests that hang. An emulator is some thirty times slower than a machine.
        echo "export CI=true SANDBOXVM_TEST_PATIENCE=${SANDBOXVM_TEST_PATIENCE:-40}"
        for path in SANDBOXVM_BUNDLE SANDBOXVM_BIN SANDBOXVM_DRILLS SANDBOXVM_TEST_SDKS; do
            printf 'export %s=%q\n' "$path" "${!path}"
        done
        printf 'cd %q\n' "$repository"
    } >"$dir/tree/environment"
}

# write_job FILE: writes the job that runs the tests and sends their results to the second serial port.
write_job() {
    cat >"$1" <<'JOB'
. /run-disk/environment
echo "emulated host: ready after $(cut -d. -f1 /proc/uptime) s"
code=0
/run-disk/cargo-nextest nextest run --profile emulated --binaries-metadata /run-disk/binaries.json \
    --cargo-metadata /run-disk/metadata.json --color never --run-ignored all -E "$(cat /run-disk/filter)" || code=$?
cat target/nextest/emulated/junit.xml >/dev/ttyS1
echo >/dev/ttyS1
exit "$code"
JOB
}

# judge DIR CODE: prints one line for each selected test, and returns 0 only if each ran and passed. CODE is that of the
# run. A selected test without a result has failed.
judge() {
    python3 - "$1/results" "$2" "${selected[@]}" <<'PYTHON'
import re, sys, xml.etree.ElementTree as tree
results, code, selected = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
text = open(results, errors="replace").read() if code != 125 else ""
found = re.search(r"<testsuites.*</testsuites>", text, re.S)
outcomes = {}
for suite in tree.fromstring(found.group(0)).iter("testsuite") if found else []:
    binary = suite.get("name").split("::")[-1]
    for case in suite.iter("testcase"):
        bad = any(case.find(kind) is not None for kind in ("failure", "error", "skipped"))
        outcomes[f"{binary}::{case.get('name')}"] = ("FAILED" if bad else "ok", float(case.get("time", "0")))
worst = 0
for test in selected:
    verdict, seconds = outcomes.get(test, ("NO RESULT", 0.0))
    worst = max(worst, verdict != "ok")
    print(f"{verdict:<10}{seconds:8.1f} s  {test}")
sys.exit(1 if worst or code else 0)
PYTHON
}
