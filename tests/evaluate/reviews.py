"""The example reviews, and how the bundled models are asked about them."""

from __future__ import annotations

from pathlib import Path

import chatglm3
from chatglm3.evaluate import Question

ROOT = Path(__file__).parents[2]
REVIEWS = ROOT / "examples" / "reviews.jsonl"
ASSETS = Path(chatglm3.__file__).parent / "assets"
LABELS = ("正面", "负面")
SYSTEM = "你是评论分类器。判断用户给出的评论是正面还是负面，只回答“正面”或“负面”。"
QUESTION = Question(LABELS, SYSTEM, base_system="", base_prompt="问题：这条评论是正面还是负面？{text}\n答案：")
