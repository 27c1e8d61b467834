#!/usr/bin/env bash
# lamina in a minute: packages if they are missing, the program, and a tour of it.
set -euo pipefail
cd "$(dirname "$0")/.."
hack/setup.sh demo
make -s build
exec go run ./integration/demo bin/lamina
