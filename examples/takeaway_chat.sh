#!/bin/sh
# Fine-tunes nano on 120 takeaway reviews and measures it with and without what it learned, on 80 others:
#
#     sh examples/takeaway_chat.sh
#
# Words behind it go to `chatglm3 train`: epochs=20, lora.rank=16, ...
set -eu
cd "$(dirname "$0")/.."
rm -rf build/takeaway/chat
python examples/takeaway_rows.py build/takeaway
chatglm3 train examples/takeaway-chat.yaml "$@"
chatglm3 evaluate build/takeaway/test.jsonl --labels 配送,口味,分量,服务 --label-column topic \
  --chat nano --chat-adapter build/takeaway/chat/adapter --train build/takeaway/learn.jsonl --seeds 1
