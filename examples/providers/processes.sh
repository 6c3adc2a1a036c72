#!/bin/sh
# A provider for pool in POSIX shell: workers are processes on this machine. It knows the four methods that every
# provider has; the rest is made from these. Needs jq, flock and setsid of util-linux, and GNU grep.
#
# A worker is a folder, FOLDER/OWNER/OBJECT.ATTEMPT, with its tags and the `pid` of its process, which carries the
# folder's name as WORKER_ID. Whoever changes a slot holds its lock, which the kernel takes away from a killed script.
set -eu
request=$(cat)
get() { printf '%s' "$request" | jq -r "$1"; }
fail() { jq -cn --arg code "$1" --arg message "$2" '{type: "error", $code, $message}'; exit; }
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
# Everything that the worker started has its environment.
family() { grep -lsz "^WORKER_ID=$1\$" /proc/[0-9]*/environ | cut -d/ -f3; }

if [ "$POOL_METHOD" = describe ]; then
  printf '%s' "$request" | jq -c '{type: "result", result: {
    protocol_versions: [1], version: "1.0", worker_types: ["process"], one_host: true, place: .config.folder,
    idempotency: "token", consistency: "strong", settle_ms: 1000, slowest_delete_ms: 15000,
    invalid_image: "/no/such/program",
    config_schema: {type: "object", required: ["folder"], additionalProperties: false,
      properties: {folder: {type: "string", pattern: "^/", description: "Where workers are kept."}}},
    attributes_schema: {type: "object", additionalProperties: false}
  }}'
  exit
fi

home=$(get '.config.folder')/$(get '.params.owner')
if [ "$POOL_METHOD" != list ]; then
  mkdir -p -m 700 "$home"
  exec 9>"$home/slot-$(get '.params.slot').lock"
  flock 9
fi

case $POOL_METHOD in
create)
  id=$(get '"\(.params.object_name).\(.params.attempt)"') image=$(get '.params.spec.image') worker=$home/$id
  command -v -- "$image" >/dev/null || fail invalid_spec "there is no program $image"
  # A repeat finds the process of the first call, or finishes what that began.
  if ! [ -f "$worker/pid" ]; then
    mkdir -p "$worker"
    get '.params | {owner, name, attempt, operation, spec_hash, provider_id: "\(.object_name).\(.attempt)",
      labels: .spec.labels, tags: .spec.tags}' >"$worker/.worker.json"
    mv "$worker/.worker.json" "$worker/worker.json"
    # Secrets are read from their own descriptor, and are in no argument of any program.
    variables=$(printf '%s' "$request" | jq -r --slurpfile secret "/dev/fd/$POOL_SECRETS_FD" '.params |
      .spec.environment + $secret[0].worker | to_entries[] | "export \(.key)=\(.value | @sh)"')
    words=$(get '.params.spec | [.image, .command[]] | @sh')
    (
      eval "$variables"
      eval "set -- $words"
      eval "exec 9>&- $POOL_SECRETS_FD<&-"
      unset POOL_METHOD POOL_SECRETS_FD
      # A session outlives this script; the first process that links its pid is the worker.
      export WORKER_ID="$id" WORKER_OWNER="${home##*/}" WORKER_NAME="$(get .params.name)"
      exec setsid sh -c 'cd "$0" && echo "$$ $(sed "s/.*) //" /proc/$$/stat | cut -d" " -f20)" >".pid.$$" &&
        ln ".pid.$$" pid && cd / && exec "$@"' "$worker" "$@"
    ) </dev/null >>"$worker/log" 2>&1 &
    while ! [ -f "$worker/pid" ] && kill -0 $!; do sleep 0.02; done
  fi
  if ! alive "$worker"; then
    last=$(tail -n 1 "$worker/log") && rm -rf "$worker"
    fail transient "it ended at once: $last"
  fi
  show "$worker" | jq -c '{type: "result", result: .}'
  ;;
list)
  workers=$(for worker in "$home"/*.*/; do
    if ! [ -f "$worker/pid" ] || ! alive "$worker" || show "$worker"; then continue; fi
    # It may have gone meanwhile. Any other that cannot be shown must not look gone.
    if alive "$worker"; then exit 1; fi
  done) || fail transient "a worker cannot be read"
  printf '%s\n' "$workers" | jq -cs '{type: "result", result: {workers: ., complete: true}}'
  ;;
delete)
  wanted=$(get '.params.provider_id // ""') latest=$(get '.params.attempt')
  for worker in "$home/$(get '.params.object_name')".*/; do
    id=${worker%/} id=${id##*/}
    if ! [ -d "$worker" ] || [ "${id##*.}" -gt "$latest" ] || [ "${wanted:-$id}" != "$id" ]; then continue; fi
    for signal in TERM KILL; do
      kill -s "$signal" $(family "$id") || true
      tries=0
      while [ -n "$(family "$id")" ] && [ $((tries += 1)) -lt 100 ]; do sleep 0.05; done
    done
    [ -z "$(family "$id")" ] || fail transient "processes of $id do not end"
    rm -rf "$worker"
  done
  jq -cn '{type: "result"}'
  ;;
*) fail invalid_spec "there is no method $POOL_METHOD" ;;
esac
