from __future__ import annotations

from modelops.serving.events import Usage
from modelops.serving.meter import Meter


def test_answers_under_way_count() -> None:
    meter, one, other = Meter(), [Usage(5, 0)], [Usage(2, 7)]
    meter.began("m", 1, lambda: one[0])
    meter.began("m", 2, lambda: other[0])
    assert meter.total("m") == Usage(7, 7)
    one[0] = Usage(5, 3)
    assert meter.total("m") == Usage(7, 10)
    meter.ended("m", 1)
    assert meter.total("m") == Usage(7, 10)
    meter.ended("m", 2)
    assert meter.total("m") == Usage(7, 10)


def test_it_never_gets_less() -> None:
    meter, usage = Meter(), [Usage(0, 9)]
    meter.began("m", 1, lambda: usage[0])
    assert meter.total("m") == Usage(0, 9)
    usage[0] = Usage(3, 8)
    assert meter.total("m") == Usage(3, 9)
    meter.ended("m", 1)
    assert meter.total("m") == Usage(3, 9)


def test_models_do_not_share() -> None:
    meter = Meter()
    meter.began("a", 1, lambda: Usage(1, 1))
    assert meter.total("b") == Usage()
