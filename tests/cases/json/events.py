import json, sys
for line in sys.stdin:
    event = json.loads(line)
    hook = event.get("hook", {})
    print(event["type"], hook.get("action", ""), hook.get("resource", {}).get("addr", ""),
          event.get("changes", ""))
