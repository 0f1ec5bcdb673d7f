"""The dashboard holds the specification's queries to the letter, shows every family, and asks for nothing else."""

from __future__ import annotations

import re
from collections import Counter

import yaml

from deploy.expressions import alerts, dashboard, names, panels, specified, targets
from deploy.prometheus import DEPLOY
from modelops.metrics.families import FAMILIES, Family

#: What the client library adds to the page about the process.
PROCESS = {
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_virtual_memory_bytes",
}


def series(family: Family) -> set[str]:
    """The names of the family's series."""
    if family.kind == "histogram":
        return {f"{family.name}_{part}" for part in ("bucket", "sum", "count")}
    return {family.name}


KNOWN = PROCESS | {"up"} | {name for family in FAMILIES for name in series(family)}


def test_the_specifications_queries_are_found() -> None:
    assert list(specified()) == [
        "Average inference latency",
        "Inference requests per second",
        "GPU memory utilization",
        "Circuit breaker failure rate",
        "Active model count",
        "Learning job success rate",
    ]


def test_each_of_the_specifications_queries_is_a_panel_of_its_own_to_the_letter() -> None:
    found = {panel["title"]: [target["expr"] for target in panel["targets"]] for panel in panels()}
    assert {title: found.get(title) for title in specified()} == {
        title: [query] for title, query in specified().items()
    }


def test_it_can_be_imported() -> None:
    board = dashboard()
    assert board["uid"] and board["title"]
    assert "id" not in board  # or it would replace another one
    assert board["schemaVersion"] >= 36
    assert [variable["name"] for variable in board["templating"]["list"]] == ["datasource", "instance", "model"]
    assert set(Counter(panel["id"] for panel in board["panels"]).values()) == {1}
    titles = Counter(panel["title"] for panel in board["panels"])
    assert set(titles.values()) == {1}
    for panel in panels():
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        references = [target["refId"] for target in panel["targets"]]
        assert references and len(set(references)) == len(references)


def test_no_panel_lies_upon_another() -> None:
    taken: Counter[tuple[int, int]] = Counter()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        taken.update((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"]))
    assert max(taken.values()) == 1


def test_every_metric_that_is_asked_for_exists() -> None:
    asked = {title: names(query) for title, query in [*targets(), *alerts().items()]}
    assert all(asked.values())
    assert {title: found - KNOWN for title, found in asked.items() if found - KNOWN} == {}


def test_every_family_is_on_the_dashboard() -> None:
    shown = {name for _, query in targets() for name in names(query)}
    assert [family.name for family in FAMILIES if not series(family) & shown] == []


def test_labels_that_are_asked_for_exist() -> None:
    labels = {name: {"instance", "job", "le", *family.labels} for family in FAMILIES for name in series(family)}
    for _, query in [*targets(), *alerts().items()]:
        for name, chosen in re.findall(r"(moc_\w+)\{([^}]*)\}", query):
            assert set(re.findall(r"(\w+)\s*[=!]~?\"", chosen)) <= labels[name], query


def test_every_label_of_the_models_choice_is_bound_to_it() -> None:
    """But for the specification's own queries, which stand as they are."""
    of_models = {name for family in FAMILIES if "model" in family.labels for name in series(family)}
    refused = "moc_requests_refused_total"  # most of what is refused has no model yet
    for title, query in targets():
        if title not in specified():
            for name in names(query) & of_models - {refused}:
                assert f'{name}{{instance=~"$instance", model=~"$model"' in query, title


def test_it_is_provisioned() -> None:
    folder = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "modelops.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((folder / "dashboards" / "modelops.yml").read_text())["providers"]
    assert source["type"] == "prometheus"
    assert provider["type"] == "file"
    readme = (DEPLOY / "README.md").read_text()
    assert provider["options"]["path"] in readme
