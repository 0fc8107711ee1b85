from __future__ import annotations

import pytest
import torch

from chatglm3.engine.engine import Engine
from chatglm3.engine.params import SamplingParams
from chatglm3.engine.sequence import Request
from chatglm3.errors import NumericsError
from chatglm3.model.transformer import ChatGLMModel
from tiny_model import greedy, tiny_config, tiny_model

PROMPT = (5, 17, 20, 9)
GREEDY = SamplingParams(temperature=0, max_new_tokens=8)
LAYERS = "transformer.encoder.layers"


@pytest.fixture
def fresh() -> ChatGLMModel:
    """A model whose weights a test may spoil."""
    return tiny_model(tiny_config(64))


def poison(model: ChatGLMModel, name: str, value: float, row: int = 0) -> None:
    with torch.no_grad():
        model.get_parameter(name)[row] = value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("weight", "module"),
    [
        (f"{LAYERS}.1.mlp.dense_4h_to_h.weight", f"{LAYERS}.1.mlp.dense_4h_to_h"),
        (f"{LAYERS}.0.self_attention.query_key_value.bias", f"{LAYERS}.0.self_attention.query_key_value"),
        (f"{LAYERS}.1.self_attention.dense.weight", f"{LAYERS}.1.self_attention.dense"),
        (f"{LAYERS}.1.input_layernorm.weight", f"{LAYERS}.1.input_layernorm"),
        ("transformer.encoder.final_layernorm.weight", "transformer.encoder.final_layernorm"),
    ],
)
def test_the_first_bad_module_is_named(fresh: ChatGLMModel, weight: str, module: str, value: float) -> None:
    poison(fresh, weight, value, row=-1)  # in the fused projection the last row belongs to a value
    with pytest.raises(NumericsError, match=rf"^NaN or infinite values first appear in {module} at position 0; ") as e:
        Engine(fresh, 60).generate([Request(PROMPT, GREEDY)])
    assert "\n" not in str(e.value)
    assert "try dtype='bfloat16' or 'float32'" in str(e.value)


@pytest.mark.parametrize("chunk", [1, 3, 512])
def test_the_position_is_that_of_the_first_bad_token(fresh: ChatGLMModel, chunk: int) -> None:
    poison(fresh, "transformer.embedding.word_embeddings.weight", float("nan"), row=PROMPT[2])
    engine = Engine(fresh, 60, prefill_chunk=chunk, max_batch=1)
    with pytest.raises(NumericsError, match=r"in transformer\.embedding\.word_embeddings at position 2"):
        engine.generate([Request(PROMPT, GREEDY)])


def test_a_bad_token_that_the_answer_comes_to(fresh: ChatGLMModel) -> None:
    answer = greedy(fresh, PROMPT, 8, 60)
    assert answer[3] not in {*PROMPT, *answer[:3]}
    poison(fresh, "transformer.embedding.word_embeddings.weight", float("inf"), row=answer[3])
    stream = Engine(fresh, 60).stream(Request(PROMPT, GREEDY))
    assert [next(stream) for _ in range(4)] == answer[:4]
    with pytest.raises(NumericsError, match=r"word_embeddings at position 7"):
        next(stream)


def test_the_bad_row_of_a_batch_is_examined(fresh: ChatGLMModel) -> None:
    poison(fresh, "transformer.embedding.word_embeddings.weight", float("nan"), row=33)
    rows = [(1, 2), PROMPT, (1, 2, 3, 4, 33), (7,)]
    with pytest.raises(NumericsError, match=r"word_embeddings at position 4"):
        Engine(fresh, 60).generate([Request(row, GREEDY) for row in rows])


def test_the_output_layer_is_named_with_the_last_position(fresh: ChatGLMModel) -> None:
    poison(fresh, "transformer.output_layer.weight", float("nan"), row=7)
    with pytest.raises(NumericsError, match=r"in transformer\.output_layer at position 3"):
        Engine(fresh, 60).generate([Request(PROMPT, GREEDY)])


