"""Messages to token ids: the only place where a prompt is built, id for id as the official code builds it.

A message is its role's control id, its header line and its content, each text encoded apart. A prompt is
`[gMASK] sop`, the messages and the assistant's control id; the model writes its own header line after that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from chatglm3.messages import Message
from chatglm3.tokenizer import StreamDecoder, Tokenizer


def message_ids(tokenizer: Tokenizer, message: Message) -> list[int]:
    """One message. Tools are shown in a system message only."""
    content = message.content
    if message.role == "system" and message.tools is not None:
        content = f"{content}\n{message.tools}"
    header = tokenizer.encode(f"{message.metadata}\n")
    return [tokenizer.role_id(message.role), *header, *tokenizer.encode(content)]


def chat_prompt(tokenizer: Tokenizer, messages: Iterable[Message], *, add_generation_prompt: bool = True) -> list[int]:
    """A conversation, ready for the assistant to answer unless `add_generation_prompt` is off."""
    ids = [tokenizer.gmask_id, tokenizer.sop_id]
    for message in messages:
        ids += message_ids(tokenizer, message)
    return [*ids, tokenizer.assistant_id] if add_generation_prompt else ids


def completion_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """Plain text to be continued, as the Base models expect it."""
    return [tokenizer.gmask_id, tokenizer.sop_id, *tokenizer.encode(text)]


def render(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """A prompt for human eyes: a line for each message, with control tokens, `</s>` and `\\n` spelled out."""
    roles = {tokenizer.system_id, tokenizer.user_id, tokenizer.assistant_id, tokenizer.observation_id}
    starts = [0, *(place for place, i in enumerate(ids) if i in roles and place), len(ids)]
    return "\n".join(_render_line(tokenizer, ids[start:end]) for start, end in pairwise(starts))


def _render_line(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    decoder = StreamDecoder(tokenizer)
    text = "".join(decoder.push(i) + ("</s>" if i == tokenizer.eos_id else "") for i in ids)
    return (text + decoder.flush()).replace("\n", "\\n")
