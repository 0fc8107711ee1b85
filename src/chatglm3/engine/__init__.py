"""The engine: token ids in, token ids out. The only stateful part; it knows nothing of text, roles or tools."""
