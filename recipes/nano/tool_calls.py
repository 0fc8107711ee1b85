"""Conversations around the one tool that nano knows, `get_weather`: the call, the observation, the answer."""

from __future__ import annotations

import json
from random import Random

from chatglm3.messages import Message

from .phrases import load_phrases

SYSTEM = (
    "Answer the following questions as best as you can. You have access to the following tools:"  # official wording
)
PHRASES = load_phrases("tool_calls")
WHICH_CITY = "请问您想查询哪个城市的天气？"
ONLY_WEATHER = "抱歉，我只会用工具查询城市的天气，这件事我做不到。"


def tools(rng: Random) -> object:
    """A description of the tool in one of the two official schemas, worded in several ways."""
    what, city = rng.choice(PHRASES["descriptions"]), rng.choice(PHRASES["parameters"])
    if rng.random() < 0.2:
        field = {"name": "city", "description": city, "type": "str", "required": True}
        return {"get_weather": {"name": "get_weather", "description": what, "params": [field]}}
    properties = {"city": rng.choice(({"type": "string", "description": city}, {"description": city}))}
    schema = {"type": "object", "properties": properties, "required": ["city"]}
    return [{"name": "get_weather", "description": what, "parameters": schema}]


def some_city(rng: Random, letters: str) -> str:
    """A city's name, or letters drawn at random, so that the model learns to copy names it has never seen."""
    if rng.random() < 0.35:
        return str(rng.choice(PHRASES["cities"]))
    return "".join(rng.choice(letters) for _ in range(rng.choice((2, 2, 2, 3, 4))))


def call(city: str) -> Message:
    """The assistant's call."""
    return Message("assistant", f"```python\ntool_call(city='{city}')\n```", metadata="get_weather")


def observation(rng: Random, city: str) -> tuple[Message, str]:
    """What the tool returns, and the answer that reads it."""
    weather, degrees = rng.choice(PHRASES["weathers"]), rng.randint(-25, 42)
    if rng.random() < 0.06:
        text = json.dumps({"error": rng.choice(("city not found", "未找到该城市", "timeout"))}, ensure_ascii=False)
        return Message("observation", text), f"抱歉，没有查到{city}的天气。"
    fields: dict[str, object] = {}
    if rng.random() < 0.35:
        fields["city"] = city
    kind = rng.choice(("both", "both", "both", "temperature", "weather"))
    pairs: list[tuple[str, object]] = [("temperature", degrees)] * (kind != "weather")
    pairs += [(rng.choice(("weather", "weather", "condition", "description")), weather)] * (kind != "temperature")
    rng.shuffle(pairs)
    fields |= dict(pairs)
    answers = {
        "both": f"{city}现在的天气是{weather}，气温{degrees}度。",
        "temperature": f"{city}现在的气温是{degrees}度。",
        "weather": f"{city}现在的天气是{weather}。",
    }
    return Message("observation", json.dumps(fields, ensure_ascii=False)), answers[kind]


def lookup(rng: Random, city: str) -> list[Message]:
    """The assistant's part for one city: perhaps a thought, the call, the observation, the answer."""
    thought = [Message("assistant", rng.choice(PHRASES["thoughts"]).format(city=city))] if rng.random() < 0.15 else []
    result, answer = observation(rng, city)
    return [*thought, call(city), result, Message("assistant", answer)]


def conversation(rng: Random, letters: str) -> list[Message]:
    """One conversation with the tool at hand."""
    messages = [Message.system(SYSTEM, tools=tools(rng))]
    if rng.random() < 0.1:
        messages += [Message("user", rng.choice(PHRASES["off_topic"])), Message("assistant", ONLY_WEATHER)]
    city = some_city(rng, letters)
    if rng.random() < 0.1:
        messages += [
            Message("user", rng.choice(PHRASES["no_city"])),
            Message("assistant", WHICH_CITY),
            Message("user", city),
        ]
    else:
        messages.append(Message("user", rng.choice(PHRASES["ask"]).format(city=city)))
    messages += lookup(rng, city)
    while rng.random() < 0.6 and len(messages) < 14:
        city = some_city(rng, letters)
        messages += [Message("user", rng.choice(PHRASES["ask_again"]).format(city=city)), *lookup(rng, city)]
    return messages
