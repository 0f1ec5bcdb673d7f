"""A real PostgreSQL server for tests: its data in a folder of its own, reached through a socket there and by no other
way."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL

from support import need, wait_until


@contextmanager
def postgres() -> Iterator[URL]:
    """The address of an empty database, for SQLAlchemy's async engine, as long as the server runs.

    Nothing is synced: what it holds does not outlive the machine. Without PostgreSQL see `need`.
    """
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    initdb, server = need("initdb", debian), need("postgres", debian)
    # A socket's path may have some hundred characters: not in pytest's own folder, where only root gets in besides.
    folder = Path(tempfile.mkdtemp(prefix="modelops-postgres-"))
    data = folder / "data"
    user = None
    if os.geteuid() == 0:  # it refuses to run as root
        names = {each.pw_name for each in pwd.getpwall()}
        user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
        os.chown(folder, user.pw_uid, user.pw_gid)
    try:
        made = ["--pgdata", str(data), "--username=modelops", "--auth=trust", "--encoding=UTF8", "--locale=C"]
        status = _start([initdb, *made, "--no-sync"], folder, user).wait(60)
        assert status == 0, (folder / "log").read_text()
        process = _start([server, "-D", str(data), "-k", str(folder), "-c", "listen_addresses=", "-F"], folder, user)
        try:
            wait_until(lambda: process.poll() is not None or _ready(data), 30, "PostgreSQL")
            assert process.poll() is None, (folder / "log").read_text()
            yield URL.create("postgresql+asyncpg", "modelops", database="postgres", query={"host": str(folder)})
        finally:
            process.send_signal(signal.SIGINT)  # ends the connections, and then itself
            process.wait(30)
    finally:
        shutil.rmtree(folder)


def _start(argv: list[str], folder: Path, user: pwd.struct_passwd | None) -> subprocess.Popen[bytes]:
    uid, gid = (user.pw_uid, user.pw_gid) if user else (None, None)
    others: tuple[int, ...] | None = () if user else None
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(argv, cwd=folder, stdout=log, stderr=log, user=uid, group=gid, extra_groups=others)


def _ready(data: Path) -> bool:
    try:
        return (data / "postmaster.pid").read_text().split("\n")[7].strip() == "ready"
    except (FileNotFoundError, IndexError):
        return False
