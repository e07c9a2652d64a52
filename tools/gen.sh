#!/usr/bin/env bash
# Writes the generated files of docs/reference. With --check it writes nothing,
# and fails when a file in the tree differs from what would be written.
#
# To add one: a line `write FILE COMMAND...`; the command prints the file.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mode=${1-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
stale=0

write() { # write FILE COMMAND...
    local file=$1
    shift
    "$@" >"$work/out"
    if [[ $mode != --check ]]; then
        mkdir -p "$(dirname "$file")"
        cp "$work/out" "$file"
        echo "gen: $file"
    elif ! diff -u "$file" "$work/out"; then
        stale=1
    fi
}

buf build proto --as-file-descriptor-set --output "$work/descriptors.json"

write docs/reference/rpcs.md python3 tools/reference.py rpcs "$work/descriptors.json"
write docs/reference/reasons.md python3 tools/reference.py reasons "$work/descriptors.json"
write docs/reference/permissions.md python3 tools/reference.py permissions \
    "$work/descriptors.json" src/domain/permission.rs

if [[ $stale -ne 0 ]]; then
    echo "gen: generated files are stale: run make gen and commit them" >&2
    exit 1
fi
