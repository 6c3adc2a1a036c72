"""Stands in front of moto's EC2 server and does what moto does not: it checks signatures, remembers client tokens, loses
answers, has no room, throttles, takes time, and shows effects late.

    proxy.py MOTO_URL        prints its own address, and ends with its standard input

Signatures are computed once more by botocore. `POST /-/faults` replaces the faults, `GET /-/calls` tells the calls that
came in; `/latest/…` is the metadata service of an instance with a role. See `FAULTS` for what can be asked for.
"""

import http.client
import json
import sys
import threading
import time
import urllib.parse
import xml.etree.ElementTree as ElementTree
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

NAMESPACE = "http://ec2.amazonaws.com/doc/2016-11-15/"
NO_IMAGE = "ami-00000000000000000"

FAULTS = {
    # Milliseconds that calls of an action take; "*" for all others.
    "latency_ms": {},
    # How many calls of an action are carried out and not answered.
    "lose": {},
    # How many calls of an action are not carried out, and not answered.
    "drop": {},
    # How many calls of an action are refused, and how: {"RunInstances": {"times": 2, "code": "…", "message": "…"}}.
    "refuse": {},
    # A bucket of calls of an action, and how many come back in a second: {"RunInstances": [5, 2]}.
    "bucket": {},
    # Types, or TYPE/SUBNET, that have no room.
    "no_room": [],
    # Milliseconds until an effect shows.
    "late_ms": 0,
    # Whose account it is.
    "account": "123456789012",
    # Lets everything through, whatever was filtered for.
    "no_filters": False,
    # How many reservations a page has, whatever was asked for.
    "page": None,
    # Milliseconds until a client token is forgotten.
    "forget_ms": None,
    # Milliseconds until an instance shows its tags, and a filter for them finds it.
    "tags_late_ms": 0,
    # Ends instances by their tags only: what is not there has none.
    "by_policy": False,
}


class World:
    def __init__(self, moto):
        self.moto = urllib.parse.urlsplit(moto)
        self.lock = threading.RLock()
        self.faults = dict(FAULTS)
        self.calls = []
        self.tokens = {}
        self.token_locks = {}
        self.born = {}
        self.buckets = {}
        self.keys = {"AKIAPOOLTESTS": "pool-tests-secret", "AKIAPOOLOTHER": "pool-tests-secret"}
        self.session_tokens = {"role-token"}
        self.role_calls = 0

    def spend(self, fault, action):
        """Counts a fault down; true when it strikes."""
        with self.lock:
            left = self.faults[fault].get(action, 0)
            if left:
                self.faults[fault][action] = left - 1
            return left > 0

    def refusal(self, action):
        with self.lock:
            asked = self.faults["refuse"].get(action)
            if asked and asked["times"] > 0:
                asked["times"] -= 1
                return asked["code"], asked.get("message", "as asked for")
            limit = self.faults["bucket"].get(action)
            if limit:
                burst, rate = limit
                left, since = self.buckets.get(action, (burst, time.monotonic()))
                now = time.monotonic()
                left = min(burst, left + (now - since) * rate)
                if left < 1:
                    self.buckets[action] = (left, now)
                    return "RequestLimitExceeded", "Request limit exceeded."
                self.buckets[action] = (left - 1, now)
        return None

    def latency(self, action):
        asked = self.faults["latency_ms"]
        return asked.get(action, asked.get("*", 0)) / 1000


class Refused(Exception):
    def __init__(self, code, message, status=400):
        super().__init__(code)
        self.code, self.message, self.status = code, message, status


class Unanswered(Exception):
    pass


def element(parent, name):
    """Whatever the namespace is: moto's is not quite EC2's."""
    return parent.find(f"{{*}}{name}")


def children(parent, name):
    found = element(parent, name)
    return [] if found is None else list(found)


