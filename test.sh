#!/usr/bin/env bash
# Everything, in one command, on a fresh machine: installs what the tests need, checks format, lints and
# docs, starts a dockerd and a podman of its own, runs every test, stops them, and ends with the runner's closing line.
set -euo pipefail
cd "$(dirname "$0")"
export CI="${CI:-true}"

# ps, unshare, mount and python3 are what the tests look at workers with and run as workers; strace counts syncs.
need=()
command -v ps >/dev/null || need+=(procps)
command -v setsid >/dev/null || need+=(util-linux)
command -v unshare >/dev/null || need+=(util-linux)
command -v mount >/dev/null || need+=(mount)
command -v strace >/dev/null || need+=(strace)
command -v python3 >/dev/null || need+=(python3)
# Engines for containers, and the busybox that their images are made from.
command -v dockerd >/dev/null || need+=(docker.io)
command -v docker >/dev/null || need+=(docker.io)
command -v podman >/dev/null || need+=(podman)
command -v runc >/dev/null || need+=(runc)
command -v iptables >/dev/null || need+=(iptables)
busybox --help 2>/dev/null | grep -q BusyBox || need+=(busybox-static)
command -v docker-registry >/dev/null || need+=(docker-registry)
command -v wget >/dev/null || need+=(wget)
# What the examples of providers are made of.
command -v jq >/dev/null || need+=(jq)
command -v flock >/dev/null || need+=(util-linux)
# Language servers and validators, by which editors and pipelines read the schema.
command -v curl >/dev/null || need+=(curl)
command -v git >/dev/null || need+=(git)
command -v node >/dev/null || need+=(nodejs)
command -v npm >/dev/null || need+=(npm)
# Shells that complete, and the programs that the unit and the alert rules are for.
command -v zsh >/dev/null || need+=(zsh)
command -v fish >/dev/null || need+=(fish)
command -v systemd-analyze >/dev/null || need+=(systemd)
command -v promtool >/dev/null || need+=(prometheus)
python3 -c 'import ensurepip' 2>/dev/null || need+=(python3-venv)
[ -x /usr/bin/python3 ] || [ -x /usr/local/bin/python3 ] || need+=(python3-minimal)
if [ ${#need[@]} -gt 0 ]; then
  sudo=""
  [ "$(id -u)" = 0 ] || sudo="sudo"
  $sudo apt-get update -qq
  $sudo apt-get install -y -qq --no-install-recommends "${need[@]}"
fi

cargo fmt --all --check
cargo clippy --workspace --all-targets --locked -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet

npm ci --prefix tests/editors --silent
[ -x target/checkers/bin/python ] || python3 -m venv target/checkers
target/checkers/bin/pip install --quiet --disable-pip-version-check -r tests/editors/requirements.txt -r tests/ec2/requirements.txt

# Built before the engines start: nobody waits for them meanwhile.
cargo test --workspace --locked --no-run

# As people install it, but for the profile.
cargo install --path . --locked --debug --quiet --root target/installed --target-dir target --force
target/installed/bin/pool version

log=$(mktemp)
engines=$(mktemp -d)
trap 'rm -f "$log"; tests/engines.sh down "$engines" || true' EXIT
tests/engines.sh up "$engines"
. "$engines/env"
# With this no test that needs an engine may say that it was not run.
export POOL_TEST_ENGINES=required POOL_TEST_EDITORS=required
cargo test --workspace --locked 2>&1 | tee "$log"

# One closing line over all test binaries, in the form that readers of logs look for.
awk '/^test result:/ { passed += $4; failed += $6; skipped += $8 }
     END { printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped }' "$log"
