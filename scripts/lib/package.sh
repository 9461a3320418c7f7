# Packages of a release, made from artefacts that are built already. Sourced, never run.
#
# Owns: what is where in a package, and how its bytes become the same in each run. Builds nothing and signs nothing.
# shellcheck shell=bash

# shellcheck source=bundle.sh
source "$(dirname "${BASH_SOURCE[0]}")/bundle.sh"

# version: the version of the workspace.
version() { sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$repository/Cargo.toml"; }

# stage_usr DIR SANDBOXVM PREFIX: fills DIR with what belongs below /usr, for an installation in PREFIX.
# SANDBOXVM is the program; the paths of the other artefacts are those of build_artifacts.
stage_usr() {
    local dir=$1 program=$2 prefix=$3 file shell
    install -D -m 755 "$program" "$dir/bin/sandboxvm"
    for file in "$vmm" "$egress" "$layers" "$share"; do
        install -D -m 755 "$file" "$dir/lib/sandboxvm/$(basename "$file")"
    done
    for file in "$dir/bin/sandboxvm" "$dir"/lib/sandboxvm/*; do strip -s "$file"; done
    install -D -m 644 "$kernel" "$dir/lib/sandboxvm/vmlinux"
    install -D -m 644 "$image" "$dir/lib/sandboxvm/base.erofs"
    install -D -m 644 "$agent" "$dir/lib/sandboxvm/agent.erofs"
    install -D -m 644 "$repository/deploy/sandboxvm.service" "$dir/lib/systemd/system/sandboxvm.service"
    install -D -m 644 "$repository/deploy/systemd-before-254.conf" "$dir/share/doc/sandboxvm/systemd-before-254.conf"
    sed -i "s,/usr/local/bin/,$prefix/bin/," \
        "$dir/lib/systemd/system/sandboxvm.service" "$dir/share/doc/sandboxvm/systemd-before-254.conf"
    install -D -m 644 "$repository/deploy/sandboxvm-sysusers.conf" "$dir/lib/sysusers.d/sandboxvm.conf"
    install -D -m 644 "$repository/deploy/server.toml" "$dir/share/doc/sandboxvm/server.toml"
    for file in README.md CHANGELOG.md SECURITY.md; do
        install -D -m 644 "$repository/$file" "$dir/share/doc/sandboxvm/$file"
    done
    install -D -m 644 "$repository/LICENSE" "$dir/share/doc/sandboxvm/copyright"
    "$program" man-pages "$dir/share/man/man1"
    gzip -9n "$dir"/share/man/man1/*.1
    mkdir -p "$dir"/share/{bash-completion/completions,zsh/vendor-completions,fish/vendor_completions.d}
    for shell in bash:bash-completion/completions/sandboxvm zsh:zsh/vendor-completions/_sandboxvm \
        fish:fish/vendor_completions.d/sandboxvm.fish; do
        "$program" completion "${shell%%:*}" >"$dir/share/${shell#*:}"
    done
    chmod -R u=rwX,go=rX "$dir"
}

# settle DIR: gives all files of DIR one time, which is that of the commit in a release.
settle() { find "$1" -exec touch --no-dereference --date="@${SOURCE_DATE_EPOCH:?}" {} +; }

# make_deb OUT SANDBOXVM: makes OUT, a Debian package.
make_deb() {
    local out=$1 program=$2 tree libc
    tree=$(mktemp -d)
    chmod 755 "$tree"
    stage_usr "$tree/usr" "$program" /usr
    install -D -m 644 "$repository/deploy/server.toml" "$tree/etc/sandboxvm/server.toml"
    # The newest version of a symbol of libc that one of the programs needs.
    libc=$(objdump -T "$tree/usr/bin/sandboxvm" "$tree"/usr/lib/sandboxvm/sandboxvm-* 2>/dev/null |
        grep -o 'GLIBC_2\.[0-9.]*' | sort -uV | tail -n 1 | cut -d_ -f2)
    install -d "$tree/DEBIAN"
    sed -e "s/@VERSION@/$(version)/" -e "s/@LIBC@/${libc:-2.36}/" \
        -e "s/@SIZE@/$(du -sk --apparent-size "$tree" | cut -f1)/" "$repository/deploy/debian/control" >"$tree/DEBIAN/control"
    echo /etc/sandboxvm/server.toml >"$tree/DEBIAN/conffiles"
    install -m 755 -t "$tree/DEBIAN" "$repository"/deploy/debian/{postinst,prerm,postrm}
    (cd "$tree" && find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum) >"$tree/DEBIAN/md5sums"
    settle "$tree"
    # xz takes minutes for the base image, whose files are compressed already.
    dpkg-deb --root-owner-group -Zzstd -z3 --build "$tree" "$out" >/dev/null
    rm -rf "$tree"
}

# make_archive OUT SANDBOXVM: makes OUT, a .tar.zst with a script that installs it anywhere.
make_archive() {
    local out=$1 program=$2 tree name
    tree=$(mktemp -d)
    chmod 755 "$tree"
    name=$(basename "$out" .tar.zst)
    stage_usr "$tree/$name/usr" "$program" /usr/local
    install -m 755 "$repository/deploy/archive/install" "$tree/$name/install"
    (cd "$tree/$name" && find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum) >"$tree/$name/SHA256SUMS"
    settle "$tree"
    tar -C "$tree" --sort=name --owner=0 --group=0 --numeric-owner --format=gnu -c "$name" | zstd -q -f -3 -o "$out"
    rm -rf "$tree"
}

# clean_root: prints the path of an archive of a Debian with nothing but apt and what the package depends on.
clean_root() {
    local packages=adduser,e2fsprogs,util-linux,libgcc-s1,ca-certificates key dir
    key=$({ echo "$packages" && cat "$(command -v mmdebstrap)"; } | sha256sum | cut -c1-32)
    dir=$cache_dir/clean-root/$key
    if [[ ! -f $dir/root.tar ]]; then
        mkdir -p "$dir"
        step "making a clean Debian for the test of the package" "$log_dir/clean-root.log" \
            mmdebstrap --quiet --variant=apt --include="$packages" bookworm "$dir/.new.tar" || exit 125
        mv -T "$dir/.new.tar" "$dir/root.tar"
    fi
    echo "$dir/root.tar"
}

# prepare_package: makes a package of the artefacts under test, and sets SANDBOXVM_DEB and SANDBOXVM_CLEAN_ROOT.
prepare_package() {
    export SANDBOXVM_DEB=$release_dir/sandboxvm.deb SANDBOXVM_CLEAN_ROOT
    SANDBOXVM_CLEAN_ROOT=$(clean_root)
    SOURCE_DATE_EPOCH=$(git -C "$repository" log -1 --format=%ct)
    export SOURCE_DATE_EPOCH
    make_deb "$SANDBOXVM_DEB" "$release_dir/sandboxvm"
}

# kernel_release: the version of the guest's kernel, read from the file.
kernel_release() { strings -n 12 "$kernel" | sed -n 's/^Linux version \([^ ]*\) .*/\1/p' | head -n 1; }

# make_kernel_source OUT: makes OUT, what the guest's kernel is built from (its licence, GPL-2.0, asks for it).
make_kernel_source() {
    local out=$1 tree
    tree=$(mktemp -d)
    cp -a "$repository/images/kernel" "$tree/kernel"
    cp /usr/src/linux-source-6.1.tar.xz "$tree/kernel/"
    cp "$(dirname "$kernel")/config" "$tree/kernel/config.final"
    cat >"$tree/kernel/README" <<'README'
The source of the guest's kernel of sandboxvm: Debian's Linux source as it is distributed (linux-source-6.1.tar.xz), the
patches in patches/ and the fragments of its configuration in config/. config.final is the whole configuration.
`./build --source linux-source-6.1.tar.xz` in a checkout of sandboxvm builds it.
README
    settle "$tree"
    tar -C "$tree" --sort=name --owner=0 --group=0 --numeric-owner --format=gnu -cf "$out" kernel
    rm -rf "$tree"
}

# provenance: prints from what and with what the files of the release were built, as a statement of in-toto (SLSA
# provenance 1). It is not signed on its own: SHA256SUMS covers it.
provenance() {
    local commit file subjects=()
    commit=$(git -C "$repository" rev-parse HEAD)
    # shellcheck disable=SC2154 # of the script that sources this
    for file in "$out"/*; do
        [[ $file != */provenance.json ]] || continue
        subjects+=("{\"name\": \"$(basename "$file")\", \"digest\": {\"sha256\": \"$(sha256sum <"$file" | cut -d' ' -f1)\"}}")
    done
    cat <<STATEMENT
{
  "_type": "https://in-toto.io/Statement/v1",
  "predicateType": "https://slsa.dev/provenance/v1",
  "subject": [$(IFS=,; echo "${subjects[*]}")],
  "predicate": {
    "buildDefinition": {
      "buildType": "scripts/release",
      "externalParameters": {},
      "internalParameters": {
        "rustc": "$(rustc --version)", "gcc": "$(gcc --version | head -n 1)", "ld": "$(ld --version | head -n 1)",
        "mmdebstrap": "$(mmdebstrap --version)", "mkfs.erofs": "$(mkfs.erofs --version 2>&1 | head -n 1)"
      },
      "resolvedDependencies": [
        {"name": "sandboxvm", "digest": {"gitCommit": "$commit"}},
        {"name": "linux-source-6.1.tar.xz", "digest": {"sha256": "$(sha256sum </usr/src/linux-source-6.1.tar.xz | cut -d' ' -f1)"}}
      ]
    },
    "runDetails": {"builder": {"id": "scripts/release"}}
  }
}
STATEMENT
}
