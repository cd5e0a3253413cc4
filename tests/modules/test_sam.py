"""Region plug-in ``sam``: selecting masks, painting them, and SAM itself with random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from thin import THIN, red

from reasonbrain.checkpoint import load_model, save_model
from reasonbrain.config.loading import make_config
from reasonbrain.interfaces import Features
from reasonbrain.model import ReasonBrain
from reasonbrain.modules.frce.sam import SamRegions, paint, select
from reasonbrain.utils.images import to_uint8

SIZE = 32


def logit(box: tuple[int, int, int, int], inside: float = 5.0) -> torch.Tensor:
    """A mask of the box (x0, y0, x1, y1), as SAM returns it."""
    out = torch.full((SIZE, SIZE), -5.0)
    out[box[1] : box[3], box[0] : box[2]] = inside
    return out


LARGE, SAME, SMALL, APART = (0, 0, 20, 20), (0, 0, 20, 19), (5, 5, 9, 9), (24, 24, 30, 30)


def test_select_keeps_the_better_of_two_masks_and_drops_bad_ones() -> None:
    logits = torch.stack([logit(LARGE), logit(SAME), logit(SMALL), logit(APART), logit(APART, inside=0.5)])
    scores = torch.tensor([0.90, 0.95, 0.92, 0.50, 0.99])
    # 0 nearly equals 1, which is better; 3 is below the IoU threshold; 4 is empty with a threshold one logit higher
    assert select(logits, scores, 0.88, 0.95).tolist() == [1, 2]
    assert select(logits, scores, 0.88, 0.95, overlap=0.99).tolist() == [1, 2, 0]
    assert select(logits, scores, 0.88, 0.0).tolist() == [1, 2]
    assert select(logits, scores, 0.40, 0.95).tolist() == [1, 2, 3]


def test_select_is_empty_if_no_mask_is_good() -> None:
    assert select(torch.full((3, SIZE, SIZE), -5.0), torch.ones(3), 0.88, 0.0).tolist() == []
    assert select(torch.zeros(0, SIZE, SIZE), torch.zeros(0), 0.88, 0.95).tolist() == []


def test_small_masks_are_painted_over_large_ones() -> None:
    masks = np.stack([(logit(box) > 0).numpy() for box in (SMALL, LARGE, APART, LARGE)])
    labels = paint(masks)
    assert labels.dtype == np.int64
    assert labels[0, 0] == 0 and labels[6, 6] == 2 and labels[25, 25] == 1  # by falling area: 384, 36, 16
    assert labels[31, 0] == -1
    assert np.bincount(labels[labels >= 0]).tolist() == [20 * 20 - 16, 36, 16]  # the equal masks are one region


def test_paint_without_masks() -> None:
    assert (paint(np.zeros((0, 4, 5), dtype=bool)) == -1).all()


def build(hub, **params) -> SamRegions:
    torch.manual_seed(0)
    return SamRegions(width=16, pretrained=hub["sam"].folder, heads=2, layers=1, max_regions=6, **params).eval()


EVERYTHING = {"points_per_side": 3, "points_per_batch": 4, "iou_threshold": -1e9, "stability_threshold": 0.0}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(0))


def test_pixels_are_those_of_the_published_processor(hub) -> None:
    """Up to the rounding of its scaled pictures to 8 bits: half a level, and PIL's own in between."""
    region = build(hub)
    for shape in ((40, 56), (100, 30), (64, 64)):
        images = torch.rand(2, 3, *shape)
        given = list(to_uint8(images))
        inputs = region.processor(images=given, input_data_format="channels_last", return_tensors="pt")
        made, size = region.pixels(torch.from_numpy(np.stack(given)).permute(0, 3, 1, 2) / 255)
        assert [list(size)] * 2 == inputs["reshaped_input_sizes"].tolist()
        torch.testing.assert_close(made, inputs["pixel_values"], rtol=0, atol=1.5 / 255 / 0.22)


