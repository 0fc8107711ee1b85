"""One request on its way through the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from chatglm3.engine.params import SamplingParams
from chatglm3.engine.sampling import Sampler, TokenLogprobs
from chatglm3.model.cache import KVCache

EndReason: TypeAlias = Literal["stop", "length"]


@dataclass(frozen=True)
class Request:
    """A prompt and how to continue it.

    `stop_ids` end the answer; `should_stop` is told every other token and ends it by returning true (how text that the
    engine cannot see, such as a stop string, ends an answer).
    """

    prompt: tuple[int, ...]
    params: SamplingParams
    stop_ids: frozenset[int] = frozenset()
    should_stop: Callable[[int], bool] | None = None


@dataclass(frozen=True)
class Generation:
    """What the engine made of a request. `token_ids` are without the stop id, which is in `stop_id` if one was met."""

    token_ids: tuple[int, ...]
    finish_reason: EndReason
    stop_id: int | None
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens whose keys and values were there already."""
    logprobs: tuple[TokenLogprobs, ...] | None


@dataclass(eq=False)
class RunningSequence:
    """The state of a running request: what was produced, and what the cache holds."""

    request: Request
    cache: KVCache
    sampler: Sampler
    max_new_tokens: int
    cached_tokens: int
    output: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: EndReason | None = None
    stop_id: int | None = None

    @property
    def token_ids(self) -> list[int]:
        """Prompt and answer."""
        return [*self.request.prompt, *self.output]

    @property
    def computed_ids(self) -> list[int]:
        """The tokens that the cache holds."""
        return self.token_ids[: self.cache.tokens]

    def pending(self, limit: int) -> list[int]:
        """The next tokens, at most `limit`, that the network has not seen."""
        done, prompt = self.cache.tokens, self.request.prompt
        if done < len(prompt):
            return list(prompt[done : done + limit])
        return self.output[done - len(prompt) :][:limit]

    @property
    def remaining(self) -> int:
        """How many known tokens the network has not seen."""
        return len(self.request.prompt) + len(self.output) - self.cache.tokens

    def accept(self, token_id: int, logprobs: TokenLogprobs | None) -> None:
        """Add a token, or finish."""
        self.sampler.observe(token_id)
        if logprobs is not None:
            self.logprobs.append(logprobs)
        if token_id in self.request.stop_ids:
            self.finish_reason, self.stop_id = "stop", token_id
            return
        self.output.append(token_id)
        if self.request.should_stop is not None and self.request.should_stop(token_id):
            self.finish_reason = "stop"
        elif len(self.output) >= self.max_new_tokens:
            self.finish_reason = "length"

    def generation(self) -> Generation:
        """The result, once finished (an interrupted one counts as `length`)."""
        return Generation(
            tuple(self.output),
            self.finish_reason or "length",
            self.stop_id,
            len(self.request.prompt),
            self.cached_tokens,
            tuple(self.logprobs) if self.request.params.logprobs is not None else None,
        )
