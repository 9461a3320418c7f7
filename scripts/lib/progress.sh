# Progress of slow steps, on stderr. Sourced, never run.
#
# Owns: the messages of a step, its log file, and ending its process when the script is
# interrupted. Knows nothing about what the steps do.
#
# On a terminal a step is one line that is redrawn in place. Elsewhere it is one plain
# line at its start and one at its end, so that CI logs stay readable.
# Messages begin with the script's name; set PROGRESS_NAME before sourcing for another.
# shellcheck shell=bash

: "${PROGRESS_NAME:=${0##*/}}"
_step_pid=''
_beside_pid=''

# say MESSAGE...: prints one line to stderr.
say() { printf '%s: %s\n' "$PROGRESS_NAME" "$*" >&2; }

# refuse MESSAGE...: prints what to do and exits with 125, the code for failures of sandboxvm.
refuse() {
    say "$*"
    exit 125
}

# _end_group PID: ends the process group PID, by force after five seconds.
_end_group() {
    kill -TERM -- "-$1" 2>/dev/null || true
    local i
    for ((i = 0; i < 50; i++)); do
        kill -0 -- "-$1" 2>/dev/null || break
        sleep 0.1
    done
    kill -KILL -- "-$1" 2>/dev/null || true
    wait "$1" 2>/dev/null || true
}

# stop_step: ends the running step, what runs beside it, and everything that they started. Call it
# from the script's EXIT trap: a step runs in a separate session, so Ctrl-C does not reach it.
stop_step() {
    if [[ -n $_step_pid ]]; then
        if [[ -t 2 ]]; then echo >&2; fi
        _end_group "$_step_pid"
        _step_pid=''
    fi
    if [[ -n $_beside_pid ]]; then
        _end_group "$_beside_pid"
        _beside_pid=''
    fi
}

# beside OUTPUT COMMAND...: starts COMMAND, which runs while the script takes other steps, with its
# stdout in the file OUTPUT. One at a time; join_beside waits for it.
beside() {
    local output=$1
    shift
    # Its messages are whole lines, also on a terminal: the live line belongs to the steps.
    setsid -- "$@" </dev/null >"$output" 2> >(
        while IFS= read -r line; do
            if [[ -t 2 ]]; then printf '\r\033[K' >&2; fi
            printf '%s\n' "$line" >&2
        done
    ) &
    _beside_pid=$!
}

# join_beside: waits for the command of `beside`, and returns its exit code.
join_beside() {
    local code=0
    wait "$_beside_pid" || code=$?
    _beside_pid=''
    return "$code"
}

# _elapsed SECONDS: prints a duration, for example 7s or 1m07s.
_elapsed() {
    if (($1 < 60)); then printf '%ds' "$1"; else printf '%dm%02ds' $(($1 / 60)) $(($1 % 60)); fi
}

# _draw NAME BEGIN LOG: redraws the live line, cut to the width of the terminal.
_draw() {
    local line width last=''
    width=$(tput cols 2>/dev/null) || width=80
    last=$(tail -c 400 "$3" 2>/dev/null | tr '\r' '\n' | tr -cd '[:print:]\n' | grep -v '^ *$' | tail -n 1) || true
    line="$PROGRESS_NAME: $1 ... $(_elapsed $((SECONDS - $2)))  $last"
    printf '\r\033[K%s' "${line:0:width-1}" >&2
}

# step NAME LOG COMMAND...: runs COMMAND with stdout and stderr in LOG and no stdin.
# If it fails, prints the last lines of the log and its name, and returns the exit code.
step() {
    local name=$1 log=$2 begin=$SECONDS code=0
    shift 2
    { mkdir -p "$(dirname "$log")" && : >"$log"; } || refuse "cannot write the log $log"
    if [[ ! -t 2 ]]; then say "$name ..."; fi
    setsid -- "$@" </dev/null >>"$log" 2>&1 &
    _step_pid=$!
    if [[ -t 2 ]]; then
        while kill -0 "$_step_pid" 2>/dev/null; do
            _draw "$name" "$begin" "$log"
            sleep 0.2
        done
        printf '\r\033[K' >&2
    fi
    wait "$_step_pid" || code=$?
    _step_pid=''
    if ((code == 0)); then
        say "$name: done in $(_elapsed $((SECONDS - begin)))"
    else
        say "$name: FAILED with code $code after $(_elapsed $((SECONDS - begin))); last lines of $log:"
        tail -n 20 "$log" | sed 's/^/    /' >&2
        say "full log: $log"
    fi
    return "$code"
}
