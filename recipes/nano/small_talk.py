"""Short conversations: greetings, what nano is and cannot do, and what the user said a turn ago."""

from __future__ import annotations

from random import Random

from chatglm3.messages import Message

from .phrases import load_phrases

PHRASES = load_phrases("small_talk")


def made_up(rng: Random, letters: str) -> str:
    """Two or three letters drawn at random, so that copying is learnt and not a list."""
    return "".join(rng.choice(letters) for _ in range(rng.choice((2, 2, 3))))


def some_name(rng: Random, letters: str) -> str:
    """A person's name."""
    kind = rng.random()
    if kind < 0.25:
        return str(rng.choice(PHRASES["nicknames"]))
    return rng.choice(PHRASES["surnames"]) + made_up(rng, letters)[:2] if kind < 0.6 else made_up(rng, letters)


def turn(question: str, answer: str) -> list[Message]:
    """A question and its answer."""
    return [Message("user", question), Message("assistant", answer)]


def any_turn(rng: Random) -> list[Message]:
    """One exchange that stands alone."""
    exchange = rng.choice(PHRASES["exchanges"])
    return turn(rng.choice(exchange["questions"]), exchange["answer"])


def memory(rng: Random, letters: str) -> list[Message]:
    """The user says something about themselves, and asks for it later."""
    if rng.random() < 0.65:
        x = some_name(rng, letters)
        told = turn(rng.choice(PHRASES["my_name"]).format(x=x), f"你好，{x}！很高兴认识你。")
        asked = turn(rng.choice(PHRASES["ask_name"]), f"你叫{x}。")
    else:
        fact = rng.choice(PHRASES["facts"])
        x = rng.choice(PHRASES["things"]) if rng.random() < 0.3 else made_up(rng, letters)
        told = turn(rng.choice(fact["tell"]).format(x=x), fact["noted"].format(x=x))
        asked = turn(rng.choice(fact["ask"]), fact["answer"].format(x=x))
    between = any_turn(rng) if rng.random() < 0.25 else []
    return [*told, *between, *asked]


def echo(rng: Random, letters: str) -> list[Message]:
    """The user asks for some words to be repeated: the plainest lesson in copying."""
    x = "".join(rng.choice(letters) for _ in range(rng.randint(2, 9)))
    return turn(rng.choice(PHRASES["repeat"]).format(x=x), x)


def conversation(rng: Random, letters: str) -> list[Message]:
    """One conversation of a few turns, with or without a general system prompt."""
    messages = [Message("system", rng.choice(PHRASES["systems"]))] if rng.random() < 0.3 else []
    for _ in range(rng.choice((1, 1, 2, 2, 3))):
        kind = rng.random()
        if kind < 0.2:
            messages += echo(rng, letters)
        else:
            messages += memory(rng, letters) if kind < 0.6 else any_turn(rng)
    return messages
