"""CME ``hybrid``: both sides read each other, and the guidance, the features and the cues."""

import pytest
import torch

from reasonbrain.interfaces import Cues, Features
from reasonbrain.modules.cme.hybrid import HybridEnhancer

WIDTH = 16


@pytest.fixture(scope="module")
def cme():
    torch.manual_seed(0)
    return HybridEnhancer(width=WIDTH, blocks=2, queries=4, heads=2).eval()


@pytest.fixture(scope="module")
def known():
    """Features, cues and guidance of two rows; the last word and last cues of the second row are masked."""
    torch.manual_seed(1)
    text_mask = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
    features = Features(
        patches=torch.randn(2, 4, WIDTH),
        grid=(2, 2),
        text=torch.randn(2, 3, WIDTH),
        text_mask=text_mask,
        pooled=torch.randn(2, 7),
        objects=torch.zeros(2, 0, WIDTH),
        objects_mask=torch.zeros(2, 0).bool(),
    )
    visual_mask = torch.tensor([[1, 1], [1, 0]]).bool()
    cues = Cues(torch.randn(2, 2, WIDTH), visual_mask, torch.randn(2, 2, WIDTH), visual_mask)
    return features, cues, torch.randn(2, 3, WIDTH)


def differs(a, b, row=slice(None)):
    return (a[row] - b[row]).abs().max().item() > 1e-4


def test_defaults_are_those_of_the_paper():
    with torch.device("meta"):
        module = HybridEnhancer(width=WIDTH)
    assert len(module.hybrid_blocks) == 5 and module.visual_queries.shape == (1, 77, WIDTH)


def test_truly_bidirectional(cme, known):
    features, cues, guidance = known
    before = cme(features, cues, guidance)
    text = cme(features._replace(text=features.text + torch.randn(2, 3, WIDTH)), cues, guidance)
    assert differs(text.visual, before.visual), "what the text says does not reach R-_V"
    picture = cme(features._replace(patches=features.patches + torch.randn(2, 4, WIDTH)), cues, guidance)
    assert differs(picture.textual, before.textual), "what the picture shows does not reach R-_T"


@pytest.mark.parametrize("side", ["visual", "textual"])
def test_cues_and_guidance_reach_both_sides(cme, known, side):
    features, cues, guidance = known
    before = cme(features, cues, guidance)
    for after in (
        cme(features, cues._replace(**{side: getattr(cues, side) + torch.randn(2, 2, WIDTH)}), guidance),
        cme(features, cues, guidance + torch.randn(2, 3, WIDTH)),
    ):
        assert differs(after.visual, before.visual) and differs(after.textual, before.textual)


def test_masked_tokens_have_no_effect(cme, known):
    features, cues, guidance = known
    before = cme(features, cues, guidance)
    junk = features._replace(text=features.text.masked_fill(~features.text_mask[..., None], 99.0))
    hidden = ~cues.visual_mask[..., None]
    junk_cues = cues._replace(
        visual=cues.visual.masked_fill(hidden, 9.0), textual=cues.textual.masked_fill(hidden, -9.0)
    )
    after = cme(junk, junk_cues, guidance)
    torch.testing.assert_close(after.visual, before.visual)
    torch.testing.assert_close(after.textual, before.textual)


def test_focus_is_a_share_of_attention(cme, known):
    features, cues, guidance = known
    focus = cme(features, cues, guidance).focus
    assert focus.shape == (2, *features.grid) and (focus > 0).all()
    torch.testing.assert_close(focus.sum((1, 2)), torch.ones(2))


def test_empty_input_gives_no_nan(cme, known):
    features, cues, guidance = known
    empty, none = torch.zeros(2, 0, WIDTH), torch.zeros(2, 0).bool()
    out = cme(
        features._replace(patches=empty, grid=(0, 0), text=empty, text_mask=none),
        Cues(empty, none, empty, none),
        guidance[:, :0],
    )
    assert out.focus is None and torch.isfinite(out.visual).all() and torch.isfinite(out.textual).all()
    assert out.pooled is features.pooled


def test_a_row_does_not_depend_on_its_batch(cme, known):
    features, cues, guidance = known
    both = cme(features, cues, guidance)
    for i in range(2):
        row = slice(i, i + 1)
        one = features._replace(**{k: v[row] for k, v in features._asdict().items() if isinstance(v, torch.Tensor)})
        alone = cme(one, Cues(*(v[row] for v in cues)), guidance[row])
        torch.testing.assert_close(both.visual[row], alone.visual, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(both.focus[row], alone.focus, rtol=1e-4, atol=1e-5)


def test_focus_shows_where_the_visual_queries_look():
    """The attention of the last block's fusion on the patches, row by row, on a grid of 2 x 3."""
    torch.manual_seed(2)
    enhancer = HybridEnhancer(width=WIDTH, blocks=1, queries=4, heads=2).eval()
    mask = torch.ones(1, 3).bool()
    patches = torch.randn(1, 6, WIDTH)
    text, empty = torch.randn(1, 3, WIDTH), torch.zeros(1, 0, WIDTH)
    none = torch.zeros(1, 0).bool()
    features = Features(patches, (2, 3), text, mask, torch.randn(1, 7), empty, none)
    cues = Cues(empty, none, empty, none)
    with torch.no_grad():
        focus = enhancer(features, cues, torch.randn(1, 3, WIDTH)).focus
        assert focus.shape == (1, 2, 3)
        torch.testing.assert_close(focus.sum((1, 2)), torch.ones(1))
        # with one block and no cues the refined patches are the patches after the block's own cross-attention
        block = enhancer.hybrid_blocks[0].visual
        seen = {}
        hook = block.fused.register_forward_hook(lambda module, args, out: seen.update(context=args[1]))
        reads = block.read.register_forward_hook(lambda module, args, out: seen.update(queries=out))
        guidance = torch.randn(1, 3, WIDTH)
        focus = enhancer(features, cues, guidance).focus
        hook.remove()
        reads.remove()
        weights = block.fused.weights(seen["queries"], seen["context"])
    expected = (weights / weights.sum(-1, keepdim=True)).view(1, 2, 3)
    torch.testing.assert_close(focus, expected)
