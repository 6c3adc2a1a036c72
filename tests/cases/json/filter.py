import json, sys
plan = json.load(sys.stdin)
print(sorted(plan))
for change in plan["resource_changes"]:
    inner = change["change"]
    print(change["address"], change["type"], change["name"], change["index"], inner["actions"],
          change["action_reason"], inner.get("replace_paths"),
          (inner["before"] or {}).get("image"), (inner["after"] or {}).get("image"))
print(plan["applyable"], plan["complete"], plan["errored"], plan["pool"]["changes"])
