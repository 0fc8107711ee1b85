"""What this package is for, on the bundled model: a conversation that streams, a shared history, a table of reviews.

Run it with `make demo`, or `python examples/demo.py` where the package is installed.
"""

import json
import time
from pathlib import Path

import chatglm3

GREEDY = {"temperature": 0.0, "max_new_tokens": 64}
SYSTEM = "你是评论分类器。判断用户给出的评论是正面还是负面，只回答“正面”或“负面”。"
REVIEWS = Path(__file__).with_name("reviews.jsonl")


def converse(glm: chatglm3.ChatGLM) -> None:
    """Two turns, each printed as it is written; the second sees the first."""
    print("1. 对话 / a conversation that streams\n")
    history: chatglm3.History = ()
    for query in ("你好，我叫小林。", "我叫什么名字？"):
        print(f"   用户  {query}\n   nano  ", end="")
        for chunk in glm.stream_chat(query, history, **GREEDY):
            print(chunk.text, end="", flush=True)
        assert chunk.reply is not None
        history = chunk.reply.history
        usage = chunk.reply.usage
        print(f"\n         ({usage.cached_tokens} of {usage.prompt_tokens} prompt tokens reused)\n")


def ask_often(glm: chatglm3.ChatGLM, reviews: list[str]) -> None:
    """One shared history for several queries: it is computed once, and no call changes it."""
    print("2. 同一段历史，多次提问 / one shared history, several queries\n")
    shared = [{"role": "system", "content": SYSTEM}]
    for review in reviews:
        reply = glm.chat(review, shared, **GREEDY)
        print(f"   {reply.text}  {review}")
    print(f"\n   The history still has {len(shared)} message: calls return a new one and leave yours alone.\n")


def classify(glm: chatglm3.ChatGLM, reviews: list[str], labels: list[str]) -> None:
    """Every row's most probable label, with nothing generated."""
    print(f"3. 给一张表分类 / classifying {REVIEWS.name}\n")
    start = time.perf_counter()
    found = glm.classify(reviews, ["正面", "负面"], system=SYSTEM)
    seconds = time.perf_counter() - start
    for review, one in list(zip(reviews, found, strict=True))[:3]:
        print(f"   {one.label} {one.probabilities[one.label]:.2f}  {review}")
    right = sum(one.label == label for one, label in zip(found, labels, strict=True))
    share = f"{right} of {len(labels)} right ({right / len(labels):.0%})"
    print(f"   …\n   {share}, {len(labels) / seconds:.0f} rows a second")


if __name__ == "__main__":
    rows = [json.loads(line) for line in REVIEWS.read_text(encoding="utf-8").splitlines()]
    texts, answers = [row["review"] for row in rows], [row["label"] for row in rows]
    with chatglm3.load("nano") as model:
        converse(model)
        ask_often(model, texts[:3])
        classify(model, texts, answers)
