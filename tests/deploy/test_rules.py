"""The alerts, as promtool sees them: right, and each fires when it should and only then (rules_test.yml)."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from deploy.expressions import alerts
from deploy.prometheus import DEPLOY, RULES
from support import need

FOLDER = DEPLOY / "prometheus"
ALERTS = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


@pytest.mark.program("promtool")
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "--lint=all", "--lint-fatal", "rules.yml"),
        ("test", "rules", "rules_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_agrees(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [need("promtool"), *arguments], cwd=FOLDER, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_shown_to_fire() -> None:
    cases = (FOLDER / "rules_test.yml").read_text()
    assert set(re.findall(r'ALERTS{alertname="(\w+)", alertstate="firing"', cases)) == alerts().keys()


def test_each_alert_is_told_of_with_its_severity() -> None:
    page = (DEPLOY.parent / "docs" / "observability.md").read_text()
    told = {
        name: row[0]
        for row in re.findall(r"^\| (\w+) \| (`ModelOps.*?) \|", page, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row[1])
    }
    assert told == {rule["alert"]: rule["labels"]["severity"] for rule in ALERTS}


@pytest.mark.program("promtool")
def test_an_alert_that_fires_too_soon_is_noticed(tmp_path: Path) -> None:
    """So that a test of rules that passes says something: with thresholds that are too low it fails."""
    (tmp_path / "rules.yml").write_text(RULES.read_text().replace("> 0.9", "> 0.3"))
    (tmp_path / "rules_test.yml").write_text((FOLDER / "rules_test.yml").read_text())
    done = subprocess.run(
        [need("promtool"), "test", "rules", "rules_test.yml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode != 0
    assert "ModelOpsDiskNearlyFull" in done.stdout + done.stderr


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: str(rule["alert"]))
def test_each_alert_says_what_to_do(rule: dict[str, dict[str, str]]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert rule["annotations"].keys() == {"summary", "description"}
    *_, last = rule["annotations"]["description"].splitlines()
    assert last.startswith("To do: ")
    assert not rule["annotations"]["summary"].endswith(".")
