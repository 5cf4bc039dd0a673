#!/bin/sh
# Installs the program aweigh from a release: sh install.sh [FOLDER]   (default: ~/.local/bin)
#
# AWEIGH_RELEASE is the address of the release's files; the release's own copy of this script has it filled in.
set -eu

release=${AWEIGH_RELEASE:-@RELEASE@}
folder=${1:-"$HOME/.local/bin"}

fail() {
    printf 'install.sh: %s\n' "$1" >&2
    exit 2
}

case $release in
@*) fail "expected the address of a release in AWEIGH_RELEASE, as in https://host/owner/aweigh/releases/download/v1" ;;
esac

case $(uname -s)-$(uname -m) in
Linux-x86_64) target=x86_64-unknown-linux-gnu ;;
Linux-aarch64) target=aarch64-unknown-linux-gnu ;;
Darwin-arm64) target=aarch64-apple-darwin ;;
Darwin-x86_64) target=x86_64-apple-darwin ;;
*) fail "there is no archive for $(uname -s) on $(uname -m); build it: cargo install --locked --path cli" ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
archive=aweigh-$target.tar.gz
for file in "$archive" "$archive.sha256"; do
    if command -v curl >/dev/null; then
        curl --fail --location --silent --show-error --output "$work/$file" "$release/$file"
    elif command -v wget >/dev/null; then
        wget --quiet --output-document="$work/$file" "$release/$file"
    else
        fail "neither curl nor wget is installed"
    fi || fail "cannot download $release/$file"
done

expected=$(cut -d ' ' -f 1 "$work/$archive.sha256")
if command -v sha256sum >/dev/null; then
    found=$(sha256sum "$work/$archive" | cut -d ' ' -f 1)
else
    found=$(shasum --algorithm 256 "$work/$archive" | cut -d ' ' -f 1)
fi
[ "$expected" = "$found" ] || fail "the archive's SHA-256 is $found, not $expected: it is damaged; try again"

tar -xzf "$work/$archive" -C "$work"
unpacked=$work/aweigh-$target
"$unpacked/aweigh" --version >/dev/null || fail "the program does not run here; build it: cargo install --locked --path cli"
mkdir -p "$folder"
# A rename in the same folder replaces a program that is running.
cp "$unpacked/aweigh" "$folder/.aweigh.new"
chmod 755 "$folder/.aweigh.new"
mv "$folder/.aweigh.new" "$folder/aweigh"

if [ "$folder" = "$HOME/.local/bin" ]; then
    share=${XDG_DATA_HOME:-"$HOME/.local/share"}
    mkdir -p "$share/man/man1" "$share/bash-completion/completions" "$share/fish/vendor_completions.d"
    cp "$unpacked"/man/*.1 "$share/man/man1/"
    cp "$unpacked/completions/aweigh.bash" "$share/bash-completion/completions/aweigh"
    cp "$unpacked/completions/aweigh.fish" "$share/fish/vendor_completions.d/"
fi

printf '%s is installed in %s\n' "$("$folder/aweigh" --version)" "$folder"
case :$PATH: in
*:"$folder":*) ;;
*) printf 'Add it to PATH: export PATH="%s:$PATH"\n' "$folder" ;;
esac
if [ "$(uname -s)" = Linux ] && ! "$folder/aweigh" devices >/dev/null 2>&1; then
    printf 'No GPU and no software driver was found; on Debian and Ubuntu: apt-get install mesa-vulkan-drivers\n'
fi
