#!/bin/sh
# Writes the secrets that compose.yaml and the Kubernetes files mount, each to a file in the folder `secrets`
# beside this script, or in the folder given. What is there already stays as it is.
set -eu
folder=${1:-$(dirname "$0")/secrets}
mkdir -p "$folder"
# Containers read them as users of their own, so that the folder keeps others out, not the files.
chmod 700 "$folder"
umask 022

# Without a newline at the end, which not everyone who reads them takes off.
secret() { # NAME VALUE
    [ -e "$folder/$1" ] || printf '%s' "$2" >"$folder/$1"
}

random() {
    head -c 24 /dev/urandom | base64 | tr '+/' '-_'
}

secret postgres_password "$(random)"
secret application_database_password "$(random)"
secret prefect_database_password "$(random)"
secret prefect_auth "sightline:$(random)"
secret grafana_password "$(random)"
secret sightline_qdrant__api_key "$(random)"
secret sightline_console__password "$(random)"
secret sightline_database_url \
    "postgresql+psycopg://sightline:$(cat "$folder/application_database_password")@postgres:5432/sightline"
secret prefect_database_url \
    "postgresql+asyncpg://prefect:$(cat "$folder/prefect_database_password")@postgres:5432/prefect"
echo "the secrets are in $folder; the console's password is in $folder/sightline_console__password"
