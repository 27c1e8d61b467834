#!/usr/bin/env bash
# Makes a Debian machine able to build, test and measure lamina.
#
#   hack/setup.sh            packages and lint tools
#   hack/setup.sh packages   only the packages
#   hack/setup.sh demo       only the packages that `make demo` needs
#   hack/setup.sh tools      only the lint tools
#
# Nothing is done twice: on a machine that has everything it returns in well
# under a second and talks to nobody. Packages come from the machine's own apt
# sources, the lint tools from the Go module proxy, at the versions below.
set -euo pipefail

# The versions that `make lint` was written for; a newer linter may find more.
gofumpt=mvdan.cc/gofumpt@v0.12.0
golangci=github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

demo_packages=(busybox-static ca-certificates fuse3)

test_packages=(
	"${demo_packages[@]}"
	# what makes and reads images
	mmdebstrap umoci skopeo buildah podman
	# what serves and runs them
	docker-registry apache2-utils openssl containerd runc crun
	# what lamina is compared with
	fuse-overlayfs erofs-utils fio
	# what the tests of hostile and odd trees need
	attr acl libcap2-bin tar zstd pigz e2fsprogs
	# rootless mounts
	uidmap util-linux
	# a C compiler for the race detector, and the usual company
	gcc libc6-dev curl git make procps psmisc rsync iproute2
)

tools=${LAMINA_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/lamina/bin}

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# install_packages NAME... installs those of the named packages that are missing.
install_packages() {
	local missing=() p
	for p in "$@"; do
		[ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	[ "$(id -u)" = 0 ] || die "packages are missing and only root can install them: ${missing[*]}"
	say "installing ${missing[*]}"
	local opts=(-y -q -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
	export DEBIAN_FRONTEND=noninteractive
	# An unrelated source that fails to update must not stop us: whether the
	# packages can be had is what the next line finds out.
	apt-get "${opts[@]}" update </dev/null >&2 || say "apt-get update had errors; going on"
	apt-get "${opts[@]}" install --no-install-recommends "${missing[@]}" </dev/null >&2
}

# install_tools installs the lint tools, each under its version, so that a
# change of version above is noticed.
install_tools() {
	command -v go >/dev/null || die "no go command: lamina needs Go $(sed -n 's/^go //p' "$(dirname "$0")/../go.mod") or later"
	local t stamp
	mkdir -p "$tools"
	for t in "$gofumpt" "$golangci"; do
		stamp=$tools/.$(basename "${t%@*}")-${t##*@}-$(go env GOVERSION)
		[ -e "$stamp" ] && continue
		say "go install $t"
		(cd / && GOFLAGS=-buildvcs=false GOBIN=$tools CGO_ENABLED=0 go install "$t" </dev/null >&2)
		: >"$stamp"
	done
}

case ${1:-all} in
all) install_packages "${test_packages[@]}"; install_tools ;;
packages) install_packages "${test_packages[@]}" ;;
demo) install_packages "${demo_packages[@]}" ;;
tools) install_tools ;;
*) die "unknown part $1" ;;
esac
