"""What this package is for, on the bundled model: a conversation that streams, and a shared history that stays.

Run it with `make demo`, or `python examples/demo.py` where the package is installed.
"""

import chatglm3

GREEDY = {"temperature": 0.0, "max_new_tokens": 64}
REVIEWS = ("房间干净，服务也热情，下次还住这里。", "键盘用了两天就坏了，客服也不理人。", "情节拖沓，看到一半就放下了。")


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


def classify(glm: chatglm3.ChatGLM) -> None:
    """One shared history for several queries: it is computed once, and no call changes it."""
    print("2. 同一段历史，多次提问 / one shared history, several queries\n")
    shared = [{"role": "system", "content": "判断评论的情感，只回答“正面”或“负面”。"}]
    for review in REVIEWS:
        reply = glm.chat(review, shared, **GREEDY)
        print(f"   {reply.text}  {review}")
    print(f"\n   The history still has {len(shared)} message: calls return a new one and leave yours alone.")


if __name__ == "__main__":
    with chatglm3.load("nano") as model:
        converse(model)
        classify(model)
