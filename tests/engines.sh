#!/usr/bin/env bash
# Starts a dockerd, a podman service, a registry and an EC2 (moto) of their own for the tests, or stops them:
# engines.sh up|down FOLDER
#
# Everything is below FOLDER and behind unix sockets there, the registry on loopback; nothing comes from outside:
# images are made from a busybox root. `up` writes FOLDER/env, which says where they listen.
set -euo pipefail
folder="$2"

export CONTAINERS_CONF="$folder/containers.conf" CONTAINERS_REGISTRIES_CONF="$folder/registries.conf"
podman=(podman --root "$folder/podman" --runroot "$folder/podman-run" --tmpdir "$folder/podman-tmp")

wait_for() {
  for _ in $(seq 300); do
    if docker -H "$1" version >/dev/null 2>&1; then return 0; fi
    sleep 0.1
  done
  echo "no engine at $1" >&2
  tail -20 "$folder"/*.log >&2
  return 1
}

images() {
  docker -H "$1" import -c 'CMD ["/bin/sleep","600"]' "$folder/root.tar" pool-test:1 >/dev/null
  docker -H "$1" import -c 'CMD ["/bin/sleep","601"]' "$folder/root.tar" pool-test:2 >/dev/null
}

up() {
  mkdir -p "$folder/root/bin" "$folder/root/tmp" "$folder/root/etc"
  cp "$(command -v busybox)" "$folder/root/bin/busybox"
  for applet in $("$folder/root/bin/busybox" --list); do
    [ "$applet" = busybox ] || ln -sf busybox "$folder/root/bin/$applet"
  done
  tar -C "$folder/root" -cf "$folder/root.tar" .

  docker="unix://$folder/docker.sock"
  dockerd -H "$docker" --data-root "$folder/docker" --exec-root "$folder/docker-run" \
    -p "$folder/docker.pid" --bip 172.31.99.1/24 >"$folder/docker.log" 2>&1 &

  # No systemd to ask for limits and timers, and no crun that knows cgroups of both versions.
  cat >"$CONTAINERS_CONF" <<'CONF'
[containers]
default_ulimits=["nofile=1024:1024","nproc=1024:1024"]
[engine]
runtime="runc"
cgroup_manager="cgroupfs"
events_logger="file"
CONF
  podman_host="unix://$folder/podman.sock"
  "${podman[@]}" system service --time 0 "$podman_host" >"$folder/podman.log" 2>&1 &
  echo $! >"$folder/podman.pid"

  # Behind a password: `tester` and `secret`, as bcrypt.
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  registry="127.0.0.1:$port"
  echo 'tester:$2y$05$u4qcNFdcc4a1udc76ejGkuH5ArIF8CTjRZXtyxjkN.zLFvVHLhkZe' >"$folder/htpasswd"
  cat >"$folder/registry.yml" <<CONF
version: 0.1
storage: { filesystem: { rootdirectory: "$folder/registry" } }
http: { addr: "$registry" }
auth: { htpasswd: { realm: tests, path: "$folder/htpasswd" } }
CONF
  docker-registry serve "$folder/registry.yml" >"$folder/registry.log" 2>&1 &
  echo $! >"$folder/registry.pid"
  printf 'unqualified-search-registries = []\n[[registry]]\nlocation = "%s"\ninsecure = true\n' "$registry" \
    >"$CONTAINERS_REGISTRIES_CONF"

  # An EC2 that nobody here wrote, and credentials for what is put in front of it.
  python="$PWD/target/checkers/bin/python"
  moto=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  target/checkers/bin/moto_server -H 127.0.0.1 -p "$moto" >"$folder/moto.log" 2>&1 &
  echo $! >"$folder/moto.pid"
  cat >"$folder/aws" <<'CONF'
[pool-tests]
aws_access_key_id = AKIAPOOLTESTS
aws_secret_access_key = pool-tests-secret
[wrong-key]
aws_access_key_id = AKIANOBODY
aws_secret_access_key = pool-tests-secret
[wrong-secret]
aws_access_key_id = AKIAPOOLTESTS
aws_secret_access_key = another
CONF

  wait_for "$docker"
  wait_for "$podman_host"
  for _ in $(seq 300); do
    if curl -sf "http://127.0.0.1:$moto/moto-api/" >/dev/null; then break; fi
    sleep 0.1
  done
  images "$docker"
  images "$podman_host"
  check='HEALTHCHECK --interval=1s --timeout=2s --retries=1 CMD test -e /tmp/well'
  docker -H "$docker" import -c 'CMD ["/bin/sleep","600"]' -c "$check" "$folder/root.tar" \
    pool-test:checked >/dev/null
  # podman's import knows no HEALTHCHECK.
  printf 'FROM pool-test:1\n%s\n' "$check" |
    "${podman[@]}" build -q --format docker -t pool-test:checked -f - "$folder/root/etc" >/dev/null
  mkdir "$folder/login"
  printf '{"auths":{"%s":{"auth":"%s"}}}' "$registry" "$(printf tester:secret | base64)" \
    >"$folder/login/config.json"
  docker -H "$docker" tag pool-test:1 "$registry/pool-test:1"
  docker --config "$folder/login" -H "$docker" push -q "$registry/pool-test:1" >/dev/null
  docker -H "$docker" rmi "$registry/pool-test:1" >/dev/null
  printf 'export POOL_TEST_REGISTRY=%q POOL_TEST_LOGIN=%q\n' "$registry" "$folder/login" >"$folder/env"
  printf 'export POOL_TEST_EC2=http://127.0.0.1:%q POOL_TEST_PYTHON=%q AWS_SHARED_CREDENTIALS_FILE=%q\n' \
    "$moto" "$python" "$folder/aws" >>"$folder/env"
  printf 'export POOL_TEST_DOCKER=%q POOL_TEST_PODMAN=%q\n' "$docker" "$podman_host" >>"$folder/env"
}

down() {
  for service in docker podman registry moto; do
    host="unix://$folder/$service.sock"
    left=$([ ! -S "$folder/$service.sock" ] || timeout 20 docker -H "$host" ps -aq 2>/dev/null || true)
    [ -z "$left" ] || timeout 60 docker -H "$host" rm -f $left >/dev/null 2>&1 || true
    [ ! -f "$folder/$service.pid" ] || kill "$(cat "$folder/$service.pid")" 2>/dev/null || true
  done
  for _ in $(seq 100); do
    [ -e "$folder/docker.pid" ] && kill -0 "$(cat "$folder/docker.pid")" 2>/dev/null || break
    sleep 0.1
  done
  umount -R "$folder/docker" "$folder/podman" "$folder/podman/overlay" 2>/dev/null || true
  rm -rf "$folder" 2>/dev/null || true
}

"$1"
