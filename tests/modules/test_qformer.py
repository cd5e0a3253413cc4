"""Connector ``qformer``: learned queries read the [IMG] tokens."""

import pytest
import torch

from reasonbrain.errors import UserError
from reasonbrain.modules.connector.qformer import QFormer


@pytest.fixture(scope="module")
def qformer():
    torch.manual_seed(0)
    module = QFormer(width=24, layers=2, queries=5, heads=2).eval()
    for p in module.parameters():  # livelier than 0.02, so that what matters shows
        p.data.mul_(5 if p.ndim > 1 else 1)
    return module


def test_defaults_are_those_of_the_paper():
    with torch.device("meta"):
        module = QFormer(width=48)
    assert module.query_tokens.shape == (1, 77, 48)
    layers = module.qformer.encoder.layer
    assert len(layers) == 6 and all(layer.has_cross_attention for layer in layers)


def test_every_query_reads_every_img_token(qformer):
    hidden = torch.randn(1, 3, 24, requires_grad=True)
    out = qformer(hidden)
    assert out.shape == (1, 5, 24)
    for query in range(5):
        (grad,) = torch.autograd.grad(out[0, query].square().sum() + out[0, query, 0], hidden, retain_graph=True)
        assert (grad[0].norm(dim=-1) > 1e-6).all()
    assert torch.pdist(out[0].detach()).min() > 1e-3  # the queries stay apart


def test_a_row_does_not_depend_on_its_batch(qformer):
    hidden = torch.randn(3, 4, 24)
    alone = torch.cat([qformer(hidden[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(qformer(hidden), alone, rtol=1e-4, atol=1e-5)


def test_no_img_tokens_no_guidance(qformer):
    assert qformer(torch.randn(2, 0, 24)).shape == (2, 0, 24)


def test_smartedits_size_and_layers():
    """Inputs as wide as LLaVA-7B's states, which every second layer reads."""
    with torch.device("meta"):
        module = QFormer(width=768, inputs=4096, cross_attention_frequency=2, dropout=0.1)
    assert sum(p.numel() for p in module.parameters()) == 65_015_040
    assert [layer.has_cross_attention for layer in module.qformer.encoder.layer] == [True, False] * 3
    assert module.qformer.encoder.layer[0].output_query.dropout.p == 0.1
    narrow = QFormer(width=24, layers=2, queries=5, heads=2, inputs=40, cross_attention_frequency=2)
    assert narrow(torch.randn(2, 3, 40)).shape == (2, 5, 24) and narrow(torch.randn(2, 0, 24)).shape == (2, 0, 24)
    with pytest.raises(UserError, match="model.connector.inputs: .* width 40, but model.mllm gives 24"):
        narrow(torch.randn(2, 3, 24))
