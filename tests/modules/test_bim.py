"""CME ``bim``: SmartEdit's size and computation, and both outlets start at zero."""

import math

import pytest
import torch

from reasonbrain.errors import UserError
from reasonbrain.interfaces import Cues, Features
from reasonbrain.modules.cme.bim import BidirectionalInteraction

WIDTH, PATCHES, CHANNELS = 12, 32, 6
ROWS, COLUMNS = 2, 3


@pytest.fixture
def bim():
    torch.manual_seed(0)
    return BidirectionalInteraction(width=WIDTH, patches=PATCHES, channels=CHANNELS, heads=4, hidden=20).eval()


@pytest.fixture
def awake(bim):
    for head in (bim.dimension_reduction_head_qformer_out, bim.dimension_reduction_head_zeroconv):
        for p in head.parameters():
            p.data.normal_(std=0.3)
    return bim


@pytest.fixture(scope="module")
def known():
    torch.manual_seed(1)
    none, no = torch.zeros(2, 0, WIDTH), torch.zeros(2, 0).bool()
    features = Features(torch.randn(2, ROWS * COLUMNS, PATCHES), (ROWS, COLUMNS), none, no, torch.randn(2, 7), none, no)
    return features, Cues(none, no, none, no), torch.randn(2, 5, WIDTH)


def test_size_of_smartedit():
    with torch.device("meta"):
        module = BidirectionalInteraction(width=768)
    assert sum(p.numel() for p in module.parameters()) == 29_211_200
    assert sum(p.numel() for p in module.modulate_transformer.parameters()) == 27_308_544
    assert module.pe_layer.positional_encoding_gaussian_matrix.shape == (2, 512)


def test_it_starts_as_if_it_were_not_there(bim, known):
    out = bim(*known)
    assert torch.equal(out.visual, known[2]) and out.textual.shape == (2, 0, WIDTH)
    assert out.map.shape == (2, CHANNELS, ROWS, COLUMNS) and (out.map == 0).all()


def attend(part, q, k, v, heads=4):
    projected = part.q_proj(q), part.k_proj(k), part.v_proj(v)
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in projected)
    mixed = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
    return part.out_proj(mixed.transpose(1, 2).flatten(2))


def test_computation_of_smartedit(awake, known):
    """By hand: SAM's two-way transformer over the patches, with V^ as the points and as their positions."""
    features, _, guidance = known
    matrix = awake.pe_layer.positional_encoding_gaussian_matrix
    cells = [((c + 0.5) / COLUMNS, (r + 0.5) / ROWS) for r in range(ROWS) for c in range(COLUMNS)]
    angles = 2 * math.pi * (2 * torch.tensor(cells) - 1) @ matrix
    places = torch.cat([angles.sin(), angles.cos()], -1)
    start = x = awake.modulate_head(guidance)
    keys, transformer = features.patches, awake.modulate_transformer
    for number, block in enumerate(transformer.layers):
        if number == 0:
            x = attend(block.self_attn, x, x, x)
        else:
            x = x + attend(block.self_attn, x + start, x + start, x)
        x = block.layer_norm1(x)
        x = block.layer_norm2(x + attend(block.cross_attn_token_to_image, x + start, keys + places, keys))
        x = block.layer_norm3(x + block.mlp.lin2(block.mlp.lin1(x).relu()))
        keys = block.layer_norm4(keys + attend(block.cross_attn_image_to_token, keys + places, x + start, x))
        assert block.layer_norm1.eps == 1e-5
    x = transformer.layer_norm_final_attn(
        x + attend(transformer.final_attn_token_to_image, x + start, keys + places, keys)
    )
    out = awake(*known)
    expected = guidance + 0.5 * awake.dimension_reduction_head_qformer_out(x)
    torch.testing.assert_close(out.visual, expected, rtol=1e-4, atol=1e-5)
    conv = awake.dimension_reduction_head_zeroconv
    spatial = keys @ conv.weight[:, :, 0, 0].T + conv.bias
    torch.testing.assert_close(out.map, spatial.mT.reshape(2, CHANNELS, ROWS, COLUMNS), rtol=1e-4, atol=1e-5)


def test_gradients(awake, known):
    out = awake(*known)
    (out.visual.square().mean() + out.map.square().mean()).backward()
    for name, p in awake.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
        assert p.grad.abs().sum() > 0 or name.endswith("k_proj.bias"), name  # softmax does not see that bias


def test_the_frequencies_are_saved(awake, known, tmp_path):
    awake.save_pretrained(tmp_path)
    again = BidirectionalInteraction.from_pretrained(tmp_path)
    assert torch.equal(again(*known).map, awake(*known).map)


def test_without_fitting_patches(bim, known):
    features, cues, guidance = known
    for patches in (features.patches[:, :0], features.patches[..., :8]):
        with pytest.raises(UserError, match="image patches of width 32"):
            bim(features._replace(patches=patches), cues, guidance)
