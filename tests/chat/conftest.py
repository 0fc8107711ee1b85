"""`ChatGLM` on a tiny network that is taught a few conversations; asked hotly enough it says anything."""

from __future__ import annotations

import pytest

from chat_lessons import (
    ASK,
    CALL,
    EMOJI,
    GREETING,
    HELLO,
    POEM,
    POEM_END,
    RESULT,
    SYSTEM,
    THOUGHT,
    WEATHER,
    lesson,
    new_glm,
)
from chatglm3.chat import ChatGLM
from chatglm3.prompt import completion_prompt
from chatglm3.tokenizer import Tokenizer
from tiny_model import teach


@pytest.fixture(scope="session")
def taught(tiny_tokenizer: Tokenizer) -> ChatGLM:
    t = tiny_tokenizer
    glm = new_glm(t)
    teach(
        glm.model,
        [
            lesson(t, [HELLO], [GREETING], t.user_id),
            lesson(t, [HELLO, GREETING, HELLO], [EMOJI], t.eos_id),
            lesson(t, [SYSTEM, ASK], [THOUGHT, CALL], t.observation_id),
            lesson(t, [SYSTEM, ASK, THOUGHT, CALL, RESULT], [WEATHER], t.user_id),
            (completion_prompt(t, POEM), [*t.encode_continuation(POEM_END), t.eos_id]),
        ],
    )
    return glm


@pytest.fixture
def glm(taught: ChatGLM) -> ChatGLM:
    """The taught model with nothing kept."""
    return ChatGLM(taught.model, taught.tokenizer)
