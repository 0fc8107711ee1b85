"""The operations the network is made of, on torch tensors: native for float32 on a CPU, torch otherwise.

Rounding follows the official code: RMSNorm multiplies by its weight while still in fp32, RoPE is computed in the dtype
of the activations. Attention reads a key/value head once for all its query heads and never builds an s x s mask.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from chatglm3.kernels import native

_QUERY_BLOCK = 256  # bounds the mask of chunked or padded attention to 256 x keys


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x` [..., h] over the root of its mean square, times `weight` [h]; fp32 inside, the dtype of `x` outside."""
    if native.runs_in_float32(x, weight):
        return native.rms_norm(x, weight, eps)
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (normed * weight).to(x.dtype)


def rope_table(positions: int, dim: int, base: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Cosines and sines [positions, dim / 2, 2] for frequencies base ** (-2i / dim), computed in fp32."""
    theta = 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim))
    angles = torch.outer(torch.arange(positions, dtype=torch.float32, device=device), theta)
    return torch.stack((angles.cos(), angles.sin()), dim=-1).to(dtype)


def apply_rope(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate adjacent pairs of the first dimensions of each head; the others pass.

    `x` is [b, s, heads, d]; `rope` [b or 1, s, pairs, 2] holds the rows of the table for these positions.
    """
    if x.shape[0] == 1 and x.stride()[2:] == (x.shape[3], 1) and native.runs_in_float32(x, rope):
        return native.apply_rope(x, rope)
    pairs = rope.shape[-2]
    rotating = x[..., : 2 * pairs]
    even, odd = rotating.view(*rotating.shape[:-1], pairs, 2).unbind(-1)
    cos, sin = rope.unsqueeze(2).unbind(-1)
    rotated = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return torch.cat((rotated.flatten(-2), x[..., 2 * pairs :]), dim=-1)


def add(a: Tensor, b: Tensor) -> Tensor:
    """The sum of two tensors of one shape."""
    if a.shape == b.shape and native.runs_in_float32(a, b):
        return native.add(a, b)
    return a + b


def swiglu(x: Tensor) -> Tensor:
    """SiLU of the first half of the last dimension times the second half."""
    if native.runs_in_float32(x):
        return native.swiglu(x)
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


def attend(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """Causal attention of the last `s` positions over `t` keys: returns [b, s, heads * d].

    `q` is [b, s, heads, d]; `k` and `v` are [b, groups, t, d] with `heads / groups` query heads to a group; `key_mask`
    [b, t] is false for keys that nobody may see. Query `i` sees keys up to `t - s + i`; a query that is masked itself
    sees everything, so that no row is without keys (its output means nothing).
    """
    b, s, heads, d = q.shape
    groups, t = k.shape[1], k.shape[2]
    if s == 1 and key_mask is None and _rows_follow(k, v) and native.runs_on(q, k, v):
        return native.attend(q, k, v)
    if s == 1:
        visible = None if key_mask is None else key_mask[:, None, None, :]
        out = F.scaled_dot_product_attention(q.view(b, groups, heads // groups, d), k, v, attn_mask=visible)
        return out.reshape(b, 1, heads * d)
    q = q.transpose(1, 2).reshape(b * groups, heads // groups, s, d)
    k = k.reshape(b * groups, 1, t, d).expand(-1, heads // groups, -1, -1)
    v = v.reshape(b * groups, 1, t, d).expand(-1, heads // groups, -1, -1)
    if t == s and key_mask is None:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:
        out = torch.cat([_attend_block(q, k, v, key_mask, i) for i in range(0, s, _QUERY_BLOCK)], dim=2)
    return out.reshape(b, heads, s, d).transpose(1, 2).reshape(b, s, heads * d)


def _rows_follow(k: Tensor, v: Tensor) -> bool:
    """Whether the tokens of each key/value head lie one behind the other, as they do in a `KVCache`."""
    return k.dtype in native.DTYPES and k.stride() == v.stride() and k.stride()[2:] == (k.shape[3], 1)


def _attend_block(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, start: int) -> Tensor:
    past = k.shape[2] - q.shape[2]
    q = q[:, :, start : start + _QUERY_BLOCK]
    first, last = past + start, past + start + q.shape[2]
    columns = torch.arange(last, device=q.device)
    visible = columns <= torch.arange(first, last, device=q.device)[:, None]
    if key_mask is not None:
        visible = (visible & key_mask[:, None, :last]) | ~key_mask[:, first:last, None]
        visible = visible.repeat_interleave(q.shape[0] // key_mask.shape[0], dim=0).unsqueeze(1)
    return F.scaled_dot_product_attention(q, k[:, :, :last], v[:, :, :last], attn_mask=visible)
