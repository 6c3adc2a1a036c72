"""Runs pool on moto's EC2 server behind the tests' proxy, and prints ratios as a Markdown table.

Nothing here asserts: a bar that is missed is printed as missed. Needs what `./test.sh` puts into `target/checkers`.
"""

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
POOL = os.path.join(ROOT, "target", "release", "pool")
CHECKERS = os.path.join(ROOT, "target", "checkers", "bin")
ROUNDS = 1 if "--quick" in sys.argv else 3
SIZE, CONCURRENCY, LATENCIES = 50, 5, (1.0, 2.0)
ENVIRONMENT = {**os.environ, "AWS_ACCESS_KEY_ID": "AKIAPOOLTESTS", "AWS_SECRET_ACCESS_KEY": "pool-tests-secret",
               "AWS_REGION": "eu-central-1", "AWS_EC2_METADATA_DISABLED": "true"}
rows = []


def row(what, ours, peer, ratio, bar, kept):
    rows.append((what, ours, peer, ratio, bar, kept and ("kept" if kept is True else kept) or "**missed**"))
    print(*rows[-1], sep=" | ", flush=True)


def asked(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data=data)) as answer:
        return answer.read()


def calls(proxy):
    counted = {}
    for call in json.loads(asked(f"{proxy}/-/calls")):
        counted[call["action"]] = counted.get(call["action"], 0) + 1
    return counted


def folder(proxy, size):
    path = tempfile.mkdtemp(prefix="pool-bench-")
    with open(os.path.join(path, "pool.yaml"), "w") as file:
        json.dump({
            "version": 1,
            "providers": {"aws": {"type": "ec2", "endpoint": proxy}},
            "pools": [{
                "pool_id": "bench", "worker_type": "vm", "provider": "aws", "fixed_size": size,
                "worker_config": {"image": "ami-12c6146b", "cpu_cores": 2, "memory_mb": 8192},
                "provisioning": {"max_concurrency": CONCURRENCY, "timeout": "10m"},
            }],
        }, file)
    return path


