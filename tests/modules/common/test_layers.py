"""Attention with masks and without keys, and the blocks built on it."""

import pytest
import torch

from reasonbrain.modules.common.layers import Attention, CrossBlock, SelfBlock

torch.manual_seed(0)
X, CONTEXT = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
MASK = torch.tensor([[1, 1, 1, 1, 0, 0, 0], [1, 0, 1, 0, 1, 1, 1]]).bool()


def naive(a: Attention, x, context):
    """Attention of one row, head by head, with an explicit key of zeros."""
    q, (k, v) = a.to_q(x), a.to_kv(context).chunk(2, -1)
    k, v = (torch.cat([torch.zeros(1, 16), t]) for t in (k, v))
    heads = []
    for h in range(a.heads):
        s = slice(h * 16 // a.heads, (h + 1) * 16 // a.heads)
        heads.append((q[:, s] @ k[:, s].T / (16 / a.heads) ** 0.5).softmax(-1) @ v[:, s])
    return a.to_out(torch.cat(heads, -1))


def test_attention_equals_a_reference_over_unmasked_keys():
    a = Attention(16, 4)
    out = a(X, CONTEXT, MASK)
    for row in range(2):
        torch.testing.assert_close(out[row], naive(a, X[row], CONTEXT[row][MASK[row]]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(a(X, CONTEXT), a(X, CONTEXT, torch.ones(2, 7).bool()))


@pytest.mark.parametrize(("context", "mask"), [(CONTEXT[:, :0], None), (CONTEXT, torch.zeros(2, 7).bool())])
def test_no_keys_give_zeros_not_nan(context, mask):
    block, x = CrossBlock(16, 4), X.clone().requires_grad_()
    torch.testing.assert_close(block.attention(x, context, mask), block.attention.to_out.bias.expand_as(x))
    block(x, context, mask).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in block.parameters() if p.grad is not None)
    assert torch.isfinite(x.grad).all()


def test_returned_weights_are_those_of_the_attention():
    a = Attention(16, 1)
    a.to_out.load_state_dict({"weight": torch.eye(16), "bias": torch.zeros(16)})
    weights = a.weights(X[:, :1], CONTEXT, MASK)
    values = a.to_kv(CONTEXT).chunk(2, -1)[1]
    torch.testing.assert_close((weights[:, None] @ values), a(X[:, :1], CONTEXT, MASK), rtol=1e-4, atol=1e-5)
    assert (weights[~MASK] == 0).all() and (weights.sum(-1) < 1).all()


def test_self_block_ignores_padding():
    block = SelfBlock(16, 4)
    out = block(CONTEXT, MASK)
    for row in range(2):
        alone = block(CONTEXT[row][MASK[row]][None])
        torch.testing.assert_close(out[row][MASK[row]], alone[0], rtol=1e-4, atol=1e-5)
