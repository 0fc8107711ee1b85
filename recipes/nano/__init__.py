"""The recipe of the bundled models: `python -m recipes.nano.train`."""
