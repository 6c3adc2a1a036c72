"""Measures `pool serve`, with its own empty endpoint and PostgreSQL as peers in the same run.

The load comes from `benches/load` over keep-alive connections on the same machine. Ratios are of interleaved
medians. Nothing here asserts: a bar that is missed is printed as missed.
"""

import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
POOL = os.path.join(ROOT, "target", "release", "pool")
LOAD = os.path.join(ROOT, "target", "release", "pool-load")
PG = "/usr/lib/postgresql/15/bin"
QUICK = "--quick" in sys.argv
SECONDS = 2 if QUICK else 4
RUNS = 3 if QUICK else 7
rows = []


def row(what, ours, peer, ratio, bar, kept):
    word = {True: "kept", False: "**missed**", None: "stated"}[kept]
    rows.append(f"| {what} | {ours} | {peer} | {ratio} | {bar} | {word} |")
    print(rows[-1], flush=True)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class World:
    """A pool of simulated workers in a folder of its own, served."""

    def __init__(self, size, **more):
        self.folder = tempfile.mkdtemp(prefix="pool-bench-")
        self.config = {
            "pool_id": "bench", "worker_type": "vm", "provider": "sim", "fixed_size": size,
            "worker_config": {"image": "a", "cpu_cores": 1, "memory_mb": 64},
            "provisioning": {"max_concurrency": 100}, "update": {"max_surge": 100}, **more,
        }
        self.server = None
        self.apply()

    def write(self, name="pool.yaml", config=None):
        with open(os.path.join(self.folder, name), "w") as file:
            json.dump(config or self.config, file)

    def apply(self, name="pool.yaml", config=None):
        self.write(name, config)
        subprocess.run([POOL, "apply", name, "--auto-approve"], cwd=self.folder, check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def serve(self, *arguments):
        self.address = f"127.0.0.1:{free_port()}"
        self.server = subprocess.Popen(
            [POOL, "serve", "--listen", self.address, "--log", "warn", *arguments], cwd=self.folder,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        begin = time.perf_counter()
        while True:
            try:
                self.get("/healthz")
                return time.perf_counter() - begin
            except OSError:
                time.sleep(0.002)

    def stop(self):
        self.server.send_signal(signal.SIGTERM)
        self.server.wait()

    def get(self, path):
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=10) as answer:
            return answer.read().decode()

    def post(self, path, body):
        request = urllib.request.Request(f"http://{self.address}{path}", json.dumps(body).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def load(self, mode, connections, seconds=SECONDS):
        told = subprocess.run([LOAD, self.address, mode, str(connections), str(seconds), "bench"],
                              check=True, capture_output=True, text=True)
        return json.loads(told.stdout)

    def ready(self):
        while True:
            try:
                self.get("/readyz")
                return
            except OSError:
                time.sleep(0.05)

    def ticks(self):
        with open(f"/proc/{self.server.pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    def resident_mib(self):
        with open(f"/proc/{self.server.pid}/status") as status:
            line = next(line for line in status if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024

    def log_mib(self):
        path = os.path.join(self.folder, ".pool", "state.db-wal")
        return os.path.getsize(path) / 2**20

    def remove(self):
        self.stop()
        shutil.rmtree(self.folder)


def interleaved(world, connections):
    """Returns medians of the empty endpoint and of cycles, taken in turns."""
    empty, cycles = [], []
    for _ in range(RUNS):
        empty.append(world.load("healthz", connections))
        cycles.append(world.load("cycle", connections))
    rate = lambda runs: statistics.median(run["rate"] for run in runs)
    p99 = statistics.median(run["p99_ms"] for run in cycles)
    return rate(empty), rate(cycles), p99


def throughput():
    world = World(1000)
    world.serve()
    world.ready()
    empty, cycles, p99 = interleaved(world, 64)
    ratio = cycles / empty
    row("lease requests a second, 64 connections", f"{cycles:,.0f}", f"/healthz {empty:,.0f}",
        f"{ratio:.2f}", "≥ 0.30", ratio >= 0.30)
    row("their p99, 64 connections", f"{p99:.2f} ms", "", "", "< 5 ms", p99 < 5)
    keyed = statistics.median(world.load("keyed", 64)["rate"] for _ in range(RUNS))
    row("the same with idempotency keys", f"{keyed:,.0f}", f"/healthz {empty:,.0f}", f"{keyed / empty:.2f}",
        "≥ 0.20", keyed / empty >= 0.20)
    one = statistics.median(world.load("cycle", 1)["p99_ms"] for _ in range(RUNS))
    row("p99 of one connection", f"{one:.2f} ms", "", "", "< 1.5 ms", one < 1.5)
    beside(world)
    most = []
    watched = threading.Thread(target=lambda: most.append(world.load("cycle", 64, 15 if QUICK else 60)))
    watched.start()
    largest = 0
    while watched.is_alive():
        largest = max(largest, world.log_mib())
        time.sleep(0.1)
    row("write-ahead log after a minute at 64 connections", f"{largest:.0f} MiB", "", "", "< 64 MB", largest < 61)
    world.remove()
    return cycles


def beside(world):
    """Leases while another process applies 1,000 workers to the same state."""
    other = dict(world.config, pool_id="other")
    world.write("other.yaml", other)
    plan = os.path.join(world.folder, "both")
    os.makedirs(plan)
    for name, config in (("bench", world.config), ("other", other)):
        with open(os.path.join(plan, f"{name}.json"), "w") as file:
            json.dump(config, file)
    begin = time.perf_counter()
    apply = subprocess.Popen([POOL, "apply", "both", "--auto-approve"], cwd=world.folder,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    p99 = []
    while apply.poll() is None or not p99:
        p99.append(world.load("cycle", 64, 0.5)["p99_ms"])
    took = time.perf_counter() - begin
    worst = max(p99)
    row(f"p99 beside an apply of 1,000 workers ({took:.1f} s)", f"{worst:.2f} ms", "", "", "< 10 ms", worst < 10)


def postgres(cycles):
    """The queue that everybody builds: a table, FOR UPDATE SKIP LOCKED, pgbench."""
    folder = tempfile.mkdtemp(prefix="pool-bench-pg-")
    os.chmod(folder, 0o777)
    port = free_port()
    as_postgres = lambda *command: ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *command] \
        if os.geteuid() == 0 else list(command)
    data = os.path.join(folder, "data")
    subprocess.run(as_postgres(f"{PG}/initdb", "-D", data, "-U", "bench", "-A", "trust"), check=True,
                   stdout=subprocess.DEVNULL)
    server = subprocess.Popen(
        as_postgres(f"{PG}/postgres", "-D", data, "-p", str(port), "-k", folder, "-c", "listen_addresses="),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    psql = lambda sql: subprocess.run([f"{PG}/psql", "-h", folder, "-p", str(port), "-U", "bench", "-q", "-c", sql,
                                       "postgres"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(100):
        time.sleep(0.1)
        try:
            psql("SELECT 1")
            break
        except subprocess.CalledProcessError:
            continue
    psql("CREATE TABLE worker (id int PRIMARY KEY, phase text, lease bigint, uses int); "
         "CREATE TABLE lease (id bigserial PRIMARY KEY, worker int, holder text, expires_at timestamptz, "
         "ended_at timestamptz); CREATE UNIQUE INDEX lease_open ON lease (worker) WHERE ended_at IS NULL; "
         "CREATE INDEX lease_expiry ON lease (expires_at) WHERE ended_at IS NULL; "
         "CREATE TABLE event (seq bigserial PRIMARY KEY, at timestamptz, worker int, kind text, who text); "
         "INSERT INTO worker SELECT g, 'ready', NULL, 0 FROM generate_series(1, 1000) g; "
         "CREATE INDEX worker_free ON worker (id) WHERE phase = 'ready' AND lease IS NULL; ANALYZE")
    script = os.path.join(folder, "cycle.sql")
    with open(script, "w") as file:
        # A cycle is two durable transactions that write what ours do: the worker, the lease, the event.
        file.write(
            "BEGIN;\nSELECT id AS worker FROM worker WHERE phase = 'ready' AND lease IS NULL ORDER BY id LIMIT 1 "
            "FOR UPDATE SKIP LOCKED \\gset\n"
            "INSERT INTO lease (worker, holder, expires_at) VALUES (:worker, 'me', now() + interval '10 min') "
            "RETURNING id AS lease \\gset\n"
            "UPDATE worker SET lease = :lease, uses = uses + 1 WHERE id = :worker;\n"
            "INSERT INTO event (at, worker, kind, who) VALUES (now(), :worker, 'lease_granted', 'me');\nCOMMIT;\n"
            "BEGIN;\nUPDATE lease SET ended_at = now() WHERE id = :lease;\n"
            "UPDATE worker SET lease = NULL WHERE id = :worker;\n"
            "INSERT INTO event (at, worker, kind, who) VALUES (now(), :worker, 'lease_ended', 'me');\nCOMMIT;\n")
    rates = []
    for _ in range(3):
        told = subprocess.run([f"{PG}/pgbench", "-h", folder, "-p", str(port), "-U", "bench", "-n", "-c", "64", "-j",
                               "2", "-M", "prepared", "-T", str(SECONDS), "-f", script, "postgres"],
                              check=True, capture_output=True, text=True).stdout
        rates.append(float(next(line for line in told.splitlines() if line.startswith("tps")).split()[2]))
    server.send_signal(signal.SIGINT)
    server.wait()
    shutil.rmtree(folder, ignore_errors=True)
    theirs, ours = statistics.median(rates), cycles / 2
    row("acquire and release, cycles a second", f"{ours:,.0f}", f"PostgreSQL 15, pgbench, 64 clients: {theirs:,.0f}",
        f"{ours / theirs:.1f}×", "≥ 10×", ours / theirs >= 10)


def sizes():
    world = World(10_000)
    world.serve()
    world.ready()
    time.sleep(6)
    before, begin = world.ticks(), time.perf_counter()
    time.sleep(10 if QUICK else 30)
    share = (world.ticks() - before) / os.sysconf("SC_CLK_TCK") / (time.perf_counter() - begin)
    row("probing 10,000 workers at defaults", f"{share:.1%} of a core", "", "", "< 10 %", share < 0.10)
    world.remove()
    rare = {"health_check": {"interval": "10m", "freshness": "1h"}}
    p50 = {}
    for size in (1_000, 100_000):
        world = World(size, **rare)
        begin = time.perf_counter()
        world.serve()
        world.post("/v1/leases", {"pool": "bench", "holder": "first"})
        first, resident = time.perf_counter() - begin, world.resident_mib()
        if size == 100_000:
            row("100,000 workers: start to first lease", f"{first * 1000:.0f} ms", "", "", "< 500 ms", first < 0.5)
            row("100,000 workers: resident then", f"{resident:.0f} MiB", "", "", "< 80 MB", resident < 76)
        time.sleep(5)
        runs = [world.load("cycle", 1) for _ in range(RUNS)]
        p50[size] = statistics.median(run["p50_ms"] for run in runs)
        if size == 100_000:
            row("100,000 workers: resident once all were looked at", f"{world.resident_mib():.0f} MiB", "", "",
                "", None)
        world.remove()
    ratio = p50[100_000] / p50[1_000]
    row("lease latency at 100,000 workers against 1,000", f"{p50[100_000]:.2f} ms", f"{p50[1_000]:.2f} ms",
        f"{ratio:.2f}", "≤ 1.5", ratio <= 1.5)


def local(**more):
    folder = World.__new__(World)
    folder.folder, folder.server = tempfile.mkdtemp(prefix="pool-bench-"), None
    folder.config = {
        "pool_id": "bench", "worker_type": "process", "fixed_size": 5,
        "worker_config": {"image": "/bin/sleep", "command": ["infinity"], "cpu_cores": 1, "memory_mb": 16}, **more,
    }
    folder.apply()
    folder.serve()
    return folder


def deaths():
    """How long a dead worker goes unnoticed, and how soon its replacement can be leased."""
    world = local()
    world.ready()
    noticed, replaced = [], []
    for slot in range(3):
        workers = json.loads(world.get("/v1/workers"))["workers"]
        pid = int(next(w for w in workers if w["slot"] == slot)["attributes"]["pid"])
        begin = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        phase = lambda: [w["phase"] for w in json.loads(world.get("/v1/workers"))["workers"]]
        while all(word == "ready" for word in phase()):
            time.sleep(0.002)
        noticed.append(time.perf_counter() - begin)
        while phase() != ["ready"] * 5:
            time.sleep(0.002)
        replaced.append(time.perf_counter() - begin)
        # The next one must not wait for the back-off of this slot.
    row("a killed process: noticed by event", f"{statistics.median(noticed) * 1000:.0f} ms", "", "", "< 1 s",
        max(noticed) < 1)
    # The provider takes 100 ms to see that a new process lives.
    row("its replacement ready", f"{statistics.median(replaced) * 1000:.0f} ms", "provider 100 ms", "",
        "< provider + 1 s", max(replaced) < 1.1)
    world.stop()
    subprocess.run([POOL, "destroy", "--auto-approve"], cwd=world.folder, check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(world.folder)
    # By probe alone: the simulated cloud tells nobody.
    world = World(5)
    world.serve()
    world.ready()
    cloud = os.path.join(world.folder, ".pool", "sim", "cloud.jsonl")
    ids = [json.loads(line)["put"]["observed"]["provider_id"] for line in open(cloud) if '"put"' in line]
    begin = time.perf_counter()
    with open(cloud, "a") as file:
        file.write(json.dumps({"remove": {"provider_id": ids[2], "listed_until": 0}}) + "\n")
    while all(w["phase"] == "ready" and w["generation"] == 1
              for w in json.loads(world.get("/v1/workers"))["workers"]):
        time.sleep(0.01)
    took = time.perf_counter() - begin
    row("a worker that vanished: noticed by probe alone, defaults", f"{took:.1f} s", "", "", "< 20 s", took < 20)
    world.remove()


print("| what | pool | peer | ratio | bar | |\n| --- | --- | --- | --- | --- | --- |")
rate = throughput()
postgres(rate)
sizes()
deaths()
