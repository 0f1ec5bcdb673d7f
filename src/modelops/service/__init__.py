"""The door: one method for each operation of the operations table, the same for every transport.

Checks the request's meaning, fixes its deadline, delegates. Knows no wire format; owns no state of its own.
"""

from __future__ import annotations

from modelops.service.call import Call, Parts, internal
from modelops.service.inference import Inference
from modelops.service.models import Models
from modelops.service.system import System


class Coordinator(Inference, Models, System):
    """Every operation. Each raises ModelOpsError and nothing else."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self._parts = parts


__all__ = ["Call", "Coordinator", "Parts", "internal"]
