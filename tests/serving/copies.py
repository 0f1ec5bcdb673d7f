"""Shorter words of the tests of quantised copies."""

from __future__ import annotations

from pathlib import Path

from modelops.serving import quantising
from modelops.serving.quant_plan import Plan, QuantType
from modelops.serving.quantising import quantise


async def copied(source: Path, target: Path, kind: QuantType = "Q8_0") -> Plan:
    plan = await quantising.plan(source, kind)
    await quantise(plan, target, lambda _done, _total: None)
    return plan


def left(folder: Path) -> list[Path]:
    """The files in `folder`, hidden ones too."""
    return [file for file in folder.rglob("*") if file.is_file()]
