"""A job of each kind, from its rows to the answers of a whole model that is the next version of its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chaos.callers import client
from modelops.api.learning import JobType, LearningJob
from modelops.client import Client
from support import serving, wait_until

WORDS = ("red", "green", "blue", "white")
PAIRS = [
    {"prompt": f"the colour of {n}?", "chosen": WORDS[n % 4], "rejected": "a long answer that nobody wants"}
    for n in range(16)
]
HELD_OUT = [{"prompt": f"the colour of {n}?", "completion": WORDS[n % 4]} for n in range(4)]
TOO_LONG = {"prompt": "the colour of " + "a " * 400, "chosen": "red", "rejected": "green"}
PARAMETERS = {
    "steps": 12,
    "batch_size": 4,
    "rank": 4,
    "learning_rate": 0.01,
    "max_length": 128,
    "over_length": "drop",
    "weights": "F16",
    "evaluation": {"metrics": ["f1", "perplexity"], "max_tokens": 4},
}


@pytest.mark.timeout(240)
def test_preferences_make_the_models_next_version_which_answers_when_it_is_told_to(
    learning: None, tiny: Path, tmp_path: Path
) -> None:
    env = {"MODELOPS_LEARNING__THREADS": "1"}
    with serving(tmp_path, links=[("tiny", tiny)], env=env) as served, client(served) as asked:
        before = asked.infer("tiny", "the colour of 1?", max_tokens=4, temperature=0.0)
        job = ended(asked, "dpo", dataset=[*PAIRS, TOO_LONG], eval_dataset=HELD_OUT, parameters=PARAMETERS)
        assert (job.result["model_name"], job.result["model_version"]) == ("tiny", "v2")
        assert job.result["active"] is False
        assert {"before", "after", "paired"} == job.result["scores"]["held_out"].keys()
        for metric, compared in job.result["scores"]["held_out"]["paired"].items():
            assert compared["test"] == "bootstrap", metric
            assert compared["wins"] + compared["losses"] + compared["ties"] == len(HELD_OUT)
            assert 0 < compared["p_loses"] <= 1
        assert job.result["base_version"] == "v1"
        assert (job.result["rows"], job.result["dropped"]) == (len(PAIRS), 1)
        assert "1 rows have more than 128 tokens and are left out: line 17" in job.warnings
        assert job.result["parity"]["merged"]["positions"] > 0
        again = asked.infer("tiny", "the colour of 1?", max_tokens=4, temperature=0.0)
        assert (again.model_version, again.output_text) == ("v1", before.output_text), "nobody has asked for it yet"

        asked.activate("tiny", "v2")
        judged = ended(
            asked, "evaluate", dataset=HELD_OUT, parameters={"metrics": ["f1", "perplexity"], "max_tokens": 4}
        )
        assert judged.result["model_version"] == "v2"
        assert judged.metrics == {"rows": len(HELD_OUT), "total_rows": len(HELD_OUT)}, "each is asked twice"
        assert judged.step == ""
        assert "eta_seconds" not in job.metrics
        after = job.result["scores"]["held_out"]["after"]
        assert judged.result["scores"]["f1"] == after["f1"]
        assert judged.result["scores"]["perplexity"] == pytest.approx(after["perplexity"], rel=0.02)
        kept = {version.model_version: version for version in asked.versions("tiny")}
        assert kept["v2"].active
        assert kept["v2"].lineage["job_id"] == job.job_id
        assert (kept["v2"].lineage["rows"], kept["v2"].lineage["dropped"]) == (len(PAIRS), 1)
        assert kept["v2"].lineage["scores"] == job.result["scores"]
        assert kept["v2"].lineage["base_digest"] == kept["v1"].digest
        asked.roll_back("tiny")
        assert asked.infer("tiny", "the colour of 1?", max_tokens=4, temperature=0.0).output_text == before.output_text


def ended(asked: Client, job_type: JobType, **fields: Any) -> LearningJob:
    job_id = asked.create_job(job_type, "tiny", **fields).job_id
    wait_until(lambda: asked.get_job(job_id).status not in ("pending", "running"), 110.0, "the end of the job")
    job = asked.get_job(job_id)
    assert job.status == "completed", job.error_message
    return job
