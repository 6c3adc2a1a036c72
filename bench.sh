#!/usr/bin/env bash
# Measures pool beside its peers in one run on one machine, and prints tables for benches/RESULTS.md. Ratios are
# what counts. Needs terraform, PostgreSQL 15 (the package postgresql),
# dockerd and podman, python3, and moto in `target/checkers` (`./test.sh` puts it there).
#   ./bench.sh [--quick] [apply|serve|docker|ec2]
set -euo pipefail
cd "$(dirname "$0")"
what=all
arguments=()
for argument in "$@"; do
  case $argument in apply|serve|docker|ec2) what=$argument ;; *) arguments+=("$argument") ;; esac
done
cargo build --release --locked --quiet
cargo build --release --locked --quiet -p pool-load
is_wanted() { [ "$what" = all ] || [ "$what" = "$1" ]; }
if is_wanted apply; then python3 benches/bench.py "${arguments[@]}"; fi
if is_wanted serve; then python3 benches/serve.py "${arguments[@]}"; fi
if is_wanted docker; then python3 benches/docker.py "${arguments[@]}"; fi
if is_wanted ec2; then python3 benches/ec2.py "${arguments[@]}"; fi
