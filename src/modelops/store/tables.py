"""The tables of the state file, and the steps that lead from an empty file to them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, Float, Integer, MetaData, String, Table, UniqueConstraint, false

metadata = MetaData()

model_versions = Table(
    "model_versions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("model_name", String, nullable=False, index=True),
    Column("number", Integer, nullable=False),  # label v<number>; never reused
    Column("model_type", String, nullable=False),
    Column("file", String, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("mtime_ns", BigInteger, nullable=False),
    Column("digest", String, nullable=False, default=""),
    Column("registered_at", Float, nullable=False),
    Column("source", String, nullable=False, server_default=""),  # digest of the source that it was fetched from
    Column("removed", Boolean, nullable=False, server_default=false()),
    Column("base", String, nullable=False, server_default=""),  # of an adapter: the digest of the file it was made for
    Column("lineage", String, nullable=False, server_default=""),  # JSON: what it was made from, where a job made it
    UniqueConstraint("model_name", "number"),
)

models = Table(
    "models",
    metadata,
    Column("model_name", String, primary_key=True),
    Column("active", Integer, nullable=False, server_default="0"),  # number of the version that answers; 0: the newest
    Column("previous", Integer, nullable=False, server_default="0"),
    Column("wanted", Boolean, nullable=False, server_default=false()),  # loaded: a restart brings it back
    Column("wish", String, nullable=False, server_default="{}"),
    Column("changed_at", Float, nullable=False, server_default="0"),
    Column(
        "tuned", String, nullable=False, server_default=""
    ),  # JSON: how a goal found it to run best; empty: as it is
)

memory_estimates = Table(
    "memory_estimates",
    metadata,
    Column("header", String, primary_key=True),  # digest of the file's header
    Column("settings", String, primary_key=True),
    Column("device", String, primary_key=True),
    Column("computed", BigInteger, nullable=False),
    Column("projected", BigInteger, nullable=False),  # 0: the engine gave none
    Column("projection", String, nullable=False),
    Column("measured", BigInteger, nullable=False),  # 0: not yet
    Column("driver", BigInteger, nullable=False, server_default="0"),  # on each GPU beside what is projected there
    Column("at", Float, nullable=False),
    Column("more_driver", BigInteger, nullable=False, server_default="0"),  # of `driver`, what not every model has
)

keys = Table(
    "keys",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("digest", String, nullable=False),  # of the secret; empty: for a client certificate of that name
    Column("scopes", String, nullable=False),  # between commas
    Column("priority", String, nullable=False),
    Column("rate", String, nullable=False, server_default=""),
    Column("token_rate", String, nullable=False, server_default=""),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("revoked_at", Float),
)


def _durable(name: str, *own: Column[Any]) -> Table:
    """A table of durable work: what all such rows have, and what they have of their `own`."""
    return Table(
        name,
        metadata,
        Column("id", String, primary_key=True),
        Column("number", Integer, nullable=False, unique=True),  # in the order of creation
        *own,
        Column("status", String, nullable=False, index=True),
        Column("priority", Integer, nullable=False, server_default="1"),  # higher goes first
        Column("caller", String, nullable=False, server_default=""),
        Column("idempotency_key", String),  # of its caller; no two rows have the same
        Column("request", String, nullable=False, server_default="{}"),  # JSON, as all that is text below
        Column("memo", String, nullable=False, server_default="{}"),  # step → its result, of those that are done
        Column("progress", Float, nullable=False, server_default="0"),
        Column("metrics", String, nullable=False, server_default="{}"),
        Column("result", String, nullable=False, server_default="{}"),
        Column("error", String, nullable=False, server_default=""),
        Column("message", String, nullable=False, server_default=""),
        Column("cancel_reason", String),  # somebody wants it to end
        Column("created_at", Float, nullable=False),
        Column("started_at", Float),
        Column("completed_at", Float),
        Column("lease_owner", String, nullable=False, server_default=""),
        Column("lease_until", Float, nullable=False, server_default="0"),
        Column("fence", Integer, nullable=False, server_default="0"),  # grows with each claim: an older one is out
        Column("attempts", Integer, nullable=False, server_default="0"),
        UniqueConstraint("caller", "idempotency_key"),
    )


def _events(name: str, of: str) -> Table:
    """A table of what happens to durable work; `of` is the name of the column with its id."""
    return Table(
        name,
        metadata,
        Column(of, String, key="of", primary_key=True),
        Column("number", Integer, primary_key=True),  # from 1 on, for each of them
        Column("at", Float, nullable=False),
        Column("kind", String, nullable=False),
        Column("step", String, nullable=False, server_default=""),
        Column("message", String, nullable=False, server_default=""),
        Column("metrics", String, nullable=False, server_default="{}"),
    )


learning_jobs = _durable(
    "learning_jobs",
    Column("job_type", String, nullable=False),
    Column("model_name", String, nullable=False),
    Column("output_model_name", String, nullable=False, server_default=""),
    Column("step", String, nullable=False, server_default=""),
    Column("paused", Boolean, nullable=False, server_default=false()),
)
learning_job_events = _events("learning_job_events", "job_id")

goals = _durable(
    "goals",
    Column("title", String, nullable=False),
    Column("goal_type", String, nullable=False),
    Column("target_completion", Float),
    Column("elapsed", Float, nullable=False, server_default="0"),  # seconds in which it was worked on
)
goal_events = _events("goal_events", "goal_id")

#: Each step is the DDL that makes version N+1 of the state file from version N. Steps are never changed once released.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE model_versions (id INTEGER PRIMARY KEY, model_name VARCHAR NOT NULL, number INTEGER NOT NULL, "
        "model_type VARCHAR NOT NULL, file VARCHAR NOT NULL, size BIGINT NOT NULL, mtime_ns BIGINT NOT NULL, "
        "digest VARCHAR NOT NULL, registered_at FLOAT NOT NULL, UNIQUE (model_name, number))",
        "CREATE INDEX ix_model_versions_model_name ON model_versions (model_name)",
    ),
    (
        "CREATE TABLE models (model_name VARCHAR NOT NULL PRIMARY KEY, active INTEGER NOT NULL DEFAULT 0, "
        "previous INTEGER NOT NULL DEFAULT 0, wanted BOOLEAN NOT NULL DEFAULT 0, wish VARCHAR NOT NULL DEFAULT '{}', "
        "changed_at FLOAT NOT NULL DEFAULT 0)",
        "ALTER TABLE model_versions ADD COLUMN removed BOOLEAN NOT NULL DEFAULT 0",
        "ALTER TABLE model_versions ADD COLUMN source VARCHAR NOT NULL DEFAULT ''",
    ),
    (
        "CREATE TABLE memory_estimates (header VARCHAR NOT NULL, settings VARCHAR NOT NULL, device VARCHAR NOT NULL, "
        "computed BIGINT NOT NULL, projected BIGINT NOT NULL, projection VARCHAR NOT NULL, measured BIGINT NOT NULL, "
        "driver BIGINT NOT NULL DEFAULT 0, at FLOAT NOT NULL, PRIMARY KEY (header, settings, device))",
    ),
    (
        "CREATE TABLE keys (id VARCHAR NOT NULL PRIMARY KEY, name VARCHAR NOT NULL, digest VARCHAR NOT NULL, "
        "scopes VARCHAR NOT NULL, priority VARCHAR NOT NULL, rate VARCHAR NOT NULL DEFAULT '', "
        "token_rate VARCHAR NOT NULL DEFAULT '', created_at FLOAT NOT NULL, expires_at FLOAT, revoked_at FLOAT)",
    ),
    (
        "ALTER TABLE memory_estimates ADD COLUMN more_driver BIGINT NOT NULL DEFAULT 0",
        "UPDATE memory_estimates SET driver = 0",  # that of a few kinds of models was too low, and which is not said
    ),
    (
        "CREATE TABLE learning_jobs (id VARCHAR NOT NULL PRIMARY KEY, number INTEGER NOT NULL UNIQUE, "
        "job_type VARCHAR NOT NULL, model_name VARCHAR NOT NULL, output_model_name VARCHAR NOT NULL DEFAULT '', "
        "status VARCHAR NOT NULL, priority INTEGER NOT NULL DEFAULT 1, caller VARCHAR NOT NULL DEFAULT '', "
        "idempotency_key VARCHAR, request VARCHAR NOT NULL DEFAULT '{}', memo VARCHAR NOT NULL DEFAULT '{}', "
        "step VARCHAR NOT NULL DEFAULT '', progress FLOAT NOT NULL DEFAULT 0, metrics VARCHAR NOT NULL DEFAULT '{}', "
        "result VARCHAR NOT NULL DEFAULT '{}', error VARCHAR NOT NULL DEFAULT '', message VARCHAR NOT NULL DEFAULT '', "
        "paused BOOLEAN NOT NULL DEFAULT 0, cancel_reason VARCHAR, created_at FLOAT NOT NULL, started_at FLOAT, "
        "completed_at FLOAT, lease_owner VARCHAR NOT NULL DEFAULT '', lease_until FLOAT NOT NULL DEFAULT 0, "
        "fence INTEGER NOT NULL DEFAULT 0, attempts INTEGER NOT NULL DEFAULT 0, UNIQUE (caller, idempotency_key))",
        "CREATE INDEX ix_learning_jobs_status ON learning_jobs (status)",
        "CREATE TABLE learning_job_events (job_id VARCHAR NOT NULL, number INTEGER NOT NULL, at FLOAT NOT NULL, "
        "kind VARCHAR NOT NULL, step VARCHAR NOT NULL DEFAULT '', message VARCHAR NOT NULL DEFAULT '', "
        "metrics VARCHAR NOT NULL DEFAULT '{}', PRIMARY KEY (job_id, number))",
        "ALTER TABLE model_versions ADD COLUMN base VARCHAR NOT NULL DEFAULT ''",
        "ALTER TABLE model_versions ADD COLUMN lineage VARCHAR NOT NULL DEFAULT ''",
    ),
    (
        "CREATE TABLE goals (id VARCHAR NOT NULL PRIMARY KEY, number INTEGER NOT NULL UNIQUE, title VARCHAR NOT NULL, "
        "goal_type VARCHAR NOT NULL, target_completion FLOAT, elapsed FLOAT NOT NULL DEFAULT 0, "
        "status VARCHAR NOT NULL, priority INTEGER NOT NULL DEFAULT 1, caller VARCHAR NOT NULL DEFAULT '', "
        "idempotency_key VARCHAR, request VARCHAR NOT NULL DEFAULT '{}', memo VARCHAR NOT NULL DEFAULT '{}', "
        "progress FLOAT NOT NULL DEFAULT 0, metrics VARCHAR NOT NULL DEFAULT '{}', "
        "result VARCHAR NOT NULL DEFAULT '{}', error VARCHAR NOT NULL DEFAULT '', message VARCHAR NOT NULL DEFAULT '', "
        "cancel_reason VARCHAR, created_at FLOAT NOT NULL, started_at FLOAT, completed_at FLOAT, "
        "lease_owner VARCHAR NOT NULL DEFAULT '', lease_until FLOAT NOT NULL DEFAULT 0, "
        "fence INTEGER NOT NULL DEFAULT 0, attempts INTEGER NOT NULL DEFAULT 0, UNIQUE (caller, idempotency_key))",
        "CREATE INDEX ix_goals_status ON goals (status)",
        "CREATE TABLE goal_events (goal_id VARCHAR NOT NULL, number INTEGER NOT NULL, at FLOAT NOT NULL, "
        "kind VARCHAR NOT NULL, step VARCHAR NOT NULL DEFAULT '', message VARCHAR NOT NULL DEFAULT '', "
        "metrics VARCHAR NOT NULL DEFAULT '{}', PRIMARY KEY (goal_id, number))",
        "ALTER TABLE models ADD COLUMN tuned VARCHAR NOT NULL DEFAULT ''",
    ),
)
