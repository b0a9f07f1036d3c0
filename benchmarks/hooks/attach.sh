#!/bin/bash
# attach.sh HOST TYPE: script.load.balancer.attach
. "$(dirname "$0")/common.sh"
host=$1
failed=0

# The promotion throws the other nodes out of pgpool: attach those whose database answers.
attach_others() {
  local count other info
  count=$(pcp pcp_node_count)
  for ((other = 0; other < count; other++)); do
    [ "$other" = "$id" ] && continue
    # host port status weight status-name actual-status role ...
    read -r -a info < <(pcp pcp_node_info -n "$other")
    if [ "${info[4]}" != up ] && [ -n "$(in_recovery "${info[0]}")" ]; then
      change pcp_attach_node "$other"
    fi
  done
}

for pool in $LB_HOSTS; do
  if ! id=$(node_id "$host"); then
    say "attach $host: no such node in pgpool $pool"
    failed=1
    continue
  fi
  case $(in_recovery "$host") in
    f)
      change pcp_promote_node "$id"
      attach_others
      sleep "$HOOK_WAIT"
      attach_others
      say "now: $(pcp pcp_node_info -n "$id")"
      ;;
    t)
      change pcp_attach_node "$id"
      ;;
    *)
      say "attach $host: the database does not answer"
      failed=1
      ;;
  esac
done
exit "$failed"
