"""Fine-tuning: rows of token ids and labels from conversations and completions."""
