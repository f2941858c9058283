"""Attention of the newest tokens over blocks, by the kernel: what the plain way gives, and nothing beside a sequence decides it."""

import pytest
import torch

from inlay.generation.pages import attend
from inlay.kernels import cache, native

SHAPES = [(1, 1, 16), (9, 3, 64), (8, 1, 80), (24, 2, 128), (2, 2, 256)]
"""(heads, heads of keys, dim): alone, in groups, and in groups of more heads than are taken at a time."""

LENGTHS = (1, 16, 17, 40, 100)


def _ways():
    return [name for name in native.supported() if name != "plain"]


def _given(shape, dtype, seed=0):
    """(queries, keys and values of the step, blocks, where the tokens are); the step has other tokens between them."""
    heads, kv_heads, dim = shape
    generator = torch.Generator().manual_seed(seed)
    most = -(-max(LENGTHS) // cache.BLOCK)
    count, tokens = most * len(LENGTHS), 2 * len(LENGTHS) + 1

    def drawn(*size):
        return torch.randn(*size, generator=generator).to(dtype)

    step = [drawn(tokens, n, dim).transpose(0, 1) for n in (heads, kv_heads, kv_heads)]  # as layers have them
    pages = drawn(count, kv_heads, dim, cache.BLOCK), drawn(count, kv_heads, cache.BLOCK, dim)
    tables = torch.randperm(count, generator=generator).view(len(LENGTHS), most)
    newest = cache.Newest(torch.arange(1, tokens, 2), torch.tensor(LENGTHS), tables)
    return step, pages, newest


def _expected(step, pages, newest, scaling, window):
    """(what the plain way sees, the blocks with the newest tokens in them)."""
    q, k, v = step
    pages = tuple(x.clone() for x in pages)
    seen = []
    for token, length, table in zip(*newest, strict=True):
        block, offset = table[(length - 1) // cache.BLOCK], (length - 1) % cache.BLOCK
        pages[0][block, :, :, offset], pages[1][block, :, offset] = k[:, token], v[:, token]
        both = pages[0].transpose(2, 3), pages[1]
        keys, values = (x[table].transpose(0, 1).flatten(1, 2)[:, :length].double() for x in both)
        mask = torch.arange(length) >= length - (window or length)
        seen.append(attend(q[None, :, token, None].double(), keys[None], values[None], mask[None], scaling)[0, :, 0])
    return torch.stack(seen), pages


def _made(step, pages, newest, scaling, window):
    pages = tuple(x.clone() for x in pages)
    out = torch.zeros(step[0].shape[1], step[0].shape[0], step[0].shape[2], dtype=step[0].dtype)
    cache.attend_(*step, pages, newest, out, scaling=scaling, window=window)
    return out, pages


@pytest.mark.parametrize("way", _ways())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("window", [None, 5, 33])
def test_it_is_attention(way, dtype, shape, window):
    step, pages, newest = _given(shape, dtype)
    expected, written = _expected(step, pages, newest, 0.3, window)
    with native.only(way):
        assert cache.available(step[0], step[2], pages[0])
        out, now = _made(step, pages, newest, 0.3, window)
    assert all(torch.equal(one, other) for one, other in zip(now, written, strict=True))
    assert (out[newest.tokens].double() - expected).abs().max() <= (1e-5 if dtype == torch.float32 else 2e-2)
    assert not out[::2].any()  # other tokens' rows are left alone


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_sequence_does_not_depend_on_those_beside_it(dtype):
    step, pages, newest = _given(SHAPES[1], dtype)
    together, _ = _made(step, pages, newest, 0.125, None)
    for row in range(len(LENGTHS)):
        one = cache.Newest(*(x[row : row + 1] for x in newest))
        alone, _ = _made(step, pages, one, 0.125, None)
        assert torch.equal(alone[newest.tokens[row]], together[newest.tokens[row]])


def test_scores_far_apart_and_what_is_no_number():
    step, pages, newest = _given(SHAPES[1], torch.float32)
    out, _ = _made(step, pages, newest, 200.0, None)
    expected, _ = _expected(step, pages, newest, 200.0, None)
    assert (out[newest.tokens].double() - expected).abs().max() < 1e-4
    pages[0][newest.tables[3, 1], 0, 7, 4] = torch.nan
    out, _ = _made(step, pages, newest, 0.125, None)
    assert out[newest.tokens[3], :3].isnan().all()  # the heads that look at it
    assert not out[newest.tokens[3], 3:].isnan().any()
    assert not out[newest.tokens[4]].isnan().any()