def test_ids_without_a_meaning_may_have_any_logit(fresh: ChatGLMModel) -> None:
    expected = greedy(fresh, PROMPT, 8, 60)
    for row, value in ((60, float("nan")), (61, float("inf")), (63, float("-inf"))):
        poison(fresh, "transformer.output_layer.weight", value, row)
    assert list(Engine(fresh, 60).generate([Request(PROMPT, GREEDY)])[0].token_ids) == expected


def test_score_and_beams_name_it_too(fresh: ChatGLMModel) -> None:
    poison(fresh, "transformer.embedding.word_embeddings.weight", float("nan"), row=40)
    engine = Engine(fresh, 60)
    with pytest.raises(NumericsError, match=r"word_embeddings at position 5"):
        engine.score(PROMPT, [(3, 4), (3, 40, 5)])
    with pytest.raises(NumericsError, match=r"word_embeddings at position 1"):
        engine.beams(Request((3, 40), SamplingParams(num_beams=2)))
    # Nothing of what failed is kept.
    params = SamplingParams(max_new_tokens=1)
    assert engine.generate([Request((*PROMPT, 1), params)])[0].cached_tokens == 0


def test_very_large_scores_are_numbers(fresh: ChatGLMModel) -> None:
    """Their sum is infinite; they are not."""
    expected = greedy(fresh, PROMPT, 8, 60)
    with torch.no_grad():
        fresh.get_parameter("transformer.output_layer.weight").mul_(1e37)
    logits = fresh(torch.tensor([PROMPT])).logits[0, -1, :60]
    assert torch.isfinite(logits).all()
    assert not torch.isfinite(logits.abs().sum())
    assert list(Engine(fresh, 60).generate([Request(PROMPT, GREEDY)])[0].token_ids) == expected


def test_a_failure_does_not_spoil_later_calls(fresh: ChatGLMModel) -> None:
    engine = Engine(fresh, 60)
    good = [Request((1, 2, 3, i), GREEDY) for i in range(4, 7)]
    expected = [greedy(fresh, r.prompt, 8, 60) for r in good]
    weight = fresh.get_parameter(f"{LAYERS}.0.mlp.dense_4h_to_h.weight")
    healthy = weight.clone()
    for _ in range(3):
        poison(fresh, f"{LAYERS}.0.mlp.dense_4h_to_h.weight", float("nan"))
        with pytest.raises(NumericsError):
            engine.generate(good)
        with pytest.raises(NumericsError):
            list(engine.stream(good[0]))
        assert engine.cache_bytes == 0
        with torch.no_grad():
            weight.copy_(healthy)
        assert [list(g.token_ids) for g in engine.generate(good)] == expected


def test_the_diagnosis_leaves_the_model_without_hooks(fresh: ChatGLMModel) -> None:
    poison(fresh, f"{LAYERS}.0.mlp.dense_4h_to_h.weight", float("nan"))
    with pytest.raises(NumericsError):
        Engine(fresh, 60).generate([Request(PROMPT, GREEDY)])
    assert not any(module._forward_hooks for module in fresh.modules())


def test_what_cannot_be_found_again_is_said(fresh: ChatGLMModel) -> None:
    """A fault of the machine: the second time every number is one."""
    faults = iter([float("nan")])
    layer = fresh.transformer.output_layer
    layer.register_forward_hook(lambda _module, _inputs, output: output + next(faults, 0.0))
    with pytest.raises(NumericsError, match="not when computed again: the device or its memory is at fault"):
        Engine(fresh, 60).generate([Request(PROMPT, GREEDY)])


def test_float16_that_overflows_is_told_what_to_try() -> None:
    model = tiny_model(tiny_config(64))
    with torch.no_grad():
        model.get_parameter(f"{LAYERS}.1.mlp.dense_4h_to_h.weight").mul_(3e4)
    assert Engine(model, 60).generate([Request(PROMPT, GREEDY)])  # fine in float32
    with pytest.raises(NumericsError, match=r"layers\.1.* at position \d; .*float16 too narrow"):
        Engine(model.half(), 60).generate([Request(PROMPT, GREEDY)])
