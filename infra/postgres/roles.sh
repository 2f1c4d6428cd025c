#!/bin/sh
# Makes the databases and roles of the application and of Prefect, once, when the server is made. Neither role
# may do more than own its database, and neither may connect to the other's.
set -eu
psql --set=ON_ERROR_STOP=1 \
    --set=application="$(cat /run/secrets/application_database_password)" \
    --set=prefect="$(cat /run/secrets/prefect_database_password)" \
    --username="${POSTGRES_USER:-postgres}" --dbname=postgres <<'SQL'
create role sightline login nosuperuser nocreatedb nocreaterole password :'application';
create database sightline owner sightline;
revoke connect on database sightline from public;
create role prefect login nosuperuser nocreatedb nocreaterole password :'prefect';
create database prefect owner prefect;
revoke connect on database prefect from public;
SQL
