"""What becomes of each tensor of a file that is quantised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modelops.api.errors import InvalidRequest
from modelops.serving import quant_plan
from modelops.serving.gguf_reader import Entry, Table, Tensor
from modelops.serving.quant_plan import Part, WeightType


def part(*tensors: tuple[str, tuple[int, ...], int], **values: Any) -> Part:
    entries = tuple(Entry(key.replace("__", "."), value, range(0)) for key, value in values.items())
    made = tuple(Tensor(name, shape, kind, 0, 1) for name, shape, kind in tensors)
    return Part(Path("m.gguf"), Table(3, entries, made, 32, range(0), 0, b""), 0)


F32, F16, Q4_0, Q8_0, Q6_K, I32, BF16 = 0, 1, 2, 8, 14, 26, 30


@pytest.mark.parametrize(
    ("name", "shape", "kind", "chosen"),
    [
        ("blk.0.attn_q.weight", (64, 64), F16, Q4_0),
        ("blk.0.attn_q.weight", (64, 64), F32, Q4_0),
        ("blk.0.attn_q.weight", (64, 64), BF16, Q4_0),
        ("blk.0.ffn_up_exps.weight", (64, 64, 8), BF16, Q4_0),
        ("blk.0.ffn_up_exps.weight", (64, 1, 8), BF16, Q4_0),
        pytest.param("output.weight", (64, 64), F16, Q8_0, id="the output gets more"),
        pytest.param("token_embd.weight", (64, 64), F16, Q4_0, id="embedding"),
        pytest.param("blk.0.attn_q.bias", (64, 64), F16, F16, id="no weight"),
        pytest.param("output_norm.weight", (64,), F32, F32, id="one dimension"),
        pytest.param("blk.0.x.weight", (64, 1, 1), F16, F16, id="one dimension, written as three"),
        pytest.param("blk.0.attn_q_norm.weight", (64, 64), F32, F32, id="norm"),
        pytest.param("blk.0.ffn_gate_inp.weight", (64, 8), F32, F32, id="router"),
        pytest.param("blk.0.ssm_conv1d.weight", (64, 8), F32, F32, id="convolution"),
        pytest.param("blk.0.time_mix_w1.weight", (64, 8), F32, F32, id="small matrix"),
        pytest.param("position_embd.weight", (64, 8), F32, F32, id="positions"),
        pytest.param("blk.0.attn_q.weight", (48, 64), F32, F16, id="part of a block"),
        pytest.param("blk.0.attn_q.weight", (48, 64), BF16, BF16, id="part of a block, as small"),
        pytest.param("blk.0.attn_q.weight", (256, 64), Q6_K, Q6_K, id="quantised already"),
        pytest.param("blk.0.x.weight", (64, 64), I32, I32, id="integers"),
    ],
)
def test_a_tensor_is_quantised_where_llama_cpp_does_so(
    name: str, shape: tuple[int, ...], kind: int, chosen: int
) -> None:
    others = [(other, (64, 64), F16) for other in ("output.weight", "x.weight") if other != name]
    plan = quant_plan.plan([part((name, shape, kind), *others)], "Q4_0")
    assert plan.steps[0].kind == chosen


def test_an_embedding_that_is_the_output_too_gets_more() -> None:
    plan = quant_plan.plan([part(("token_embd.weight", (64, 64), F16))], "Q4_0")
    assert [step.kind for step in plan.steps] == [Q8_0]


def test_keys_and_values_of_experts_become_floats_as_the_rest_does() -> None:
    expert = part(("blk.0.attn_k.weight", (64, 64), Q4_0), general__architecture="x", x__expert_count=8)
    assert quant_plan.plan([expert], "BF16", again=True).steps[0].kind == BF16


@pytest.mark.parametrize(("experts", "chosen"), [(8, Q8_0), (4, Q4_0)])
def test_keys_and_values_of_eight_experts_get_more(experts: int, chosen: int) -> None:
    tensors = [(f"blk.0.attn_{name}.weight", (64, 64), F16) for name in "kvq"]
    values = {"general__architecture": "llama", "llama__expert_count": experts}
    plan = quant_plan.plan([part(*tensors, **values)], "Q4_0")
    assert [step.kind for step in plan.steps] == [chosen, chosen, Q4_0]


@pytest.mark.parametrize(("kind", "quantised"), [(F16, False), (I32, False), (Q8_0, True), (Q6_K, True)])
def test_a_plan_tells_whether_the_source_is_quantised_already(kind: int, quantised: bool) -> None:
    assert quant_plan.plan([part(("a.weight", (256, 2), F16), ("b", (256, 2), kind))], "Q8_0").quantised is quantised


@pytest.mark.parametrize("name", ["a.weight", "\ufffd.weight"])
def test_names_that_are_no_unique_text_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="names are not unique text"):
        quant_plan.plan([part((name, (64, 2), F16)), part(("a.weight", (64, 2), F16))], "Q8_0")


@pytest.mark.parametrize("text", ["Q8_0", "q4_1"])
def test_a_type_is_known_by_its_name(text: str) -> None:
    assert quant_plan.parse(text) == text.upper()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Q4_K_M", r"does not write Q4_K_M; it writes Q8_0, .* llama-quantize"),
        ("q6_k", "does not write Q6_K"),
        ("IQ2_XXS", "does not write IQ2_XXS"),
        ("MXFP4", "does not write MXFP4"),
        ("F16", "'F16' is no type of quantised weights; the types are Q8_0"),
        ("", "'' is no type"),
    ],
)
def test_another_type_is_refused_by_name(text: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        quant_plan.parse(text)


@pytest.mark.parametrize(
    ("name", "kind", "wanted", "chosen"),
    [
        ("blk.0.attn_q.weight", Q4_0, "Q8_0", Q8_0),
        ("blk.0.attn_q.weight", Q8_0, "Q4_0", Q4_0),
        ("blk.0.attn_q.weight", Q6_K, "Q4_0", Q4_0),
        ("blk.0.attn_q.weight", F16, "Q4_0", Q4_0),
        ("blk.0.attn_q_norm.weight", F32, "Q4_0", F32),
        pytest.param("output.weight", F16, "Q4_0", Q8_0, id="the output gets more"),
        pytest.param("output.weight", Q6_K, "Q8_0", Q6_K, id="but not more than it has"),
        pytest.param("output.weight", Q8_0, "Q4_0", Q8_0, id="the output keeps what it has"),
        pytest.param("blk.0.attn_q.weight", 9, "Q8_0", 9, id="of a type that nobody reads"),
        pytest.param("blk.0.attn_q.weight", Q4_0, "BF16", BF16, id="floats again"),
        pytest.param("blk.0.attn_q.weight", F32, "F16", F16, id="shorter floats"),
        pytest.param("output_norm.weight", F32, "BF16", F32, id="no matrix for floats either"),
        pytest.param("output.weight", F32, "BF16", BF16, id="the output as the others"),
        pytest.param("output.weight", Q8_0, "BF16", Q8_0, id="the output as it is"),
    ],
)
def test_what_is_quantised_already_can_be_written_again(name: str, kind: int, wanted: WeightType, chosen: int) -> None:
    others = [(other, (256, 64), Q4_0) for other in ("output.weight", "x.weight") if other != name]
    plan = quant_plan.plan([part((name, (256, 64), kind), *others)], wanted, again=True)
    assert plan.steps[0].kind == chosen
    assert plan.again


@pytest.mark.parametrize(("kind", "again", "needless"), [(Q8_0, False, True), (Q8_0, True, False), (Q4_0, True, True)])
def test_a_plan_tells_whether_there_is_anything_to_do(kind: int, again: bool, needless: bool) -> None:
    tensors = part(("a.weight", (256, 2), kind), ("output.weight", (256, 2), Q8_0), ("b_norm.weight", (256,), F32))
    assert quant_plan.plan([tensors], "Q4_0", again=again).needless is needless
