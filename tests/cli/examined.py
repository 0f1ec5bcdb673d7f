"""The command `modelops doctor`, and what always holds of what it says."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cli.command import modelops
from modelops.cli.doctor.findings import Finding

AREAS = ["configuration", "data folder", "network", "engine", "machine", "models"]
FREE_PORTS = {f"MODELOPS_SERVER__{name}_PORT": "0" for name in ("REST", "GRPC", "ZMQ")}


@dataclass
class Told:
    """What the command said."""

    status: int
    ok: bool
    checks: list[Finding]

    def of(self, area: str, name: str) -> list[Finding]:
        return [found for found in self.checks if (found.area, found.name) == (area, name)]

    def one(self, area: str, name: str) -> Finding:
        [found] = self.of(area, name)
        return found

    @property
    def wrong(self) -> list[tuple[str, str]]:
        return [(found.area, found.name) for found in self.checks if found.state == "wrong"]


def parsed(done: subprocess.CompletedProcess[str]) -> Told:
    """What it said, and what always holds of that."""
    assert done.stderr == ""
    answer = json.loads(done.stdout)
    assert set(answer) == {"checks", "ok"}
    told = Told(done.returncode, answer["ok"], [Finding(**check) for check in answer["checks"]])
    assert told.ok == (told.status == 0) == (told.wrong == [])
    for found in told.checks:
        assert found.area in AREAS
        assert found.found
        assert bool(found.mend) == (found.state != "ok")
        assert "could not be looked at" not in found.found
    return told


def doctor(data: Path, *options: str, **env: str) -> Told:
    """The real command on that data folder, with free ports where it is not told otherwise."""
    return parsed(modelops("doctor", "--json", "--data-dir", str(data), *options, **(FREE_PORTS | env)))


def listing(folder: Path) -> dict[str, tuple[int, int, int]]:
    stats = {str(path): path.lstat() for path in folder.rglob("*")}
    return {name: (stat.st_size, stat.st_mode, stat.st_mtime_ns) for name, stat in stats.items()}