def pool(path, *arguments):
    begin = time.perf_counter()
    subprocess.run([POOL, *arguments], cwd=path, env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    return time.perf_counter() - begin


def forget(moto):
    """moto keeps what was terminated, and every call looks through that. Its first call reads what it knows of images."""
    asked(f"{moto}/moto-api/reset", {})
    script(moto, "ec2.describe_instances()")


def script(url, text):
    """Runs a line of boto3, and returns how long that took, without starting Python."""
    whole = ("import boto3, sys, time; from concurrent.futures import ThreadPoolExecutor; "
             "ec2 = boto3.client('ec2', region_name='eu-central-1', endpoint_url=sys.argv[1]); "
             f"begin = time.perf_counter(); {text}; print(time.perf_counter() - begin)")
    ran = subprocess.run([os.path.join(CHECKERS, "python"), "-c", whole, url], env=ENVIRONMENT, check=True,
                         stdout=subprocess.PIPE, text=True)
    return float(ran.stdout)


def creating(moto, proxy, faults):
    """The median time of an apply of new instances, and the calls of the last one."""
    took = []
    for _ in range(ROUNDS):
        forget(moto)
        path = folder(proxy, SIZE)
        asked(f"{proxy}/-/faults", faults)
        took.append(pool(path, "apply", "pool.yaml", "--auto-approve"))
        made = calls(proxy)
        shutil.rmtree(path)
    return statistics.median(took), made


def latency(moto, proxy, seconds):
    ideal = SIZE / CONCURRENCY * seconds
    ms = seconds * 1000
    took, _ = creating(moto, proxy, {"latency_ms": {"RunInstances": ms}})
    row(f"{SIZE} instances, concurrency {CONCURRENCY}, RunInstances takes L = {seconds:.0f} s: the whole apply",
        f"{took:.2f} s", f"10 L = {ideal:.1f} s", f"{took / ideal:.3f}", "≤ 1.1", took / ideal <= 1.1)
    if seconds != LATENCIES[0]:
        return
    forget(moto)
    asked(f"{proxy}/-/faults", {"latency_ms": {"RunInstances": ms}})
    run = "ec2.run_instances(ImageId='ami-12c6146b', InstanceType='m7i.large', MinCount=1, MaxCount=1)"
    theirs = script(proxy, f"list(ThreadPoolExecutor({CONCURRENCY}).map(lambda _: {run}, range({SIZE})))")
    row("the same against boto3, which runs them and looks at nothing", f"{took:.2f} s", f"{theirs:.2f} s",
        f"{took / theirs:.3f}", "", "stated")
    took, made = creating(moto, proxy, {"latency_ms": {"*": ms}})
    row(f"the same where every call takes L ({sum(made.values())} calls)", f"{took:.2f} s", f"10 L = {ideal:.1f} s",
        f"{took / ideal:.2f}", "", "stated")


def throttled(moto, proxy):
    burst, rate = 5, 2  # EC2's own limits of RunInstances
    ideal = (SIZE - burst) / rate
    took, made = creating(moto, proxy, {"bucket": {"RunInstances": [burst, rate]}})
    row(f"{SIZE} instances where {burst} calls are free and {rate} more a second ({made['RunInstances']} calls)",
        f"{took:.1f} s", f"least {ideal:.1f} s", f"{took / ideal:.2f}", "", "stated")


def observing(moto, proxy):
    forget(moto)
    asked(f"{proxy}/-/faults", {})
    path = folder(proxy, 1)
    pool(path, "apply", "pool.yaml", "--auto-approve")
    # moto takes longer over each look the more instances it has: pool looks at each one it makes, and had half of them
    # after seven minutes. So the others bear the tags of the first, as other slots that the state has lost.
    script(moto, "[own] = [i for r in ec2.describe_instances()['Reservations'] for i in r['Instances']]; "
                 "tags = {tag['Key']: tag['Value'] for tag in own['Tags']}; "
                 "of = lambda n: {**tags, 'pool.worker': f'bench-{n}-1', 'pool.slot': str(n)}; "
                 "[ec2.run_instances(ImageId=own['ImageId'], InstanceType=own['InstanceType'], MinCount=1, MaxCount=1, "
                 "TagSpecifications=[{'ResourceType': 'instance', 'Tags': [{'Key': key, 'Value': value} "
                 "for key, value in of(n).items()]}]) for n in range(1, 1000)]")
    asked(f"{proxy}/-/faults", {})
    took = pool(path, "plan", "pool.yaml")
    made = calls(proxy)
    # Both ask for the tags of one deployment: moto takes longer over a listing that is filtered.
    theirs = script(moto, "[r for p in ec2.get_paginator('describe_instances').paginate("
                          "Filters=[{'Name': 'tag-key', 'Values': ['pool.deployment']}, "
                          "{'Name': 'tag:pool.provider', 'Values': ['aws']}, "
                          "{'Name': 'instance-state-name', 'Values': ['pending', 'running', 'stopping', 'stopped']}], "
                          "PaginationConfig={'PageSize': 1000}) for r in p['Reservations']]")
    row("a plan that observes 1,000 instances: calls", str(made), "", "", "one listing", made == {"DescribeInstances": 1})
    row("its time", f"{took:.2f} s", f"boto3 lists them: {theirs:.2f} s", f"{took / theirs:.2f}", "", "stated")
    shutil.rmtree(path)


def main():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    moto = f"http://127.0.0.1:{port}"
    server = subprocess.Popen([os.path.join(CHECKERS, "moto_server"), "-H", "127.0.0.1", "-p", str(port)],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    proxy = subprocess.Popen([os.path.join(CHECKERS, "python"), os.path.join(ROOT, "tests", "ec2", "proxy.py"), moto],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        url = proxy.stdout.readline().strip()
        while True:
            try:
                asked(moto + "/moto-api/")
                break
            except OSError:
                time.sleep(0.1)
        for seconds in LATENCIES:
            latency(moto, url, seconds)
        throttled(moto, url)
        observing(moto, url)
    finally:
        proxy.terminate()
        server.terminate()
    print("\n| what | pool | peer | ratio | bar | |\n| --- | --- | --- | --- | --- | --- |")
    for cells in rows:
        print("| " + " | ".join(cells) + " |")


main()
