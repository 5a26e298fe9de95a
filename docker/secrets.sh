#!/bin/sh
# Makes the secrets of docker-compose.yml where they are missing: one folder for each service that
# reads them, so that none sees another's. Nothing that is there already is touched.
set -eu
umask 022 # each service reads its folder as a user of its own
cd "$1"

random() { head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n'; }

# keep FILE: writes standard input to FILE, unless there is one.
keep() { [ -s "$1" ] || { cat >"$1.new" && mv "$1.new" "$1"; }; }

for name in postgres_password patchstore_password prefect_password; do
    random | keep "postgres/$name"
done
for name in read_token admin_token; do
    random | keep "serve/$name"
done
echo "admin:$(random)" | keep prefect/login

store="postgresql://patchstore:$(cat postgres/patchstore_password)@postgres:5432/patchstore"
echo "$store" | keep migrate/patchstore_database_url
echo "$store" | keep worker/patchstore_database_url
echo "$store" | keep serve/patchstore_database_url
echo "read:$(cat serve/read_token) admin:$(cat serve/admin_token)" | keep serve/patchstore_api_tokens

keep prefect/profiles.toml <<TOML
active = "compose"
[profiles.compose]
PREFECT_SERVER_DATABASE_CONNECTION_URL = "postgresql+asyncpg://prefect:$(cat postgres/prefect_password)@postgres:5432/prefect"
PREFECT_SERVER_API_AUTH_STRING = "$(cat prefect/login)"
TOML
keep worker/profiles.toml <<TOML
active = "compose"
[profiles.compose]
PREFECT_API_AUTH_STRING = "$(cat prefect/login)"
TOML
