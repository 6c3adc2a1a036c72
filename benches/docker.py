"""Runs pool beside the engine's own client on a dockerd of its own, and prints ratios as a Markdown table.

Nothing here asserts: a bar that is missed is printed as missed.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
POOL = os.path.join(ROOT, "target", "release", "pool")
ROUNDS = 3 if "--quick" in sys.argv else 5
SIZE, CONCURRENCY = 50, 5
rows = []


def row(what, ours, peer, ratio, bar, kept):
    rows.append((what, ours, peer, ratio, bar, kept and ("kept" if kept is True else kept) or "**missed**"))
    print(*rows[-1], sep=" | ", flush=True)


def docker(host, *arguments):
    return subprocess.run(["docker", "-H", host, *arguments], check=True, capture_output=True, text=True).stdout


def clean(host):
    left = docker(host, "ps", "-aq").split()
    if left:
        docker(host, "rm", "-f", *left)


def by_client(host):
    """Seconds of a plain loop of parallel `docker run`."""
    script = (f"seq {SIZE} | xargs -P {CONCURRENCY} -I N docker -H {host} run -d --name bench-N --memory 16m "
              f"--memory-swap 16m --cpus 1 --label a=b pool-test:1")
    begin = time.perf_counter()
    subprocess.run(["sh", "-c", script], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def folder(host, size, **extra):
    path = tempfile.mkdtemp(prefix="pool-bench-")
    with open(os.path.join(path, "pool.yaml"), "w") as file:
        json.dump({
            "version": 1,
            "providers": {"d": {"type": "docker", "host": host, "stop_grace": "0s", "pull": "never"}},
            "pools": [{
                "pool_id": "bench", "worker_type": "container", "provider": "d", "fixed_size": size,
                "worker_config": {"image": "pool-test:1", "cpu_cores": 1, "memory_mb": 16},
                "provisioning": {"max_concurrency": CONCURRENCY}, **extra,
            }],
        }, file)
    return path


def pool(path, *arguments):
    begin = time.perf_counter()
    subprocess.run([POOL, *arguments], cwd=path, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begin


def creating(host):
    ours, peers = [], []
    for _ in range(ROUNDS):  # in turns: the engine gets slower with its age
        peers.append(by_client(host))
        clean(host)
        path = folder(host, SIZE)
        ours.append(pool(path, "apply", "pool.yaml", "--auto-approve"))
        pool(path, "destroy", "--auto-approve")
        shutil.rmtree(path)
    mine, theirs = statistics.median(ours), statistics.median(peers)
    row(f"{SIZE} containers, concurrency {CONCURRENCY}", f"{mine:.2f} s", f"{CONCURRENCY} × docker run: {theirs:.2f} s",
        f"{mine / theirs:.2f}", "≤ 1.1", mine / theirs <= 1.1)


def noticing(host):
    path = folder(host, 5)
    pool(path, "apply", "pool.yaml", "--auto-approve")
    server = subprocess.Popen([POOL, "serve", "--listen", "127.0.0.1:7171"], cwd=path, stderr=subprocess.DEVNULL)

    def workers():
        with urllib.request.urlopen("http://127.0.0.1:7171/v1/workers") as answer:
            return json.load(answer)["workers"]

    def settled():
        try:
            with urllib.request.urlopen("http://127.0.0.1:7171/readyz") as answer:
                return answer.status == 200
        except OSError:
            return False

    while not settled():
        time.sleep(0.05)
    noticed = []
    for _ in range(ROUNDS):
        victim = next(worker for worker in workers() if worker["phase"] == "ready")
        begin = time.perf_counter()
        docker(host, "kill", victim["attributes"]["container_id"])
        while any(w["name"] == victim["name"] and w["phase"] == "ready" for w in workers()):
            time.sleep(0.002)
        noticed.append(time.perf_counter() - begin)
        while sum(worker["phase"] == "ready" for worker in workers()) < 5:
            time.sleep(0.05)
        time.sleep(11)  # the pause between two replacements of a slot
    server.terminate()
    server.wait()
    slowest = max(noticed)
    row("a killed container: noticed, docker kill included", f"{slowest * 1000:.0f} ms (slowest of {ROUNDS})", "", "",
        "< 1 s", slowest < 1)
    pool(path, "destroy", "--auto-approve")
    shutil.rmtree(path)


def observing(host):
    path = folder(host, 500, network="none")  # a bridge has 253 addresses
    pool(path, "apply", "pool.yaml", "--auto-approve")
    planned = statistics.median(pool(path, "plan", "pool.yaml") for _ in range(ROUNDS))
    begin = time.perf_counter()
    docker(host, "ps", "-a", "--filter", "label=pool.provider=d")
    listed = time.perf_counter() - begin
    row("a plan that observes 500 containers", f"{planned * 1000:.0f} ms", f"docker ps: {listed * 1000:.0f} ms",
        f"{planned / listed:.2f}", "stated", "one listing")
    pool(path, "destroy", "--auto-approve")
    shutil.rmtree(path)


def main():
    engines = tempfile.mkdtemp(prefix="pool-engines-")
    script = os.path.join(ROOT, "tests", "engines.sh")
    subprocess.run([script, "up", engines], check=True)
    host = f"unix://{engines}/docker.sock"
    try:
        creating(host)
        noticing(host)
        observing(host)
    finally:
        subprocess.run([script, "down", engines])
    print("\n| what | pool | peer | ratio | bar | |\n| --- | --- | --- | --- | --- | --- |")
    for cells in rows:
        print("| " + " | ".join(cells) + " |")


main()
