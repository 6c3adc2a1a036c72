#!/bin/sh
# A provider for pool in POSIX shell: workers are processes on this machine. It knows the four methods that every
# provider has; the rest is made from these. Needs jq, and flock and setsid of util-linux.
#
# A worker is a folder, FOLDER/OWNER/OBJECT.ATTEMPT, which has its tags, and the process that its `pid` names. Whoever
# changes or lists anything holds one lock, which the kernel takes away from a script that is killed.
set -eu
request=$(cat)
get() { printf '%s' "$request" | jq -r "$1"; }
fail() {
  jq -cn --arg code "$1" --arg message "$2" '{type: "error", $code, $message}'
  exit
}
# A pid is used again; together with the time of its start it is not. Field 22 of stat, counted from the last ")".
alive() {
  read -r pid born <"$1/pid" || return 1
  stat=$(sed 's/.*) //' "/proc/$pid/stat") || return 1
  set -- $stat
  [ "$1" != Z ] && [ "${20}" = "$born" ]
}
show() {
  jq -c --arg pid "$pid" '. + {status: "running", addresses: ["127.0.0.1"], attributes: {$pid}}' "$1/worker.json"
}

if [ "$POOL_METHOD" = describe ]; then
  jq -cn '{type: "result", result: {
    protocol_versions: [1], version: "1.0", worker_types: ["process"], one_host: true,
    idempotency: "token", consistency: "strong", settle_ms: 1000, slowest_delete_ms: 10000,
    invalid_image: "/no/such/program",
    config_schema: {
      type: "object", required: ["folder"], additionalProperties: false,
      properties: {folder: {type: "string", pattern: "^/", description: "Where workers are kept."}}
    },
    attributes_schema: {type: "object", additionalProperties: false}
  }}'
  exit
fi

home=$(get '.config.folder')/$(get '.params.owner')
mkdir -p "$home"
chmod 700 "$home"
exec 9>"$home/lock"
flock 9

case $POOL_METHOD in
create)
  worker=$home/$(get '"\(.params.object_name).\(.params.attempt)"')
  image=$(get '.params.spec.image')
  command -v -- "$image" >/dev/null || fail invalid_spec "there is no program $image"
  # A repeat finds the process of the first call, or finishes what that began.
  if ! [ -f "$worker/pid" ]; then
    mkdir -p "$worker"
    get '.params | {owner, name, attempt, operation, spec_hash, provider_id: "\(.object_name).\(.attempt)",
      labels: .spec.labels, tags: .spec.tags}' >"$worker/worker.json"
    (
      # Secrets are read from their own descriptor, and are in no argument of any program.
      eval "$(printf '%s' "$request" | jq -r --slurpfile secret "/dev/fd/$POOL_SECRETS_FD" '.params |
        .spec.environment + $secret[0].worker + {WORKER_OWNER: .owner, WORKER_NAME: .name} |
        to_entries[] | "export \(.key)=\(.value | @sh)"')"
      eval "set -- $(get '.params.spec | [.image, .command[]] | @sh')"
      eval "exec 9>&- $POOL_SECRETS_FD<&-"
      unset POOL_METHOD POOL_SECRETS_FD
      # A session of its own outlives this script; the first process that links its pid is the worker.
      exec setsid sh -c 'cd "$0" && echo "$$ $(sed "s/.*) //" /proc/$$/stat | cut -d" " -f20)" >".pid.$$" &&
        ln ".pid.$$" pid && cd / && exec "$@"' "$worker" "$@"
    ) </dev/null >>"$worker/log" 2>&1 &
    while ! [ -f "$worker/pid" ] && kill -0 $!; do sleep 0.02; done
  fi
  if ! alive "$worker"; then
    last=$(tail -n 1 "$worker/log")
    rm -rf "$worker"
    fail transient "it ended at once: $last"
  fi
  show "$worker" | jq -c '{type: "result", result: .}'
  ;;
list)
  for worker in "$home"/*/; do
    if [ -d "$worker" ] && alive "${worker%/}"; then show "${worker%/}"; fi
  done | jq -cs '{type: "result", result: {workers: ., complete: true}}'
  ;;
delete)
  wanted=$(get '.params.provider_id // ""') latest=$(get '.params.attempt')
  for worker in "$home/$(get '.params.object_name')".*; do
    id=${worker##*/}
    if ! [ -d "$worker" ] || [ "${id##*.}" -gt "$latest" ] || [ "${wanted:-$id}" != "$id" ]; then continue; fi
    for signal in TERM KILL; do
      if alive "$worker"; then kill -s "$signal" -- "-$pid" || true; fi
      tries=0
      while alive "$worker" && [ $((tries += 1)) -lt 100 ]; do sleep 0.05; done
    done
    rm -rf "$worker"
  done
  jq -cn '{type: "result"}'
  ;;
*) fail invalid_spec "there is no method $POOL_METHOD" ;;
esac
