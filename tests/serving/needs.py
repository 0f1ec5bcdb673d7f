"""What tests place: needs of a few bytes, laid down by hand, and machines to place them on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from modelops.serving.memory import Need
from modelops.serving.placement import HOST


def need(
    layers: Sequence[int] = (),
    *,
    output: int = 0,
    tied: int = 0,
    host: int = 0,
    compute: int = 0,
    driver: int = 0,
    visiting: int = 0,
) -> Need:
    """A need of so many bytes."""
    return Need(tuple(layers), output, tied, host, compute, {}, driver, visiting)


def machine(host: int, *gpus: int) -> dict[str, int]:
    """Bytes that are free on each device."""
    return {HOST: host} | {f"gpu{number}": room for number, room in enumerate(gpus)}


def reserve(need: Need, split: Sequence[int]) -> Mapping[str, int]:
    """What each device holds of `need` when GPU n takes `split[n]` of its last units: worked out unit by unit."""
    devices = [HOST] * (len(need.layers) + 1 - sum(split))
    devices += [f"gpu{number}" for number, count in enumerate(split) for _ in range(count)]
    *of_layers, of_output = devices
    beside = need.compute + need.driver + (need.visiting if HOST in devices else 0)
    held = {HOST: need.host + need.compute} | {device: beside for device in devices if device != HOST}
    for size, device in zip(need.layers, of_layers, strict=True):
        held[device] += size
    held[of_output] += need.output + (0 if of_output == HOST else need.tied)
    return held
