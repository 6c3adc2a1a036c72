#!/usr/bin/env bash
# Measures pool beside Terraform in one run on one machine, and prints a table for benches/RESULTS.md.
# Every figure is a median over whole processes; ratios are what counts. Needs terraform and python3.
set -euo pipefail
cd "$(dirname "$0")"
cargo build --release --locked --quiet
exec python3 benches/bench.py "$@"
