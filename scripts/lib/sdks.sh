# The clients that the server is tested with: E2B's own, as published, at pinned
# versions, in the cache beside the guest artefacts. Sourced, never run.
#
# Owns: SANDBOXVM_TEST_SDKS, a directory with `python` (a virtual environment) and
# `js` (node_modules). Its name is a hash of the files that pin the versions. Called by
# bundle.sh, which sets cache_dir and log_dir.
# shellcheck shell=bash disable=SC2154

# Installs into $1.new and renames, so that a partial installation is never used.
_install_sdks() {
    local sdks=$1 pins=$repository/tests/sdk
    rm -rf "$sdks.new"
    mkdir -p "$sdks.new"
    # A virtual environment contains its own path, so it is created in its final place.
    rm -rf "$sdks"
    python3 -m venv --without-pip "$sdks/python"
    python3 -m pip --python "$sdks/python/bin/python" install --quiet --disable-pip-version-check \
        --requirement "$pins/python/requirements.txt"
    cp "$pins/js/package.json" "$pins/js/package-lock.json" "$sdks.new"
    (cd "$sdks.new" && npm ci --no-audit --no-fund --ignore-scripts)
    mv "$sdks.new" "$sdks/js"
    touch "$sdks/whole"
}

# prepare_sdks: installs the clients if they are missing, and sets SANDBOXVM_TEST_SDKS.
prepare_sdks() {
    local key
    key=$(cat "$repository"/tests/sdk/python/requirements.txt "$repository"/tests/sdk/js/package-lock.json |
        sha256sum | cut -c1-32)
    export SANDBOXVM_TEST_SDKS=$cache_dir/sdks/$key
    [[ ! -e $SANDBOXVM_TEST_SDKS/whole ]] || return 0
    mkdir -p "$cache_dir/sdks"
    if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
        require_packages "$log_dir" nodejs npm
    fi
    python3 -c 'import venv, pip' 2>/dev/null || require_packages "$log_dir" python3-venv python3-pip
    export -f _install_sdks
    export repository
    # shellcheck disable=SC2016 # the inner shell expands it
    step "installing the clients the server is tested with" "$log_dir/sdks.log" \
        flock "$cache_dir/sdks/lock" bash -ec '_install_sdks "$1"' bash "$SANDBOXVM_TEST_SDKS" || exit 125
}
