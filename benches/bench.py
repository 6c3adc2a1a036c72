"""Runs pool and Terraform side by side and prints medians and ratios as a Markdown table.

Whole processes, timed from outside, on the simulated provider; Terraform manages `terraform_data`, which is
built in and calls nothing. Nothing here asserts: a bar that is missed is printed as missed.
"""

import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
POOL = os.path.join(ROOT, "target", "release", "pool")
QUICK = "--quick" in sys.argv  # fewer Terraform runs
rows = []


def run(command, folder, codes=(0,)):
    """Returns the wall seconds of one process."""
    begin = time.perf_counter()
    done = subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wall = time.perf_counter() - begin
    if done.returncode not in codes:
        sys.exit(f"{command} ended with {done.returncode}: {done.stderr.decode()[-2000:]}")
    return wall


def median(make, times):
    return statistics.median(make() for _ in range(times))


def peak_mib(command, folder):
    """Returns the peak resident memory of one process in MiB."""
    done = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, _, usage = os.wait4(done.pid, 0)
    return usage.ru_maxrss / 1024


def pool_file(folder, size, image, concurrency=100):
    with open(os.path.join(folder, "pool.yaml"), "w") as file:
        json.dump({
            "pool_id": "bench", "worker_type": "vm", "provider": "sim", "fixed_size": size,
            "worker_config": {"image": image, "cpu_cores": 1, "memory_mb": 64},
            "provisioning": {"max_concurrency": concurrency},
            "update": {"max_surge": 100},
        }, file)


def world(size, image="a", concurrency=100, settings=None):
    folder = tempfile.mkdtemp(prefix="pool-bench-")
    pool_file(folder, size, image, concurrency)
    if settings:
        os.makedirs(os.path.join(folder, ".pool", "sim"))
        with open(os.path.join(folder, ".pool", "sim", "settings.json"), "w") as file:
            json.dump(settings, file)
    return folder


APPLY = [POOL, "apply", "pool.yaml", "--auto-approve"]
PLAN = [POOL, "plan", "pool.yaml"]


def row(what, ours, peer, ratio, bar, kept):
    rows.append((what, ours, peer, ratio, bar, "kept" if kept else "**missed**"))
    print(*rows[-1], sep=" | ", flush=True)


def terraform_folder(size, value):
    folder = tempfile.mkdtemp(prefix="terraform-bench-")
    terraform_file(folder, size, value)
    run(["terraform", "init", "-input=false"], folder)
    return folder


def terraform_file(folder, size, value):
    with open(os.path.join(folder, "main.tf"), "w") as file:
        file.write(f'resource "terraform_data" "w" {{\n  count = {size}\n  input = "{value}"\n'
                   f'  triggers_replace = "{value}"\n}}\n')


def against_terraform(size):
    once = 1 if QUICK else 3
    terraform = terraform_folder(size, "a")
    tf_apply = run(["terraform", "apply", "-auto-approve", "-input=false", "-parallelism=100"], terraform)
    tf_noop = median(lambda: run(["terraform", "plan", "-input=false"], terraform), once)
    terraform_file(terraform, size, "b")
    tf_replace = median(lambda: run(["terraform", "plan", "-input=false"], terraform), once)

    def fresh_apply():
        folder = world(size)
        wall = run(APPLY, folder)
        shutil.rmtree(folder)
        return wall

    apply = median(fresh_apply, 5)
    folder = world(size)
    run(APPLY, folder)
    noop = median(lambda: run(PLAN, folder), 11)
    pool_file(folder, size, "b")
    replace = median(lambda: run(PLAN, folder), 11)
    shutil.rmtree(folder)
    shutil.rmtree(terraform)
    for what, ours, peer, bar in [
        (f"no-op plan of {size} workers", noop, tf_noop, 200),
        (f"plan that replaces all {size}", replace, tf_replace, 50),
        (f"apply of {size} new workers, concurrency 100", apply, tf_apply, 100),
    ]:
        ratio = peer / ours
        row(what, f"{ours * 1000:.0f} ms", f"{peer:.1f} s", f"{ratio:.0f}×", f"≥ {bar}×", ratio >= bar)


def growth():
    per_worker = {}
    for size, times in [(1_000, 7), (10_000, 3), (100_000, 1 if QUICK else 3)]:
        applies, plans, replaces = [], [], []
        for _ in range(times):
            folder = world(size)
            applies.append(run(APPLY, folder))
            plans.append(median(lambda: run(PLAN, folder), 3))
            pool_file(folder, size, "b")
            replaces.append(run(PLAN, folder))
            if size == 100_000:
                memory = peak_mib(PLAN, folder)
            shutil.rmtree(folder)
        per_worker[size] = [statistics.median(times) / size * 1e6 for times in (applies, plans, replaces)]
    for number, what in enumerate(["apply", "no-op plan", "plan that replaces all"]):
        small, middle, large = (per_worker[size][number] for size in (1_000, 10_000, 100_000))
        ratio = large / small
        row(f"{what}: µs per worker at 100,000 against 1,000", f"{large:.1f}", f"{small:.1f}",
            f"{ratio:.2f} ({middle:.1f} at 10,000)", "≤ 1.5", ratio <= 1.5)
    rows.append(("peak memory of the plan that replaces 100,000", f"{memory:.0f} MiB", "", "", "stated", ""))


def latency():
    latency_ms = 400
    folder = world(50, concurrency=5, settings={"latency_ms": latency_ms})
    wall = run(APPLY, folder)
    shutil.rmtree(folder)
    ideal = 10 * latency_ms / 1000
    row(f"50 workers, concurrency 5, provider latency {latency_ms} ms", f"{wall:.3f} s",
        f"10 L = {ideal:.1f} s", f"{wall / ideal:.3f}", "≤ 1.05", wall / ideal <= 1.05)


def version():
    wall = median(lambda: run([POOL, "--version"], ROOT), 21)
    row("`pool --version`", f"{wall * 1000:.1f} ms", "", "", "< 10 ms", wall < 0.010)


version()
latency()
growth()
if shutil.which("terraform"):
    against_terraform(5_000)
else:
    print("terraform is not on this machine: the ratios against it were not measured")
commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
print(f"\n## {time.strftime('%Y-%m-%d')}, commit {commit.stdout.strip()}, {os.cpu_count()} cores, "
      f"{memory_gib:.0f} GiB, {platform.system()} {platform.machine()}\n")
print("| what | pool | peer | ratio | bar | |\n| --- | --- | --- | --- | --- | --- |")
for line in rows:
    print("| " + " | ".join(line) + " |")
