#!/bin/bash
# detach.sh HOST TYPE: script.load.balancer.detach
. "$(dirname "$0")/common.sh"
host=$1
type=$2
failed=0

for pool in $LB_HOSTS; do
  if ! id=$(node_id "$host"); then
    say "detach $host: no such node in pgpool $pool"
    failed=1
    continue
  fi
  # A database that is down, or a primary that is about to be stopped.
  if [ -z "$(in_recovery "$host")" ] || [ "$type" = p ]; then
    change pcp_detach_node "$id"
  else
    say "detach $host: the standby answers, left attached"
  fi
done
exit "$failed"
