#!/usr/bin/env bash
# Formatting, vet, golangci-lint, whose staticcheck is the one there is, and a build
# for arm64, over the whole module.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=${LAMINA_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/lamina/bin}
export PATH=$tools:$PATH

# What a program wrote is as that program writes it.
unformatted=$(find . -name '*.go' -not -path './.cache/*' -print0 |
	xargs -0 -r grep -LZ '^// Code generated .* DO NOT EDIT\.$' | xargs -0 -r gofumpt -l)
if [ -n "$unformatted" ]; then
	printf 'not formatted by gofumpt:\n%s\n' "$unformatted" >&2
	exit 1
fi
go vet -tags integration ./...
golangci-lint run --build-tags integration ./...
# The other machine that images are made for: system calls have other types there.
GOARCH=arm64 CGO_ENABLED=0 go build ./...
