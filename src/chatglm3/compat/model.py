"""The official causal-LM class's calls on top of the engine.

What differs from the official class, on purpose: the caller's history is never changed; the last token is never lost,
also when an answer ends by its length; a tool call is read, not evaluated, and a malformed one is returned as
{"name", "content"} instead of an exception; a call's header and content are stored stripped, so that a replayed history
gives the ids the model wrote; temperature 0 is greedy; a logit that is not a number is a `NumericsError`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from chatglm3.compat.forward import Past, forward
from chatglm3.compat.generation import join, unpad
from chatglm3.compat.network import OfficialModel
from chatglm3.compat.options import refuse_processors, sampling_params
from chatglm3.compat.tokenizer import ChatGLMTokenizer
from chatglm3.compat.turn import Answer, Items, Turn, as_dicts, stream_answers
from chatglm3.engine.engine import Engine
from chatglm3.engine.sequence import Request
from chatglm3.messages import as_history
from chatglm3.model.transformer import ChatGLMModel
from chatglm3.prompt import chat_prompt
from chatglm3.reply import official_response, parse_ids, parse_text


@dataclass(frozen=True)
class PastKeyValues:
    """What `stream_chat` gives as `past_key_values`: a token to hand back, without content.

    The engine keeps the keys and values itself and finds them by comparing ids, so a turn that goes on from an earlier
    one computes only what is new, with or without this; and a wrong one cannot mislead it.
    """


class ChatGLMForConditionalGeneration(OfficialModel):
    """A ChatGLM3 model with the official calls. Made by `AutoModel.from_pretrained`."""

    def __init__(self, network: ChatGLMModel, vocab_size: int | None = None) -> None:
        """`vocab_size` is the number of ids with a meaning; the tokenizer of a chat says it too."""
        super().__init__(network)
        self._vocab_size = vocab_size or network.config.padded_vocab_size
        self._engine: Engine | None = None

    def chat(
        self,
        tokenizer: ChatGLMTokenizer,
        query: str,
        history: Items = None,
        role: str = "user",
        max_length: int = 8192,
        num_beams: int = 1,
        do_sample: bool = True,
        top_p: float = 0.8,
        temperature: float = 0.8,
        logits_processor: Sequence[object] | None = None,
        **kwargs: Any,
    ) -> Answer:
        """Answer `query`: the response, and a new history of official dicts; `history` is not changed.

        `max_length` bounds prompt and answer together; `kwargs` are further fields of `SamplingParams`, such as
        `repetition_penalty`, `top_k` or `max_new_tokens`.
        """
        refuse_processors(logits_processor)
        turn = Turn.of(query, history, role)
        options = {"num_beams": num_beams, "top_p": top_p, "temperature": temperature, **kwargs}
        request = self._request(tokenizer, turn, options, do_sample, max_length)
        generation = self._engine_for(tokenizer).generate([request])[0]
        return turn.answered(parse_ids(tokenizer.tokenizer, generation.token_ids))

    def stream_chat(
        self,
        tokenizer: ChatGLMTokenizer,
        query: str,
        history: Items = None,
        role: str = "user",
        past_key_values: PastKeyValues | None = None,
        max_length: int = 8192,
        do_sample: bool = True,
        top_p: float = 0.8,
        temperature: float = 0.8,
        logits_processor: Sequence[object] | None = None,
        return_past_key_values: bool = False,
        **kwargs: Any,
    ) -> Iterator[tuple[Any, ...]]:
        """Yield (response so far, new history), and `past_key_values` as a third if asked for.

        The response grows with each token, the first one included, by whole characters; the last step has all of it. Of
        a tool call only the name shows, until the last step gives the call as a dict. `past_key_values` may be handed
        back with the history it belongs to: the answers are the same with and without. The arguments are checked at
        once, not at the first step.
        """
        if not isinstance(past_key_values, PastKeyValues | None):
            raise TypeError(f"past_key_values must be what stream_chat gave, not {type(past_key_values).__name__}")
        refuse_processors(logits_processor)
        turn = Turn.of(query, history, role)
        request = self._request(
            tokenizer, turn, {"top_p": top_p, "temperature": temperature, **kwargs}, do_sample, max_length
        )
        answers = stream_answers(self._engine_for(tokenizer).stream(request), turn, tokenizer.tokenizer)
        return ((*answer, PastKeyValues()) for answer in answers) if return_past_key_values else answers

    def process_response(self, output: str, history: Items) -> Answer:
        """Parse an answer's text: the response, and a new history with the answer's messages at its end."""
        items = list(history or ())
        parsed = parse_text(output)
        return official_response(parsed, as_history(items)), as_dicts([*items, *parsed.messages])

    def generate(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int = 0,
        max_length: int | None = None,
        do_sample: bool = False,
        top_p: float = 1.0,
        temperature: float = 1.0,
        logits_processor: Sequence[object] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Continue each row of `input_ids` [b, n], padded on the left: [b, n + new ids], stop ids included.

        A row that ends before the others is filled with `pad_token_id`. `eos_token_id` is config.json's (2) if not
        given; `max_length` counts the n ids too, and without it and `max_new_tokens` the context is the limit.
        """
        refuse_processors(logits_processor)
        rows, engine = unpad(input_ids, attention_mask, position_ids), self._engine_for(None)
        params = sampling_params(
            {"top_p": top_p, "temperature": temperature, **kwargs},
            do_sample=do_sample,
            max_length=max_length,
            tokens=input_ids.shape[1],
            room=engine.max_context - max(map(len, rows)),
        )
        stops = self.network.config.extra.get("eos_token_id", 2) if eos_token_id is None else eos_token_id
        stop_ids = frozenset([stops] if isinstance(stops, int) else stops)
        return join(input_ids, engine.generate([Request(tuple(r), params, stop_ids) for r in rows]), pad_token_id)

    def __call__(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Past | None = None,
        *,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool = False,
        return_dict: bool = True,
        return_last_logit: bool = False,
    ) -> Any:
        """The official forward on `input_ids` [b, s] after `past_key_values`: a `CausalLMOutput`; gradients flow.

        `attention_mask` [b, past + s] is 0 on padding; positions count on from the past if not given (the official code
        starts again from 0); `labels` [b, s] give a loss, -100 not counting. `return_dict=False` gives a tuple.
        """
        keep = bool(self.network.config.extra.get("use_cache", True)) if use_cache is None else use_cache
        output = forward(
            self.network,
            input_ids,
            position_ids,
            attention_mask,
            past_key_values,
            labels,
            use_cache=keep,
            output_hidden_states=output_hidden_states,
            return_last_logit=return_last_logit,
        )
        return output if return_dict else output.to_tuple()

    forward = __call__

    def _request(
        self, tokenizer: ChatGLMTokenizer, turn: Turn, options: Mapping[str, Any], do_sample: bool, max_length: int
    ) -> Request:
        if not isinstance(tokenizer, ChatGLMTokenizer):
            raise TypeError(f"tokenizer must be one of chatglm3.compat.AutoTokenizer, not {type(tokenizer).__name__}")
        prompt = chat_prompt(tokenizer.tokenizer, turn.messages)
        room = self.network.config.seq_length - len(prompt)
        params = sampling_params(options, do_sample=do_sample, max_length=max_length, tokens=len(prompt), room=room)
        return Request(tuple(prompt), params, frozenset(tokenizer.tokenizer.stop_ids))

    def _engine_for(self, tokenizer: ChatGLMTokenizer | None) -> Engine:
        if tokenizer is not None and tokenizer.vocab_size != self._vocab_size:
            self._vocab_size = tokenizer.vocab_size
            self._engine = None
        if self._engine is None:
            self._engine = Engine(self.network, self._vocab_size)
        return self._engine

    def _weights_changed(self) -> None:
        self._engine = None
