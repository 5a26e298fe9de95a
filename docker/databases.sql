-- Runs once, when Postgres starts for the first time: a role and a database for patchstore, and for
-- Prefect's records. Neither role may see the other's database.
\set patchstore_password `cat /run/secrets/patchstore_password`
\set prefect_password `cat /run/secrets/prefect_password`

CREATE ROLE patchstore LOGIN PASSWORD :'patchstore_password';
CREATE DATABASE patchstore OWNER patchstore;
REVOKE CONNECT ON DATABASE patchstore FROM PUBLIC;

CREATE ROLE prefect LOGIN PASSWORD :'prefect_password';
CREATE DATABASE prefect OWNER prefect;
REVOKE CONNECT ON DATABASE prefect FROM PUBLIC;

-- What a database's owner may not create.
CREATE ROLE patchstore_reader NOLOGIN;
GRANT CONNECT ON DATABASE patchstore TO patchstore_reader;
\connect patchstore
CREATE EXTENSION vector;
