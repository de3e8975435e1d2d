# Makes a cluster with the superuser password POSTGRES_PASSWORD and serves it on 127.0.0.1, port POSTGRES_PORT.
set -eu
umask 077
for bin in /usr/lib/postgresql/*/bin; do :; done
data=/var/lib/postgresql/data
pwfile=/var/lib/postgresql/pw
printf '%s\n' "$POSTGRES_PASSWORD" >"$pwfile"
"$bin/initdb" -D "$data" --username=postgres --pwfile="$pwfile" --auth=scram-sha-256 --locale=C.UTF-8 --encoding=UTF8 --no-sync
rm "$pwfile"
unset POSTGRES_PASSWORD
exec "$bin/postgres" -D "$data" -c listen_addresses=127.0.0.1 -c "port=$POSTGRES_PORT" -c fsync=off
