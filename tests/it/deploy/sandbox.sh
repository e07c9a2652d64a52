#!/usr/bin/env bash
# Runs a server as a container runtime or systemd would: in a root of its own
# that is read-only but for the folders of data and keys, as uid 65532 without privileges,
# with the ports as they stand in a network of its own. Then runs the probes,
# looks at what must hold, and stops the server by SIGTERM.
#
#   sandbox.sh WORK BINARY
#
# WORK/etc becomes /etc/bailiwick, WORK/data /var/lib/bailiwick and WORK/keys
# /var/lib/bailiwick-keys. WORK/commands
# sets `environment`, `server` and `http_port`, and the arrays of command lines
# `inside` and `outside`: probes in the server's root, and from without.
set -euo pipefail

if [[ ${SANDBOXED-} != yes ]]; then
    # Without root, a user namespace lends it for the mounts.
    borrow=(--user --map-root-user)
    [[ $EUID -ne 0 ]] || borrow=()
    SANDBOXED=yes REAL_ROOT=$((EUID == 0)) exec unshare "${borrow[@]}" \
        --mount --net --pid --fork --kill-child --mount-proc "$0" "$@"
fi

work=$1 binary=$2
root=$work/root
log=$work/log
fail() {
    printf 'sandbox: %s\n' "$*" >&2
    sed 's/^/server: /' "$log" >&2
    exit 1
}
read_only() { # read_only SOURCE TARGET
    mount --rbind "$1" "$2"
    mount -o remount,bind,ro "$2"
}

environment=() server=() inside=() outside=() http_port=
# shellcheck source=/dev/null
source "$work/commands"
: >"$log"

mkdir -p "$root"
mount -t tmpfs -o mode=0755 tmpfs "$root"
mkdir -p "$root"/{usr/bin,usr/lib,etc/bailiwick,var/lib/bailiwick,var/lib/bailiwick-keys,proc,dev}
for folder in /usr/lib /usr/lib64 /lib /lib64; do
    if [[ -L $folder ]]; then
        cp -P "$folder" "$root$folder"
    elif [[ -d $folder ]]; then
        mkdir -p "$root$folder"
        read_only "$folder" "$root$folder"
    fi
done
touch "$root/usr/bin/bailiwick" "$root/.setpriv" "$root/dev/null"
read_only "$binary" "$root/usr/bin/bailiwick"
read_only "$(command -v setpriv)" "$root/.setpriv"
mount --bind /dev/null "$root/dev/null"
mount --rbind /proc "$root/proc"
read_only "$work/etc" "$root/etc/bailiwick"
if [[ $REAL_ROOT -eq 1 ]]; then chown -R 65532:65532 "$work/data" "$work/keys"; fi
mount --bind "$work/data" "$root/var/lib/bailiwick"
mount --bind "$work/keys" "$root/var/lib/bailiwick-keys"
mount -o remount,bind,ro "$root"
ip link set lo up

box() { # box COMMAND...: in the server's root, as the server's user
    local enter=(chroot "$root" /.setpriv --reuid=65532 --regid=65532 --clear-groups
        --bounding-set=-all --inh-caps=-all --no-new-privs --)
    [[ $REAL_ROOT -eq 1 ]] || enter=(unshare --user --map-user=65532 --map-group=65532 --root="$root")
    exec env -i PATH="$PATH" HOME=/var/lib/bailiwick "${environment[@]}" "${enter[@]}" "$@"
}

if touch "$root/written" 2>/dev/null; then fail "the root file system can be written to"; fi

probe_inside() { (eval "box $1"); }
probe_outside() { eval "$1"; }

# A probe that passes without a server proves nothing.
for line in "${inside[@]}"; do
    if probe_inside "$line" >"$work/probe" 2>&1; then fail "'$line' passes without a server"; fi
done
for line in "${outside[@]}"; do
    if probe_outside "$line" >"$work/probe" 2>&1; then fail "'$line' passes without a server"; fi
done

(box "${server[@]}") >>"$log" 2>&1 &
pid=$!

until_passes() { # until_passes NAME COMMAND...
    local name=$1 deadline=$((SECONDS + 30))
    shift
    until "$@" >"$work/probe" 2>&1; do
        kill -0 "$pid" 2>/dev/null || fail "the server ended before '$name' passed"
        [[ $SECONDS -lt $deadline ]] || fail "'$name' did not pass in 30 s: $(cat "$work/probe")"
        sleep 0.1
    done
    printf 'sandbox: passed: %s\n' "$name"
}
for line in "${inside[@]}"; do until_passes "$line" probe_inside "$line"; done
for line in "${outside[@]}"; do until_passes "$line" probe_outside "$line"; done

answer=$(curl --silent --output /dev/null --write-out '%{http_code}' "http://127.0.0.1:$http_port/v1/tasks") || true
[[ $answer == 401 ]] || fail "a call without a credential was answered with $answer, not 401"
if [[ $REAL_ROOT -eq 1 ]]; then
    for line in $'Uid:\t65532\t65532' $'CapEff:\t0000000000000000' $'NoNewPrivs:\t1'; do
        grep -q "^$line" "/proc/$pid/status" || fail "the process is not as it should be: no $line"
    done
fi
[[ -n $(ls -A "$work/data") ]] || fail "nothing was stored in the data folder"

kill -TERM "$pid"
(sleep 30 && kill -KILL "$pid") 2>/dev/null &
status=0
wait "$pid" || status=$?
[[ $status -eq 0 ]] || fail "the server ended with $status after SIGTERM"
echo "sandbox: stopped cleanly"
