"""What calling the tokenizer gives: a dict whose keys are attributes too, and whose tensors move together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from chatglm3.errors import TokenizerError


class BatchEncoding(dict[str, Any]):
    """`input_ids`, `attention_mask` and `position_ids`, as `encoding["input_ids"]` or `encoding.input_ids`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the encoding has no {name!r}; it has {', '.join(self)}") from None

    def to(self, device: Any) -> BatchEncoding:
        """Move its tensors, in place as officially, and return it."""
        self.update({name: value.to(device) for name, value in self.items() if isinstance(value, torch.Tensor)})
        return self


def as_encoding(rows: Mapping[str, list[list[int]]], return_tensors: str | None, *, batched: bool) -> BatchEncoding:
    """Rows as lists (`return_tensors` None), torch tensors ("pt") or arrays ("np"). The lists of one text are flat."""
    if return_tensors is None:
        return BatchEncoding(rows if batched else {name: values[0] for name, values in rows.items()})
    if return_tensors not in ("pt", "np"):
        raise TokenizerError(f"return_tensors must be 'pt', 'np' or None, not {return_tensors!r}")
    if len({len(row) for row in rows["input_ids"]}) > 1:
        raise TokenizerError("rows of different lengths make no tensor; call the tokenizer with padding=True")
    if return_tensors == "np":
        return BatchEncoding({name: np.array(values, dtype=np.int64) for name, values in rows.items()})
    return BatchEncoding({name: torch.tensor(values, dtype=torch.long) for name, values in rows.items()})
