"""Fine-tuning for takeaway reviews, measured: `python -m recipes.waimai PATH`."""
