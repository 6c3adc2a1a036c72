#!/usr/bin/env python3
"""A provider for pool in Python, with every method of the protocol: workers are processes on this machine.

What identifies a worker is in its process's environment, from its first instruction on: whatever becomes of this
program or of its folder, a listing finds every worker by looking at all processes. The folder has a lock for each slot,
labels and tags (which change), and a note for each worker that is being reset. Whoever only looks takes no lock.
"""

import fcntl
import json
import os
import pathlib
import signal
import sys
import time

GRACE = 5.0
KERNEL_THREAD = 0x00200000
SCHEMA = {
    "type": "object",
    "required": ["folder"],
    "additionalProperties": False,
    "properties": {
        "folder": {"type": "string", "pattern": "^/", "description": "Where notes are kept."},
        "page_size": {"type": "integer", "minimum": 1, "description": "Workers on a page; 100 by default."},
    },
}


class Refused(Exception):
    """An error of the protocol: its code, and a message."""


def stat(pid):
    """The fields of a process's stat from its state on (field 3 is the first)."""
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def born(pid):
    """The start time of a process: a pid alone is used again."""
    return stat(pid)[19]


def look_at(pid):
    """The state, start time and environment of a process that is alive; None of any other."""
    while True:
        environ = pathlib.Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
        fields = stat(pid)
        if fields[0] in "ZX" or int(fields[6]) & KERNEL_THREAD:
            return None
        # While a process executes a program, the kernel does not know yet where its environment begins.
        if environ or fields[47] != "0":
            return fields[0], fields[19], environ
        time.sleep(0.001)


class Home:
    """The workers of one owner; whoever changes one has the lock of its slot."""

    def __init__(self, config, params, changes=False):
        self.owner = params["owner"]
        self.folder = pathlib.Path(config["folder"]) / self.owner
        if changes:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # The kernel takes it away from a program that is killed, but not before a child of it has become a
            # worker: that has it too up to exec.
            self.lock = open(self.folder / f"slot-{params['slot']}.lock", "w")
            fcntl.flock(self.lock, fcntl.LOCK_EX)

    def note(self, worker_id):
        return self.folder / f"{worker_id}.json"

    def read(self, worker_id):
        try:
            return json.loads(self.note(worker_id).read_text())
        except FileNotFoundError:
            return {}

    def write(self, worker_id, note):
        aside = self.folder / f".{worker_id}"
        aside.write_text(json.dumps(note))
        aside.rename(self.note(worker_id))

    def processes(self):
        """Yields the pid, state and tags of every process that belongs to a worker."""
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                seen = look_at(entry)
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if seen is None:
                continue
            state, start, environ = seen
            pairs = (line.partition("=") for line in environ.split("\0") if line.startswith("WORKER_"))
            tags = {name: value for name, _, value in pairs}
            if tags.get("WORKER_OWNER") == self.owner and "WORKER_PROCESS" in tags:
                # What a worker starts has its tags too.
                yield int(entry), state, tags, tags["WORKER_PROCESS"] == f"{entry}:{start}"

    def workers(self):
        """Returns the workers by id, those that are being reset included."""
        found = {}
        for path in self.folder.glob("*.json"):
            note = self.read(path.stem)
            if "resetting" in note:
                found[path.stem] = note["resetting"] | {"status": "starting"}
        for pid, state, tags, is_worker in self.processes():
            if is_worker:
                note = self.read(tags["WORKER_ID"])
                found[tags["WORKER_ID"]] = {
                    "owner": self.owner,
                    "name": tags["WORKER_NAME"],
                    "provider_id": tags["WORKER_ID"],
                    "attempt": int(tags["WORKER_ATTEMPT"]),
                    "operation": int(tags["WORKER_OPERATION"]),
                    "spec_hash": tags["WORKER_SPEC_HASH"],
                    "status": "running",
                    "labels": note.get("labels", {}),
                    "tags": note.get("tags", []),
                    "addresses": ["127.0.0.1"],
                    "attributes": {"pid": str(pid), "state": state},
                }
        return found

    def find(self, params):
        """Returns the one worker that is named."""
        for worker in self.workers().values():
            if worker["name"] == params["name"] and params.get("provider_id") in (None, worker["provider_id"]):
                return worker
        raise Refused("not_found", params["name"])

    def check(self, spec):
        """Refuses what can never be started, before anything is done."""
        if not os.access(spec["image"], os.X_OK):
            raise Refused("invalid_spec", f"there is no program {spec['image']}")

    def start(self, worker, spec, secrets):
        """Starts the process of a worker; returns once it is one."""
        program, arguments = spec["image"], [spec["image"], *spec["command"]]
        environment = {"PATH": os.environ.get("PATH", os.defpath)} | spec["environment"] | secrets["worker"]
        environment |= {
            "WORKER_OWNER": worker["owner"],
            "WORKER_NAME": worker["name"],
            "WORKER_ID": worker["provider_id"],
            "WORKER_ATTEMPT": str(worker["attempt"]),
            "WORKER_OPERATION": str(worker["operation"]),
            "WORKER_SPEC_HASH": worker["spec_hash"],
        }
        log = os.open(self.folder / f"{worker['provider_id']}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        became, report = os.pipe()
        if os.fork() == 0:
            try:
                os.setsid()
                environment["WORKER_PROCESS"] = f"{os.getpid()}:{born('self')}"
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(log, 1)
                os.dup2(log, 2)
                os.execve(program, arguments, environment)
            except OSError as error:
                os.write(report, str(error).encode())
            os._exit(1)
        os.close(report)
        # It ends when the program is executed, or with what kept it from that.
        with open(became) as outcome:
            why = outcome.read()
        if why:
            raise Refused("invalid_spec", f"{program}: {why}")

    def stop(self, is_meant):
        """Ends every process of the workers that are meant, and all that they started."""
        for number, limit in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
            until = time.monotonic() + limit
            told = set()
            while True:
                left = {pid for pid, _, tags, _ in self.processes() if is_meant(tags)}
                if not left:
                    return
                for pid in left - told:
                    try:
                        os.kill(pid, number)
                    except ProcessLookupError:
                        pass
                told |= left
                if time.monotonic() > until:
                    break
                time.sleep(0.02)
        raise Refused("transient", "something does not end")


def describe(config, params, secrets):
    return {
        "protocol_versions": [1],
        "version": "1.0",
        "worker_types": ["process"],
        "methods": ["get", "update", "probe", "reset"],
        "idempotency": "token",
        "consistency": "strong",
        "settle_ms": 1000,
        "slowest_delete_ms": int(GRACE * 3000),
        "in_place": ["labels", "tags"],
        "one_host": True,
        "place": config.get("folder"),
        "limits": {"max_concurrency": 20},
        "config_schema": SCHEMA,
        "attributes_schema": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"nice": {"type": "integer", "minimum": 0, "maximum": 19}},
        },
        "invalid_image": "/no/such/program",
    }


