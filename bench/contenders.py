"""Who is measured by `cpu.py`, each behind the same three questions: logits, prefill, decode.

Everybody computes greedily: choosing the likeliest of 65,024 scores is part of every time measured. Every decoded token
counts what its user waits for: this project runs through its `Engine`, llama.cpp through `llama_decode` of its
low-level API, transformers through its model's forward with a `DynamicCache` (its `generate` costs more).
"""

from __future__ import annotations

import ctypes
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from chatglm3.engine.engine import Engine
from chatglm3.engine.params import SamplingParams
from chatglm3.engine.sequence import Generating, Request
from chatglm3.kernels import native
from chatglm3.model.transformer import ChatGLMModel

CONTEXT = 1024
PACKAGES = {"llama": ("llama-cpp-python", "llama_cpp"), "transformers": ("transformers", "transformers")}


class Contender(Protocol):
    name: str
    weight_bytes: int  # of weights that one decoded token reads

    def logits(self, prompt: list[int]) -> NDArray[np.float32]:
        """Scores `[vocabulary]` behind the prompt."""

    def prefill(self, prompt: list[int]) -> float:
        """Seconds from the prompt to the token behind it."""

    def decode(self, prompt: list[int], tokens: int) -> list[float]:
        """Seconds of each of `tokens` tokens, one after the other; the prompt's own time is not counted."""

    def close(self) -> None:
        """Free the memory."""


class Ours:
    """This project, through its engine; no cache is kept between requests."""

    def __init__(self, name: str, model: ChatGLMModel) -> None:
        self.name = name
        self.weight_bytes = sum(
            tensor.nbytes
            for key, tensor in model.state_dict().items()
            if "word_embeddings" not in key and not key.endswith("inv_freq")
        )
        self._engine = Engine(model, model.config.padded_vocab_size, kept_caches=0)

    @torch.inference_mode()
    def logits(self, prompt: list[int]) -> NDArray[np.float32]:
        model = self._engine.model
        scores: NDArray[np.float32] = model.logits(model.encode(torch.tensor([prompt]))[0, -1]).float().numpy()
        return scores

    def prefill(self, prompt: list[int]) -> float:
        start = time.perf_counter()
        self._engine.generate([_request(prompt, 1)])
        return time.perf_counter() - start

    def decode(self, prompt: list[int], tokens: int) -> list[float]:
        return self.decode_rows([prompt], tokens)

    def decode_rows(self, prompts: list[list[int]], tokens: int) -> list[float]:
        """Seconds of each of `tokens` steps, in which every row gets one token."""
        core, model = self._engine.core, self._engine.model
        running = [Generating(_request(p, tokens + 1), tokens + 1, model.config.padded_vocab_size) for p in prompts]
        for row in running:
            core.submit(row)
        while any(not row.output for row in running):
            core.step()
        seconds = []
        while not running[0].is_done:
            start = time.perf_counter()
            core.step()
            seconds.append(time.perf_counter() - start)
        for row in running:
            row.cancel()
        core.tidy()
        return seconds[:tokens]

    def close(self) -> None:
        self._engine.close()


class PlainTorch(Ours):
    """This project's network on torch's own operations."""

    NAME = "plain torch"

    def logits(self, prompt: list[int]) -> NDArray[np.float32]:
        with _torch_kernels():
            return super().logits(prompt)

    def prefill(self, prompt: list[int]) -> float:
        with _torch_kernels():
            return super().prefill(prompt)

    def decode_rows(self, prompts: list[list[int]], tokens: int) -> list[float]:
        with _torch_kernels():
            return super().decode_rows(prompts, tokens)


class Transformers:
    """transformers' native GLM, which computes ChatGLM3's network, on the very tensors of one of our models."""

    def __init__(self, model: ChatGLMModel) -> None:
        from transformers import GlmConfig, GlmForCausalLM
        from transformers.models.glm.modeling_glm import GlmRotaryEmbedding

        self.name = f"transformers {version('transformers')}"
        c = model.config
        config = GlmConfig(
            vocab_size=c.padded_vocab_size,
            hidden_size=c.hidden_size,
            intermediate_size=c.ffn_hidden_size,
            num_hidden_layers=c.num_layers,
            num_attention_heads=c.num_attention_heads,
            num_key_value_heads=c.multi_query_group_num,
            head_dim=c.kv_channels,
            rms_norm_eps=c.layernorm_epsilon,
            attention_bias=c.add_qkv_bias,
            max_position_embeddings=c.seq_length,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
            pad_token_id=0,
            eos_token_id=2,
        )
        with torch.device("meta"):
            self._glm = GlmForCausalLM(config).eval().requires_grad_(False)
        self._glm.load_state_dict(_transformers_state(model), assign=True)
        self._glm.model.rotary_emb = GlmRotaryEmbedding(config)
        self.weight_bytes = sum(t.nbytes for n, t in self._glm.state_dict().items() if "embed_tokens" not in n)

    def logits(self, prompt: list[int]) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = self._forward(prompt, _dynamic_cache()).numpy()
        return scores

    def prefill(self, prompt: list[int]) -> float:
        start = time.perf_counter()
        int(self._forward(prompt, _dynamic_cache()).argmax())
        return time.perf_counter() - start

    def decode(self, prompt: list[int], tokens: int) -> list[float]:
        cache = _dynamic_cache()
        token = int(self._forward(prompt, cache).argmax())
        seconds = []
        for _ in range(tokens):
            start = time.perf_counter()
            token = int(self._forward([token], cache).argmax())
            seconds.append(time.perf_counter() - start)
        return seconds

    def close(self) -> None:
        del self._glm

    @torch.inference_mode()
    def _forward(self, tokens: list[int], cache: object) -> torch.Tensor:
        hidden = self._glm.model(torch.tensor([tokens]), past_key_values=cache, use_cache=True).last_hidden_state
        # Its own `logits_to_keep=1` slices a view, for which torch with oneDNN may copy the whole head: seconds more.
        scores: torch.Tensor = self._glm.lm_head(hidden[:, -1])[0].float()
        return scores


