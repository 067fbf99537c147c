#!/usr/bin/env bash
# Makes roles and databases of Dagster and MLflow, or gives the roles the passwords that are in force
# now; what is there stays. PostgreSQL's image runs it when it makes its data, iac/host/up at every
# start: a machine that takes another one's place brings its own secrets.
#
# The addresses are in the environment (HEALTH_PREDICT_POSTGRES, MLFLOW_BACKEND_STORE_URI); one that
# names another server is left alone. As the superuser, by the socket, who needs no password there.
set -euo pipefail

# What is percent-encoded in an address.
decoded() {
  printf '%b' "${1//%/\\x}"
}

# database NAME_OF_THE_VARIABLE
database() {
  local url=${!1:-} form='^postgresql(\+psycopg2)?://([^:@/]+):([^@/]+)@postgres(:5432)?/([A-Za-z0-9_]+)$'
  if [[ $url == *@* && $url != *@postgres[:/]* ]]; then
    return
  fi
  if [[ ! $url =~ $form ]]; then
    echo "$1 is not postgresql://user:password@postgres:5432/database" >&2
    exit 1
  fi
  # By the environment: everybody on the machine can read a command line.
  ROLE=$(decoded "${BASH_REMATCH[2]}") PASSWORD=$(decoded "${BASH_REMATCH[3]}") \
    DATABASE=${BASH_REMATCH[5]} psql --no-psqlrc --quiet --no-align --tuples-only --no-password \
    --set ON_ERROR_STOP=1 --username postgres --dbname postgres <<'SQL'
SET client_min_messages = warning;
SET log_statement = none;
\getenv role ROLE
\getenv password PASSWORD
\getenv database DATABASE
SELECT format('CREATE ROLE %I LOGIN', :'role')
  WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'role') \gexec
ALTER ROLE :"role" PASSWORD :'password';
SELECT format('CREATE DATABASE %I OWNER %I', :'database', :'role')
  WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'database') \gexec
-- Neither reads the other's.
REVOKE ALL ON DATABASE :"database" FROM PUBLIC;
SQL
}

database HEALTH_PREDICT_POSTGRES
database MLFLOW_BACKEND_STORE_URI
