#!/usr/bin/env bash
# Measures pool beside its peers in one run on one machine, and prints tables for benches/RESULTS.md. Ratios are
# what counts. Needs terraform, PostgreSQL 15 (Debian's postgresql) and python3.
#   ./bench.sh [--quick] [apply|serve]
set -euo pipefail
cd "$(dirname "$0")"
what=all
arguments=()
for argument in "$@"; do
  case $argument in apply|serve) what=$argument ;; *) arguments+=("$argument") ;; esac
done
cargo build --release --locked --quiet
cargo build --release --locked --quiet -p pool-load
[ "$what" = serve ] || python3 benches/bench.py "${arguments[@]}"
[ "$what" = apply ] || python3 benches/serve.py "${arguments[@]}"
