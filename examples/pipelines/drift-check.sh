#!/bin/sh
# Looks whether the workers are what the files say, for cron (a file in /etc/cron.d): silent when they are, so that a mail means something.
#
#   17 * * * *  pool  /usr/local/bin/drift-check.sh /srv/pools
#
# Runs on the host that has the state (POOL_STATE). Exits with 0 when all is as it should be, with 2 on drift, and with
# 1 when it could not look.
set -u

files=${1:?usage: drift-check.sh FILES}
export POOL_STATE="${POOL_STATE:-/var/lib/pool/state.db}"
# A state that is not there is a fault, not an empty one.
export POOL_REQUIRE_STATE=true

told=$(pool plan "$files" --detailed-exitcode --no-color 2>&1)
code=$?
case $code in
0) ;;
2)
  echo "The workers are not what $files says:"
  echo "$told"
  ;;
*)
  echo "The workers could not be looked at:"
  echo "$told"
  code=1
  ;;
esac
exit $code
