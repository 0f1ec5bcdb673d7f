"""The tables of the state file, and the steps that lead from an empty file to them."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Integer, MetaData, String, Table, UniqueConstraint

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
    UniqueConstraint("model_name", "number"),
)

#: Each step is the DDL that makes version N+1 of the state file from version N. Steps are never changed once released.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE model_versions (id INTEGER PRIMARY KEY, model_name VARCHAR NOT NULL, number INTEGER NOT NULL, "
        "model_type VARCHAR NOT NULL, file VARCHAR NOT NULL, size BIGINT NOT NULL, mtime_ns BIGINT NOT NULL, "
        "digest VARCHAR NOT NULL, registered_at FLOAT NOT NULL, UNIQUE (model_name, number))",
        "CREATE INDEX ix_model_versions_model_name ON model_versions (model_name)",
    ),
)
