# A provider that refuses every create: what it says is what matters here.
cat >/dev/null
case $POOL_METHOD in
describe)
  echo '{"type":"result","result":{"protocol_versions":[1],"version":"2.1","worker_types":["vm"],"idempotency":"token",
    "consistency":"strong","place":"rack 5","limits":{"max_concurrency":2},
    "config_schema":{"type":"object","required":["zone"],"additionalProperties":false,
      "properties":{"zone":{"enum":["north","south"]}}},
    "attributes_schema":{"type":"object","additionalProperties":false,
      "properties":{"flavor":{"enum":["small","large"]},"labels":{"type":"object","additionalProperties":false},"disk_gb":{"type":"integer","minimum":10}}}}}' | tr -d '\n'
  ;;
list) echo '{"type":"result","result":{"workers":[],"complete":true}}' ;;
create)
  echo 'asking rack 5' >&2
  echo '{"type":"progress","message":"looking for room"}'
  echo '{"type":"error","code":"quota","message":"rack 5 has 0 of 0 machines left"}'
  exit 1
  ;;
delete) echo '{"type":"result"}' ;;
esac