class LlamaCpp:
    """llama.cpp on a GGUF file, as it comes: memory-mapped, flash attention and repacked weights as it likes best."""

    def __init__(self, file: Path, kind: str, threads: int) -> None:
        import llama_cpp
        from gguf import GGUFReader

        logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL + 1)  # failures raise
        self.name = f"llama.cpp {kind}"
        self.weight_bytes = sum(int(t.n_bytes) for t in GGUFReader(file).tensors if t.name != "token_embd.weight")
        self._api = llama_cpp
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(file), llama_cpp.llama_model_default_params())
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {file}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = CONTEXT, 512, 512
        params.n_threads = params.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    def logits(self, prompt: list[int]) -> NDArray[np.float32]:
        self._clear()
        return self._decode(prompt).copy()

    def prefill(self, prompt: list[int]) -> float:
        self._clear()
        start = time.perf_counter()
        int(self._decode(prompt).argmax())
        return time.perf_counter() - start

    def decode(self, prompt: list[int], tokens: int) -> list[float]:
        self._clear()
        token = int(self._decode(prompt).argmax())
        seconds = []
        for _ in range(tokens):
            start = time.perf_counter()
            token = int(self._decode([token]).argmax())
            seconds.append(time.perf_counter() - start)
        return seconds

    def close(self) -> None:
        self._api.llama_free(self._context)
        self._api.llama_model_free(self._model)

    def keep(self, prefix: list[int]) -> None:
        """Compute a prefix, behind which `behind_kept` starts every time."""
        self._clear()
        self._decode(prefix)
        self._kept = len(prefix)

    def behind_kept(self, tokens: list[int]) -> NDArray[np.float32]:
        """Scores behind `tokens` behind the kept prefix; a view that the next call changes."""
        memory = self._api.llama_get_memory(self._context)
        if not self._api.llama_memory_seq_rm(memory, 0, self._kept, -1):
            raise RuntimeError("llama.cpp cannot go back to the prefix")
        return self._decode(tokens)

    def _clear(self) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)

    def _decode(self, tokens: list[int]) -> NDArray[np.float32]:
        """Scores behind the last of `tokens`, which follow those decoded before; a view that the next call changes."""
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        status = self._api.llama_decode(self._context, self._api.llama_batch_get_one(ids, len(tokens)))
        if status:
            raise RuntimeError(f"llama_decode of {len(tokens)} tokens returned {status}")
        scores = self._api.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(scores, (self._vocabulary,))


def installed(name: str) -> bool:
    """Whether the contender's package is here; a line says which is not."""
    package, module = PACKAGES[name]
    if find_spec(module) is not None and (name != "llama" or find_spec("gguf") is not None):
        return True
    also = " gguf" if name == "llama" else ""
    print(f"{name} is left out: it is not installed (pip install {package}{also})")
    return False


@contextmanager
def _torch_kernels() -> Iterator[None]:
    """Our own kernels are not used inside."""
    before = os.environ.get("CHATGLM3_KERNELS", "")
    try:
        os.environ["CHATGLM3_KERNELS"] = native.TORCH
        native.reset()
        yield
    finally:
        os.environ["CHATGLM3_KERNELS"] = before
        native.reset()


def _request(prompt: list[int], tokens: int) -> Request:
    return Request(tuple(prompt), SamplingParams(temperature=0, max_new_tokens=tokens))


def _dynamic_cache() -> object:
    from transformers import DynamicCache

    return DynamicCache()


def _transformers_state(model: ChatGLMModel) -> dict[str, torch.Tensor]:
    """Our tensors under transformers' names; the three parts of the fused projection are views of it."""
    ours, c = model.transformer, model.config
    state = {
        "model.embed_tokens.weight": ours.embedding.word_embeddings.weight,
        "model.norm.weight": ours.encoder.final_layernorm.weight,
        "lm_head.weight": ours.output_layer.weight,
    }
    parts = [c.num_attention_heads * c.kv_channels, *[c.multi_query_group_num * c.kv_channels] * 2]
    for i, block in enumerate(model.blocks):
        name, qkv = f"model.layers.{i}", block.self_attention.query_key_value
        for kind, weight, bias in zip("qkv", qkv.weight.split(parts), qkv.bias.split(parts), strict=True):
            state |= {f"{name}.self_attn.{kind}_proj.weight": weight, f"{name}.self_attn.{kind}_proj.bias": bias}
        state |= {
            f"{name}.self_attn.o_proj.weight": block.self_attention.dense.weight,
            f"{name}.mlp.gate_up_proj.weight": block.mlp.dense_h_to_4h.weight,
            f"{name}.mlp.down_proj.weight": block.mlp.dense_4h_to_h.weight,
            f"{name}.input_layernorm.weight": block.input_layernorm.weight,
            f"{name}.post_attention_layernorm.weight": block.post_attention_layernorm.weight,
        }
    return {key: tensor.detach() for key, tensor in state.items()}