def test_segment_agrees_with_sam(hub, images) -> None:
    """With all masks kept and points in two batch sizes, compared with SAM called for one picture and all points."""
    region = build(hub, **EVERYTHING)
    labels = region.segment(images)
    assert labels.shape == (2, 40, 56) and labels.dtype == torch.int64
    assert labels.amax() >= 1
    assert torch.equal(labels, build(hub, **EVERYTHING | {"points_per_batch": 64}).segment(images))
    assert torch.equal(labels[1:], region.segment(images[1:]))  # alone or in company

    pixels, size = region.pixels(images[:1])
    assert size == (46, 64)
    x, y = [64 / 6, 64 / 2, 64 * 5 / 6], [46 / 6, 46 / 2, 46 * 5 / 6]
    points = torch.tensor([[x[i % 3], y[i // 3]] for i in range(9)]).view(1, 9, 1, 2)
    with torch.no_grad():
        out = region.sam(pixel_values=pixels, input_points=points)
    logits, scores = out.pred_masks.flatten(1, 2)[0], out.iou_scores.flatten()
    kept = select(logits[:, :23], scores, -1e9, 0.0)  # 46 of 64 rows: 23 of the masks' 32
    masks = region.processor.post_process_masks([logits[None, kept]], [(40, 56)], [size])[0][0].numpy()
    assert np.array_equal(paint(masks), labels[0].numpy())


def test_pictures_are_segmented_in_batches(hub) -> None:
    region, batches = build(hub, **EVERYTHING), []
    region.sam.vision_encoder.register_forward_pre_hook(
        lambda _, args, kwargs: batches.append(len(args[0])), with_kwargs=True
    )
    images = torch.rand(6, 3, 40, 40)
    labels = region.segment(images)
    assert batches == [4, 2] and torch.equal(labels[5], region.segment(images[5:])[0])


def features(batch: int) -> Features:
    empty = torch.zeros(batch, 0, 16)
    mask = torch.zeros(batch, 0, dtype=torch.bool)
    patches = torch.randn(batch, 16, 16, requires_grad=True)
    return Features(patches, (4, 4), empty, mask, torch.zeros(batch, 4), empty, mask)


def test_no_mask_gives_no_region_and_no_nan(hub, images) -> None:
    region = build(hub, iou_threshold=1e9).train()
    labels = region.segment(images)
    assert (labels == -1).all()
    given = features(2)
    cues, mask = region(given, labels)
    assert not mask.any() and (cues == 0).all()
    cues.sum().backward()
    assert torch.isfinite(given.patches.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in region.parameters() if p.grad is not None)


def test_sam_is_frozen(hub) -> None:
    region = build(hub).train()
    trained = {n.partition(".")[0] for n, p in region.named_parameters() if p.requires_grad}
    assert trained == {"place", "blocks", "norm"}
    assert not region.sam.training


def test_checkpoint_with_sam(hub, images, tmp_path) -> None:
    """Weights that SAM ties, and the image processor, are restored; the hub folder is not needed."""
    params = {"name": "sam", "pretrained": hub["sam"].folder, "heads": 2, "layers": 1, "max_regions": 6, **EVERYTHING}
    cfg = make_config({"model": {"width": 16, "frce": {"region": params}}})
    model = ReasonBrain.from_config(cfg.model).eval()
    save_model(model, cfg, tmp_path)
    again, _ = load_model(tmp_path)
    state = again.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    old, new = (m.make_inputs(images, ["a", "b"]).regions for m in (model, again))
    assert old.amax() >= 1 and torch.equal(old, new)
    sam = again.slot("frce.region").sam
    shared = sam.prompt_encoder.shared_embedding.positional_embedding
    assert shared is sam.shared_image_embedding.positional_embedding


@pytest.mark.parametrize("size", THIN)
def test_three_rows_are_not_mistaken_for_three_channels(hub, monkeypatch, size) -> None:
    """For a red picture, SAM gets one value per channel, and 0 in the padding."""
    part, seen = build(hub), []
    embed = part.sam.get_image_embeddings
    monkeypatch.setattr(part.sam, "get_image_embeddings", lambda pixels: seen.append(pixels) or embed(pixels))
    for shape in (size, (40, 40)):
        assert part.segment(red(*shape)).shape == (1, *shape)
    thin, square = ([set(channel.unique().tolist()) - {0.0} for channel in pixels[0]] for pixels in seen)
    assert thin == square
