"""A real Prometheus server of a test's own, and what it is asked."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from support import Served, need, wait_until

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"

#: A setting that prometheus.yml has in a comment.
_OPTIONAL = re.compile(r"^    # ((?:  )?[a-z_]+:.*)$", re.MULTILINE)

#: Prometheus's times are whole milliseconds, which it rounds as it likes.
CLOCK_S = 0.01

Labels = frozenset[tuple[str, str]]
#: (when, value), oldest first.
Samples = list[tuple[float, float]]


def labels(**values: str) -> Labels:
    """A series' labels."""
    return frozenset(values.items())


def config(*, optional: bool = False) -> dict[str, Any]:
    """deploy/prometheus/prometheus.yml; with `optional` also what it has in comments."""
    text = (DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8")
    found = yaml.safe_load(_OPTIONAL.sub(r"    \1", text) if optional else text)
    assert isinstance(found, dict)
    return found


@dataclass
class Prometheus:
    """A server that runs. Labels of answers are without job, instance and the name."""

    http: httpx.Client

    def get(self, path: str, **params: str) -> Any:
        answer = self.http.get(f"/api/v1/{path}", params=params).json()
        assert answer["status"] == "success", (params, answer)
        return answer["data"]

    def query(self, expression: str, at: float | None = None) -> dict[Labels, float]:
        """Each series' value, at a time of the day."""
        data = self.get("query", query=expression, **_when(at))
        if data["resultType"] == "scalar":
            return {labels(): float(data["result"][1])}
        assert data["resultType"] == "vector"
        found = {_own(series["metric"]): float(series["value"][1]) for series in data["result"]}
        assert len(found) == len(data["result"])
        return found

    def samples(self, metric: str, window: str, at: float) -> dict[Labels, Samples]:
        """What was scraped of each series within the window before `at`."""
        data = self.get("query", query=f"{metric}[{window}]", **_when(at))
        assert data["resultType"] == "matrix"
        return {
            _own(series["metric"]): [(float(when), float(value)) for when, value in series["values"]]
            for series in data["result"]
        }

    def scraped(self) -> float:
        """When the newest page was asked for, of those that came."""
        return max(self.query("timestamp(up) and up == 1").values(), default=0.0)


def _when(at: float | None) -> dict[str, str]:
    return {} if at is None else {"time": f"{at:.3f}"}


def _own(metric: dict[str, str]) -> Labels:
    return frozenset((name, value) for name, value in metric.items() if name not in ("__name__", "job", "instance"))


@contextlib.contextmanager
def scraping(folder: Path, served: Served, settings: dict[str, Any]) -> Iterator[Prometheus]:
    """A Prometheus with those settings that scrapes the coordinator, and looks at our rules, each second."""
    program = need("prometheus")
    settings["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
    settings["rule_files"] = [str(RULES)]
    (job,) = settings["scrape_configs"]
    job["static_configs"] = [{"targets": [served.rest.partition("://")[2]]}]
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    address = f"127.0.0.1:{_free_port()}"
    argv = [program, f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}"]
    argv += [f"--web.listen-address={address}", "--log.level=warn"]
    log = folder / "prometheus.txt"
    with log.open("w") as output:
        process = subprocess.Popen(argv, stdout=output, stderr=output)
    try:
        with httpx.Client(base_url=f"http://{address}") as http:

            def ready() -> bool:
                assert process.poll() is None, log.read_text()
                with contextlib.suppress(httpx.TransportError):
                    return http.get("/-/ready").is_success
                return False

            wait_until(ready, 30, "Prometheus")
            yield Prometheus(http)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    assert "level=error" not in log.read_text()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
