"""Versions that were made for a goal are forgotten, unless something needs them still."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from modelops.api.errors import Conflict
from modelops.goals.doing import Tools
from modelops.serving.catalog import Version


async def remove(tools: Tools, versions: Sequence[Version]) -> list[str]:
    """Forget those of `versions`, all of one model, that do not answer; their labels. Engines that were replaced are
    waited for as long as a request may take. Raises Conflict where one is needed still, by adapters, a learning job, or
    an engine: it is left, and the others are gone."""
    removed, needed = [], []
    for version in versions:
        await _retired(tools, version)
        why = await _need(tools, version)
        if _answers(tools, version):
            continue
        if why:
            needed.append(f"{version.label}, {why}")
        else:
            await tools.catalog.remove([version], tools.pool.unused)
            removed.append(version.label)
    if needed:
        raise Conflict(f"what was made for the goal is needed still, and left: {'; '.join(needed)}")
    return removed


async def _retired(tools: Tools, version: Version) -> None:
    """Wait until no engine finishes with the version what it was asked."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(tools.settings.server.request_timeout_s):
            while _runs(tools, version) and not _answers(tools, version):
                await tools.pool.turned()


async def _need(tools: Tools, version: Version) -> str:
    """What needs the version; empty: nothing does."""
    if adapters := await tools.pool.adapters.orphaned([version]):
        named = ", ".join(f"'{adapter.model_name}' {adapter.label}" for adapter in adapters)
        return f"for which adapters were made: {named}"
    if job := (await tools.jobs.in_use()).get((version.model_name, version.label)):
        return f"which the learning job {job} trains or judges"
    return "which an engine runs" if _runs(tools, version) else ""


def _runs(tools: Tools, version: Version) -> bool:
    return version.number in tools.pool.in_use(version.model_name)


def _answers(tools: Tools, version: Version) -> bool:
    return tools.catalog.active(version.model_name).number == version.number
