# Settings and functions of the two bash hooks: the algorithm that people use today, for comparison.
#
# From the environment: LB_HOSTS (pgpools, host:pcpport, separated by blanks), PCPPASSFILE,
# LB_PCP_USER, LB_PGPORT, LB_PGUSER, HOOK_WAIT (seconds before the standbys are looked at again).
LB_HOSTS=${LB_HOSTS:?the pgpools to drive}
LB_PCP_USER=${LB_PCP_USER:-pcpadm}
LB_PGPORT=${LB_PGPORT:-5444}
LB_PGUSER=${LB_PGUSER:-postgres}
HOOK_WAIT=${HOOK_WAIT:-3}
export PCPPASSFILE

say() {
  printf '%s %s\n' "$(date +%T.%3N)" "$*"
}

# pcp PROGRAM ARGUMENT...: at the pgpool in $pool
pcp() {
  local program=$1
  shift
  "$program" -h "${pool%:*}" -p "${pool#*:}" -U "$LB_PCP_USER" -w "$@"
}

# change PROGRAM ID: run a pcp command and say what it answered
change() {
  local answer status
  answer=$(pcp "$1" -n "$2" 2>&1)
  status=$?
  say "$1 $2: rc=$status $answer"
}

# node_id HOST: the number that the pgpool gives to HOST
node_id() {
  local count id address rest
  count=$(pcp pcp_node_count) || return 1
  for ((id = 0; id < count; id++)); do
    read -r address rest < <(pcp pcp_node_info -n "$id")
    if [ "$address" = "$1" ]; then
      echo "$id"
      return 0
    fi
  done
  return 1
}

# in_recovery HOST: t, f, or nothing when the database does not answer
in_recovery() {
  psql -h "$1" -p "$LB_PGPORT" -U "$LB_PGUSER" -d postgres -Atc 'select pg_is_in_recovery()' 2>/dev/null
}
