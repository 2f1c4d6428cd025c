#!/bin/sh
# Makes Prefect's own database and role, once, when the server is made.
set -eu
psql --set=ON_ERROR_STOP=1 --set=password="$(cat /run/secrets/prefect_database_password)" \
    --username="$POSTGRES_USER" --dbname=postgres <<'SQL'
create role prefect login password :'password';
create database prefect owner prefect;
SQL