def text(parent, name):
    found = element(parent, name)
    return None if found is None else found.text


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    @property
    def world(self):
        return self.server.world

    def answer(self, status, body, kind="text/xml;charset=UTF-8", more=()):
        data = body if isinstance(body, bytes) else body.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in dict(more).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_GET(self):
        world = self.world
        if self.path == "/-/calls":
            with world.lock:
                self.answer(200, json.dumps(world.calls), "application/json")
        elif self.path == "/-/secrets":
            with world.lock:
                self.answer(200, json.dumps([*world.keys.values(), *world.session_tokens]), "application/json")
        elif self.path.rstrip("/").endswith("/security-credentials"):
            self.answer(200, "worker-role", "text/plain")
        elif self.path.endswith("/security-credentials/worker-role"):
            with world.lock:
                world.role_calls += 1
                number = world.role_calls
                world.keys[f"ASIAROLE{number}"] = f"role-secret-{number}"
            end = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
            found = {"Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": f"ASIAROLE{number}",
                     "SecretAccessKey": f"role-secret-{number}", "Token": "role-token", "Expiration": end,
                     "LastUpdated": "2026-01-01T00:00:00Z"}
            self.answer(200, json.dumps(found), "application/json")
        else:
            self.answer(404, "", "text/plain")

    def do_PUT(self):
        self.body()
        known = self.path == "/latest/api/token"
        more = {"X-Aws-Ec2-Metadata-Token-Ttl-Seconds": "21600"} if known else {}
        self.answer(200 if known else 404, "session" if known else "", "text/plain", more)

    def do_POST(self):
        body, world = self.body(), self.world
        if self.path == "/-/faults":
            asked = json.loads(body)
            unknown = set(asked) - set(FAULTS)
            if unknown:
                return self.answer(400, f"unknown: {unknown}", "text/plain")
            with world.lock:
                world.faults = {**json.loads(json.dumps(FAULTS)), **asked}
                world.calls, world.buckets = [], {}
            return self.answer(200, "", "text/plain")
        parameters = dict(urllib.parse.parse_qsl(body.decode(), keep_blank_values=True))
        action = parameters.get("Action", "")
        with world.lock:
            world.calls.append({"action": action, "at": time.monotonic(), "parameters": parameters})
        try:
            if action == "AssumeRoleWithWebIdentity":
                return self.web_identity(body)
            if action == "GetCallerIdentity":
                return self.identity(body)
            status, answered = self.ec2(action, parameters, body)
            self.answer(status, answered)
        except Refused as refused:
            self.answer(refused.status, "<?xml version=\"1.0\"?><Response><Errors><Error>"
                        f"<Code>{refused.code}</Code><Message>{refused.message}</Message>"
                        "</Error></Errors><RequestID>r</RequestID></Response>")
        except Unanswered:
            self.close_connection = True
            self.connection.close()

    def identity(self, body):
        self.check_signature(body)
        time.sleep(self.world.latency("GetCallerIdentity"))
        refused = self.world.refusal("GetCallerIdentity")
        if refused:
            return self.answer(403, '<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error>'
                               f"<Type>Sender</Type><Code>{refused[0]}</Code><Message>{refused[1]}</Message>"
                               "</Error><RequestId>r</RequestId></ErrorResponse>")
        self.answer(200, "<GetCallerIdentityResponse><GetCallerIdentityResult><Account>"
                    f"{self.world.faults['account']}</Account></GetCallerIdentityResult>"
                    "</GetCallerIdentityResponse>")

    def ec2(self, action, parameters, body):
        world = self.world
        self.check_signature(body)
        time.sleep(world.latency(action))
        if world.spend("drop", action):
            raise Unanswered
        refusal = world.refusal(action)
        if refusal:
            raise Refused(*refusal, status=503 if refusal[0] == "RequestLimitExceeded" else 400)
        if action == "RunInstances":
            answered = self.run(parameters, body)
        elif action == "TerminateInstances" and world.faults["by_policy"] and not all(
                self.state(value) for name, value in parameters.items() if name.startswith("InstanceId.")):
            raise Refused("UnauthorizedOperation", "You are not authorized to perform this operation.", 403)
        elif action == "TerminateInstances" and world.faults["late_ms"]:
            self.refuse_hidden(value for name, value in parameters.items() if name.startswith("InstanceId."))
            answered = self.terminate_late(parameters, body)
        elif action == "DescribeInstances" and world.faults["no_filters"]:
            answered = self.forward(urllib.parse.urlencode({"Action": action, "Version": "2016-11-15"}).encode())
        elif action == "DescribeInstances" and world.faults["page"]:
            asked = {**parameters, "MaxResults": str(world.faults["page"])}
            answered = self.forward(urllib.parse.urlencode(asked).encode())
        else:
            answered = self.forward(body)
        if action.startswith("Describe") and world.faults["late_ms"]:
            answered = answered[0], self.hide(action, answered[1], self.young("late_ms"))
        if action == "DescribeInstances" and world.faults["tags_late_ms"]:
            young = self.young("tags_late_ms")
            if any(value.startswith("tag:") for value in parameters.values()):
                answered = answered[0], self.hide(action, answered[1], young)
            else:
                answered = answered[0], self.untag(answered[1], young)
        if world.spend("lose", action):
            raise Unanswered
        return answered

    def check_signature(self, body):
        """Has botocore sign the same request, and compares."""
        given = self.headers.get("Authorization", "")
        try:
            parts = dict(part.strip().split("=", 1) for part in given.split(" ", 1)[1].split(","))
            key, date, region, service, _ = parts["Credential"].split("/")
            names = parts["SignedHeaders"].split(";")
        except (IndexError, KeyError, ValueError):
            raise Refused("MissingAuthenticationToken", "no signature", 403) from None
        with self.world.lock:
            secret = self.world.keys.get(key)
        if secret is None:
            raise Refused("AuthFailure", "AWS was not able to validate the provided access credentials", 401)
        request = AWSRequest("POST", f"http://{self.headers['Host']}{self.path}", data=body)
        for name in names:
            if name != "host":
                request.headers[name] = self.headers[name]
        request.context["timestamp"] = self.headers["X-Amz-Date"]
        signer = SigV4Auth(Credentials(key, secret), service, region)
        canonical = signer.canonical_request(request)
        signature = signer.signature(signer.string_to_sign(request, canonical), request)
        if signature != parts["Signature"] or self.headers["X-Amz-Date"][:8] != date:
            raise Refused("SignatureDoesNotMatch", "botocore signs it otherwise", 403)

    def forward(self, body):
        world = self.world
        connection = http.client.HTTPConnection(world.moto.hostname, world.moto.port, timeout=60)
        headers = {name: value for name, value in self.headers.items()
                   if name.lower() in ("authorization", "content-type", "x-amz-date", "x-amz-security-token")}
        connection.request("POST", "/", body, headers)
        answered = connection.getresponse()
        data = answered.read()
        connection.close()
        return answered.status, data

    def run(self, parameters, body):
        world = self.world
        if parameters.get("ImageId") == NO_IMAGE:
            raise Refused("InvalidAMIID.NotFound", f"The image id '[{NO_IMAGE}]' does not exist")
        subnet = parameters.get("SubnetId", "")
        # Tokens are remembered in each zone by itself.
        token = (parameters["ClientToken"], subnet)
        with world.lock:
            own = world.token_locks.setdefault(token, threading.Lock())
        with own:
            known = world.tokens.get(token)
            forget = world.faults["forget_ms"]
            if known and forget is not None and (time.monotonic() - known["at"]) * 1000 >= forget:
                known = None
            if known:
                if known["parameters"] != parameters:
                    raise Refused("IdempotentParameterMismatch", "The client token was used with other parameters")
                if self.state(known["id"]) in (None, "shutting-down", "terminated"):
                    raise Refused("IdempotentInstanceTerminated", f"{known['id']} of the token has been terminated")
                return known["answer"]
            place = parameters["InstanceType"]
            if place in world.faults["no_room"] or f"{place}/{subnet}" in world.faults["no_room"]:
                raise Refused("InsufficientInstanceCapacity", f"We currently do not have sufficient {place} capacity", 500)
            answered = self.forward(body)
            if answered[0] == 200:
                # A public address comes while an instance starts.
                root = ElementTree.fromstring(answered[1])
                instance = children(root, "instancesSet")[0]
                public = element(instance, "ipAddress")
                if public is not None:
                    instance.remove(public)
                ElementTree.register_namespace("", root.tag[1:].split("}")[0])
                answered = answered[0], ElementTree.tostring(root)
                born = time.monotonic()
                with world.lock:
                    world.born[text(instance, "instanceId")] = born
                    world.tokens[token] = {"parameters": parameters, "answer": answered, "at": born,
                                           "id": text(instance, "instanceId")}
            return answered

    def state(self, instance):
        asked = urllib.parse.urlencode({"Action": "DescribeInstances", "Version": "2016-11-15",
                                        "InstanceId.1": instance})
        status, data = self.forward(asked.encode())
        if status != 200:
            return None
        for reservation in children(ElementTree.fromstring(data), "reservationSet"):
            for found in children(reservation, "instancesSet"):
                return text(element(found, "instanceState"), "name")
        return None

    def terminate_late(self, parameters, body):
        late = self.world.faults["late_ms"] / 1000
        headers = self.headers

        def later():
            time.sleep(late)
            self.headers = headers
            self.forward(body)

        threading.Thread(target=later, daemon=True).start()
        return 200, f'<TerminateInstancesResponse xmlns="{NAMESPACE}"><instancesSet/></TerminateInstancesResponse>'

    def young(self, fault):
        """Which instances are younger than that."""
        young = time.monotonic() - self.world.faults[fault] / 1000
        with self.world.lock:
            return {one for one, born in self.world.born.items() if born > young}

    def refuse_hidden(self, ids):
        unknown = self.young("late_ms") & set(ids)
        if unknown:
            named = "', '".join(sorted(unknown))
            raise Refused("InvalidInstanceID.NotFound", f"The instance IDs '{named}' do not exist")

    def untag(self, data, young):
        """Takes the tags off what is too young to show them."""
        root = ElementTree.fromstring(data)
        for reservation in children(root, "reservationSet"):
            for instance in children(reservation, "instancesSet"):
                tags = element(instance, "tagSet")
                if text(instance, "instanceId") in young and tags is not None:
                    instance.remove(tags)
        ElementTree.register_namespace("", NAMESPACE)
        return ElementTree.tostring(root)

    def hide(self, action, data, hidden):
        """Takes out what is too young to show."""
        root = ElementTree.fromstring(data)
        if action == "DescribeInstanceStatus":
            lists = [element(root, "instanceStatusSet")]
            self.refuse_hidden(text(item, "instanceId") for item in children(root, "instanceStatusSet"))
        else:
            reservations = children(root, "reservationSet")
            lists = [element(reservation, "instancesSet") for reservation in reservations]
        for items in lists:
            for item in list(items if items is not None else []):
                if text(item, "instanceId") in hidden:
                    items.remove(item)
        ElementTree.register_namespace("", NAMESPACE)
        return ElementTree.tostring(root)

    def web_identity(self, body):
        status, data = self.forward(body)
        if status == 200:
            found = {item.tag.split("}")[-1]: item.text for item in ElementTree.fromstring(data).iter()}
            with self.world.lock:
                self.world.keys[found["AccessKeyId"]] = found["SecretAccessKey"]
                self.world.session_tokens.add(found["SessionToken"])
        self.answer(status, data)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def main():
    server = Server(("127.0.0.1", 0), Handler)
    server.world = World(sys.argv[1])
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    # Whoever started it keeps its standard input open: it ends with that.
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


main()
