#!/bin/bash
# attach HOST TYPE for PgBouncer, as published recipes do it: put the host into every entry, and have the file read again.
# In the published one this runs on the pooler's host, by ssh. Nothing is done on detach.
host=$1
[ "$2" = p ] || exit 0
new=$(mktemp)
sed "s/host=[A-Za-z0-9.]*/host=$host/" "$LB_INI" >"$new"
cat "$new" >"$LB_INI"
rm -f "$new"
kill -HUP "$LB_PID"