def create(config, params, secrets):
    home = Home(config, params, changes=True)
    spec, worker_id = params["spec"], f"{params['object_name']}.{params['attempt']}"
    found = home.workers().get(worker_id)
    if found is None:
        home.check(spec)
        progress(f"starting {spec['image']}")
        if "nice" in spec["attributes"]:
            os.nice(spec["attributes"]["nice"])
        home.write(worker_id, {"labels": spec["labels"], "tags": spec["tags"]})
        try:
            home.start(params | {"provider_id": worker_id}, spec, secrets)
        except Refused:
            home.note(worker_id).unlink()
            raise
        found = home.workers().get(worker_id)
    if found is None:
        raise Refused("transient", f"it ended at once; its log is {home.folder / worker_id}.log")
    return found


def list_workers(config, params, secrets):
    workers = sorted(Home(config, params).workers().values(), key=lambda worker: worker["provider_id"])
    rest = [worker for worker in workers if worker["provider_id"] > params.get("page", "")]
    page = rest[: config.get("page_size", 100)]
    return {
        "workers": page,
        "next": page[-1]["provider_id"] if len(rest) > len(page) else None,
        "complete": True,
    }


def get(config, params, secrets):
    return Home(config, params).find(params)


def update(config, params, secrets):
    home = Home(config, params, changes=True)
    worker_id = home.find(params)["provider_id"]
    home.write(worker_id, home.read(worker_id) | {"labels": params["labels"], "tags": params["tags"]})
    return home.find(params)


def delete(config, params, secrets):
    home = Home(config, params, changes=True)

    def is_meant(worker_id):
        name, _, attempt = worker_id.rpartition(".")
        is_named = name == params["object_name"] and int(attempt) <= params["attempt"]
        return is_named and params.get("provider_id") in (None, worker_id)

    home.stop(lambda tags: is_meant(tags["WORKER_ID"]))
    for path in home.folder.glob("*.json"):
        if is_meant(path.stem):
            path.unlink()
    return None


def probe(config, params, secrets):
    try:
        worker = Home(config, params).find(params)
    except Refused as refused:
        return {"health": "gone", "reason": f"no process of {refused.args[1]} is there"}
    state = worker["attributes"].get("state")
    if state is None or state in "Tt":
        return {"health": "unhealthy", "reason": "it is stopped"}
    return {"health": "healthy"}


def reset(config, params, secrets):
    home = Home(config, params, changes=True)
    worker = home.find(params)
    home.check(params["spec"])
    worker_id = worker["provider_id"]
    note = home.read(worker_id)
    # Until it runs again, listings show it by this; a repeat goes on from here.
    home.write(worker_id, note | {"resetting": note.get("resetting", worker)})
    home.stop(lambda tags: tags["WORKER_ID"] == worker_id)
    home.start(worker, params["spec"], secrets)
    home.write(worker_id, {key: value for key, value in note.items() if key != "resetting"})
    return home.find(params)


METHODS = {
    "describe": describe,
    "create": create,
    "list": list_workers,
    "get": get,
    "update": update,
    "delete": delete,
    "probe": probe,
    "reset": reset,
}


def say(line):
    print(json.dumps(line), flush=True)


def progress(message):
    say({"type": "progress", "message": message})


def main():
    request = json.load(sys.stdin)
    with open(int(os.environ["POOL_SECRETS_FD"])) as descriptor:
        secrets = json.load(descriptor)
    try:
        method = METHODS[request["method"]]
        say({"type": "result", "result": method(request["config"], request["params"], secrets)})
    except Refused as refused:
        code, message = refused.args
        say({"type": "error", "code": code, "message": message})


if __name__ == "__main__":
    main()
