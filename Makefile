# The verbs of the project. Everything here works on a fresh clone.

GO     ?= go
TOOLS  ?= $(or $(LAMINA_TOOLS),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/lamina/bin)
LDFLAGS = -s -w

.PHONY: all build demo setup lint unit test integration bench clean

all: build

# A static binary: no cgo, nothing to install beside it.
build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/lamina ./cmd/lamina

# Mount an image from a registry on this machine, look into it, run from it.
demo:
	hack/demo.sh

setup:
	hack/setup.sh

lint:
	hack/setup.sh tools
	LAMINA_TOOLS=$(TOOLS) hack/lint.sh

# Code of one goroutine, which has no races to detect: it is tested five times as
# fast without the detector. imports_test.go sees that it stays so.
SINGLE = ./layer/checkpoint ./layer/tarscan ./published/soci

# Needs only Go: no root, no FUSE, no network beyond loopback.
unit:
	$(GO) test $(SINGLE)
	$(GO) test -race $$($(GO) list ./... | grep -vxF "$$($(GO) list $(SINGLE))")

# Needs root, FUSE and what hack/setup.sh installs; builds the test images once.
integration:
	hack/setup.sh packages
	$(GO) test -count=1 -tags integration -timeout 45m ./integration/

test:
	.ci/run

bench:
	hack/setup.sh packages
	$(GO) run ./bench

clean:
	rm -rf bin
