"""Scripts as users of the official classes write them; only the import line differs."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from chatglm3.compat import AutoModel, AutoModelForCausalLM, AutoTokenizer
from taught import CALL, GREETING, RESULT, STORY, SYSTEM, TRUSTED, WEATHER, Loaded


def test_the_readme_script(taught_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(taught_dir), trust_remote_code=True)
    model = AutoModel.from_pretrained(str(taught_dir), trust_remote_code=True, device="cpu")
    model = model.eval()
    response, history = model.chat(tokenizer, "你好", history=[], do_sample=False)
    assert response == "你好，很高兴见到你。"
    response, history = model.chat(tokenizer, "Tell me a story.", history=history, do_sample=False)
    assert response == "👋 short"
    assert history == [*GREETING, *STORY]


def test_a_terminal_chat_with_past_key_values(taught: Loaded, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = taught.model, taught.tokenizer
    past_key_values, history = None, []
    for query in ("你好", "Tell me a story."):
        print("\nChatGLM：", end="")
        current_length = 0
        for response, history, past_key_values in model.stream_chat(  # noqa: B007, B020 (as in the official loop)
            tokenizer,
            query,
            history=history,
            top_p=1,
            temperature=0.01,
            past_key_values=past_key_values,
            return_past_key_values=True,
        ):
            print(response[current_length:], end="", flush=True)
            current_length = len(response)
    assert capsys.readouterr().out == "\nChatGLM：你好，很高兴见到你。\nChatGLM：👋 short"
    assert history == [*GREETING, *STORY]


def test_one_list_reused_for_many_queries(taught: Loaded) -> None:
    """The trap this project began with: officially the list has 50 user turns afterwards, and every prompt grows."""
    hist: list[dict[str, Any]] = []
    lengths = []
    for _ in range(50):
        response, new_history = taught.model.chat(taught.tokenizer, "你好", history=hist, do_sample=False)
        lengths.append(taught.tokenizer.build_chat_input("你好", history=hist)["input_ids"].shape[1])
        assert response == "你好，很高兴见到你。"
        assert len(new_history) == 2
    assert hist == []
    assert len(set(lengths)) == 1


def test_a_classification_loop_after_a_system_turn(taught: Loaded) -> None:
    system = [{"role": "system", "content": "Tools:"}]
    before = deepcopy(system)
    for _ in range(3):
        _, history = taught.model.chat(taught.tokenizer, "你好", history=system, max_new_tokens=3)
        assert history[0] == system[0]
        assert history[0] is not system[0]
    assert system == before


def test_a_batch_of_chats(taught: Loaded) -> None:
    model, tokenizer = taught.model, taught.tokenizer
    stop = [tokenizer.eos_token_id, tokenizer.get_command("<|user|>"), tokenizer.get_command("<|observation|>")]
    tokenizer.encode_special_tokens = True
    prompts = [TRUSTED, "<|user|>\nTell me a story, a short story.<|assistant|>"]
    inputs = tokenizer(prompts, return_tensors="pt", padding="longest", truncation=True, max_length=200).to(
        model.device
    )
    outputs = model.generate(**inputs, max_length=256, max_new_tokens=40, eos_token_id=stop)
    texts = [
        tokenizer.decode(output[len(ids) :], skip_special_tokens=True).strip()
        for ids, output in zip(inputs.input_ids, outputs, strict=True)
    ]
    assert texts[0] == "你好，很高兴见到你。"
    alone = model.generate(**tokenizer(prompts[1], return_tensors="pt"), max_new_tokens=40, eos_token_id=stop)
    assert outputs[1].tolist()[: alone.shape[1]] == alone[0].tolist()  # beside others a row gets the same tokens


def test_generating_from_a_chat_input(taught: Loaded) -> None:
    inputs = taught.tokenizer.build_chat_input("你好", history=[], role="user").to(taught.model.device)
    outputs = taught.model.generate(**inputs, eos_token_id=[2, taught.tokenizer.get_command("<|user|>")])
    new = outputs.tolist()[0][len(inputs["input_ids"][0]) :]
    assert new[-1] == taught.tokenizer.get_command("<|user|>")
    response, history = taught.model.process_response(taught.tokenizer.decode(new[:-1]), GREETING[:1])
    assert (response, history) == (GREETING[1]["content"], GREETING)


def test_a_tool_call_and_its_result(taught: Loaded) -> None:
    history: list[dict[str, Any]] = [SYSTEM]
    response, history = taught.model.chat(taught.tokenizer, "北京今天天气怎么样？", history=history, do_sample=False)
    assert response == {"name": "get_weather", "parameters": {"city": "北京"}}
    assert history == [SYSTEM, *WEATHER]
    response, history = taught.model.chat(
        taught.tokenizer, '{"sky": "晴"}', history=history, role="observation", do_sample=False
    )
    assert response == "北京今天晴。"
    assert history == [SYSTEM, *WEATHER, *RESULT]


def test_a_tool_call_that_streams(taught: Loaded) -> None:
    """Officially this is a SyntaxError: the unfinished call is evaluated at every token."""
    steps = list(taught.model.stream_chat(taught.tokenizer, WEATHER[0]["content"], [SYSTEM], do_sample=False))
    assert steps[-1] == ({"name": "get_weather", "parameters": {"city": "北京"}}, [SYSTEM, *WEATHER])
    assert all(isinstance(response, str) for response, _ in steps[:-1])
    assert "我很好" in [response for response, _ in steps]
    assert all(CALL["content"] not in response for response, _ in steps[:-1])


def test_a_base_model_script(taught_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(taught_dir, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(taught_dir, trust_remote_code=True, device_map="cpu")
    inputs = tokenizer(["今天天气"], return_tensors="pt").to("cpu")
    outputs = model.generate(**inputs, max_length=inputs.input_ids.shape[1] + 5, eos_token_id=[])
    assert outputs.shape == (1, inputs.input_ids.shape[1] + 5)
    assert outputs.dtype == torch.long
    assert isinstance(tokenizer.decode(outputs[0].tolist()), str)


def test_a_training_step(taught: Loaded) -> None:
    taught.model.chat(taught.tokenizer, "你好", do_sample=False)  # nothing that inference leaves behind stops gradients
    inputs = taught.tokenizer.build_chat_input("你好")
    optimizer = torch.optim.SGD(taught.model.parameters(), lr=0.1)
    losses = []
    for _ in range(3):
        loss = taught.model(**inputs, labels=inputs.input_ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
