"""Connector ``edit_head``: MGIE's size and computation, from the words of its [IMG] tokens to the null condition."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reasonbrain.errors import UserError
from reasonbrain.modules.connector.edit_head import EditHead


@pytest.fixture(scope="module")
def head():
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of what its encoder cannot do
        return EditHead(width=24, inputs=40, hidden=32, layers=2, heads=4, queries=5).eval()


def test_size_of_mgie():
    with torch.device("meta"):
        module = EditHead(width=768, inputs=4096)
    assert sum(p.numel() for p in module.parameters()) == 31_958_784
    assert sum(p.numel() for p in module.mapper.parameters()) == 29_427_712
    assert module.query.shape == (1, 77, 512)


def attend(part, x, context, heads=4):
    projected = map(F.linear, (x, context, context), part.in_proj_weight.chunk(3), part.in_proj_bias.chunk(3))
    q, k, v = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in projected)
    mixed = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
    return part.out_proj(mixed.transpose(1, 2).flatten(2))


def test_computation_of_mgie(head):
    """By hand: pre-norm layers without positions, ReLU, a norm after the encoder and after the decoder."""
    hidden = torch.randn(3, 4, 40)
    x, y = head.llm2hid(hidden), head.query.expand(3, -1, -1)
    feed = lambda layer, z: layer.linear2(layer.linear1(z).relu())  # noqa: E731
    for layer in head.mapper.encoder.layers:
        normed = layer.norm1(x)
        x = x + attend(layer.self_attn, normed, normed)
        x = x + feed(layer, layer.norm2(x))
    x = head.mapper.encoder.norm(x)
    for layer in head.mapper.decoder.layers:
        normed = layer.norm1(y)
        y = y + attend(layer.self_attn, normed, normed)
        y = y + attend(layer.multihead_attn, layer.norm2(y), x)
        y = y + feed(layer, layer.norm3(y))
    expected = head.hid2feat(head.mapper.decoder.norm(y))
    for found in (head(hidden), _in_inference(head, hidden)):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    names = dict(nn.Transformer(32, 4, 2, 2, 128).named_parameters())  # as in published weights
    assert {n.removeprefix("mapper.") for n, _ in head.named_parameters() if n.startswith("mapper.")} == set(names)


def _in_inference(head, hidden):
    with torch.no_grad():  # torch has another path here
        return head(hidden)


def test_gradients(head):
    head.train()
    head(torch.randn(2, 4, 40)).square().mean().backward()
    for name, p in head.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name
    head.eval().zero_grad()


def test_widths(head):
    assert head(torch.randn(2, 0, 24)).shape == (2, 0, 24)
    with pytest.raises(UserError, match="model.connector.inputs: .* width 40, but model.mllm gives 24"):
        head(torch.randn(2, 3, 24))
