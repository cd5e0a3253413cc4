"""FRCE: patch, region and text branch, and no NaN for empty input."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from reasonbrain.interfaces import Features
from reasonbrain.modules.data.reasonmini import make
from reasonbrain.modules.data.reasonmini.canvas import PALETTE
from reasonbrain.modules.frce.id_controller import IdController
from reasonbrain.modules.frce.patch_encoder import PatchEncoder
from reasonbrain.modules.frce.regions import SuperpixelRegions, by_area, region_geometry
from reasonbrain.train.planning.dry import Counter
from reasonbrain.utils.images import to_tensor

WIDTH = 16


def features(grid=(4, 4), objects=2):
    torch.manual_seed(0)
    n = grid[0] * grid[1]
    return Features(
        patches=torch.randn(2, n, WIDTH),
        grid=grid,
        text=torch.randn(2, 3, WIDTH),
        text_mask=torch.ones(2, 3).bool(),
        pooled=torch.randn(2, WIDTH),
        objects=torch.randn(2, objects, WIDTH),
        objects_mask=torch.ones(2, objects).bool(),
    )


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def test_the_cue_of_a_region_is_the_mean_over_the_patches_of_its_pixels():
    f = features()
    branch = SuperpixelRegions(WIDTH, layers=0, heads=2, max_regions=5)
    branch.place.weight.data.zero_()
    branch.place.bias.data.zero_()
    regions = torch.randint(-1, 4, (2, 32, 32))  # label 4 occurs nowhere
    cues, mask = branch(f, regions)
    assert mask.tolist() == [[True] * 4 + [False]] * 2
    for row in range(2):
        for label in range(4):
            ys, xs = np.where(regions[row].numpy() == label)
            mean = torch.stack([f.patches[row, y // 8 * 4 + x // 8] for y, x in zip(ys, xs, strict=True)]).mean(0)
            torch.testing.assert_close(cues[row, label], F.layer_norm(mean, (WIDTH,)), rtol=1e-4, atol=1e-4)
    assert (cues[:, 4] == 0).all()


def test_the_cue_of_a_region_has_its_position_and_size():
    f = features()
    f.patches[:] = f.patches[:, :1]  # the same everywhere
    regions = torch.full((2, 32, 32), -1)
    regions[0, 4:8, 4:8] = 0
    regions[1, 20:24, 4:8] = 0
    branch = SuperpixelRegions(WIDTH, layers=0, heads=2)
    f.patches[1] = f.patches[0]
    cues, _ = branch(f, regions)
    assert (cues[0, 0] - cues[1, 0]).abs().max() > 1e-3
    regions[1] = -1
    regions[1, :12, :12] = 0  # the same centre as row 0's, larger
    cues, _ = branch(f, regions)
    assert (cues[0, 0] - cues[1, 0]).abs().max() > 1e-3


def test_the_geometry_is_centre_spread_and_size():
    """Of a region that is wider than high, in a picture that is higher than wide."""
    member = torch.zeros(1, 2, 41, 21)
    member[0, 0, 4:7, 2:20] = 1
    found = region_geometry(member, member.mean((2, 3)))
    ys, xs = np.where(member[0, 0].numpy() == 1)
    x, y = xs / 20, ys / 40
    expected = [x.mean(), y.mean(), x.std(), y.std(), np.sqrt(len(x) / (41 * 21))]
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-4)
    assert (found[0, 1] == 0).all()


def test_the_geometry_does_not_depend_on_the_precision_of_the_weights():
    """In bfloat16, the spread of a small region far from the corner would be rounded to 0."""
    regions = torch.full((1, 128, 128), -1)
    regions[0, 100:103, 100:103] = 0
    patches = torch.zeros(1, 16, 32)
    features = Features(patches, (4, 4), patches, patches[..., 0] > 0, patches, patches, patches[..., 0] > 0)
    seen = []
    for dtype in (torch.float32, torch.bfloat16):
        plug = SuperpixelRegions(32, heads=2).to(dtype)
        plug.place.register_forward_pre_hook(lambda _, args: seen.append(args[0][0, 0]))
        plug(features, regions)
    assert seen[1].dtype == torch.bfloat16 and seen[0][2] > 0.005
    torch.testing.assert_close(seen[1].float(), seen[0], rtol=0.01, atol=0)


def test_regions_do_not_attend_to_absent_ones():
    f = features()
    regions = torch.zeros(2, 32, 32).long()
    regions[:, 16:] = 1
    few, many = (SuperpixelRegions(WIDTH, layers=2, heads=2, max_regions=r) for r in (2, 9))
    many.load_state_dict(few.state_dict())
    cues = many(f, regions)[0]
    torch.testing.assert_close(few(f, regions)[0], cues[:, :2])
    assert (cues[:, 2:] == 0).all()


def test_superpixels_find_the_object_of_a_picture():
    """A balloon that bursts: the changing pixels of its colour are one region."""
    branch = SuperpixelRegions(WIDTH)
    for index in range(6):
        sample = make("test", index, kind="balloon_pricked")
        labels = branch.segment(to_tensor([sample.source]))[0].numpy()
        color = np.array(PALETTE[sample.params["color"]])
        thing = (np.abs(np.asarray(sample.source).astype(int) - color).max(-1) < 40) & sample.mask
        assert max(iou(labels == label, thing) for label in range(labels.max() + 1)) > 0.75


def test_superpixels_are_sorted_by_area_and_cover_the_picture():
    pictures = to_tensor([make("test", i).source for i in range(4)])
    labels = SuperpixelRegions(WIDTH).segment(pictures)
    assert labels.shape == (4, 64, 64) and labels.dtype == torch.int64
    for picture in labels:
        counts = torch.bincount(picture.flatten())
        assert (counts > 0).all() and (counts.diff() <= 0).all()
        assert counts.min() >= round(0.004 * 64 * 64)


def test_by_area():
    assert by_area(np.array([[7, 7, 3], [5, 5, 5]])).tolist() == [[1, 1, 2], [0, 0, 0]]


def test_patch_cues_are_means_of_neighbours():
    f = features(grid=(4, 6))
    cues = PatchEncoder(WIDTH, layers=0, heads=2, pool=2)(f)
    assert cues.shape == (2, 6, WIDTH)
    square = f.patches[:, [12 + 2, 12 + 3, 18 + 2, 18 + 3]]  # rows 2 and 3, columns 2 and 3
    torch.testing.assert_close(cues[:, 4], F.layer_norm(square.mean(1), (WIDTH,)), rtol=1e-4, atol=1e-5)


def test_patches_attend_to_each_other():
    f, branch = features(), PatchEncoder(WIDTH, layers=1, heads=2)
    before = branch(f)
    f.patches[:, 0] *= -1  # adding a constant would be lost on the layer norm
    assert ((branch(f) - before).abs().amax((0, 2)) > 1e-5).all()


def test_id_controller_reads_visual_cues_but_not_masked_ones():
    f, branch = features(), IdController(WIDTH, layers=2, heads=2)
    visual, mask = torch.randn(2, 5, WIDTH), torch.tensor([[1, 1, 1, 0, 0]] * 2).bool()
    before, textual_mask = branch(f, visual, mask)
    assert before.shape == (2, 2, WIDTH) and textual_mask is f.objects_mask
    torch.testing.assert_close(branch(f, visual.masked_fill(~mask[..., None], 77.0), mask)[0], before)
    torch.testing.assert_close(branch(f, visual[:, :3], mask[:, :3])[0], before)
    visual[:, 0] *= -1
    assert ((branch(f, visual, mask)[0] - before).abs().amax(-1) > 1e-5).all()


def test_absent_objects_give_zero_cues():
    f = features()
    f = f._replace(objects_mask=torch.tensor([[True, False], [False, False]]))
    cues, _ = IdController(WIDTH, heads=2)(f, torch.randn(2, 3, WIDTH), torch.ones(2, 3).bool())
    assert (cues[~f.objects_mask] == 0).all() and (cues[0, 0] != 0).any()


@pytest.mark.parametrize("company", [False, True])
def test_empty_rows_give_no_nan(build, wake, company):
    """A row without object, region or word, alone or with a full one, has finite losses and gradients."""
    model = wake(build()).train()
    sample = make("test", 3)
    rows = 1 + company
    regions = torch.full((rows, 64, 64), -1)
    regions[1:] = 0
    inputs = model.make_inputs(
        to_tensor([sample.source] * rows),
        ["", sample.instruction][:rows],
        [[], sample.objects][:rows],
        regions,
    )
    source = torch.randn(rows, 4, 16, 16)
    out = model(inputs, source, source, range(rows))
    out["loss"].backward()
    assert torch.isfinite(out["lm"]) and torch.isfinite(out["dm"])
    for name, p in model.named_parameters():
        assert p.grad is None or torch.isfinite(p.grad).all(), name
    with torch.no_grad():
        condition = model.condition(inputs)[0]
    assert torch.isfinite(condition.visual).all() and torch.isfinite(condition.textual).all()


def test_regions_take_the_memory_of_a_few_masks() -> None:
    """Not of all masks at once: those of 64 regions would be 65 tensors of the picture's size."""
    branch = SuperpixelRegions(WIDTH, layers=0, heads=2, max_regions=64)
    f, regions = features(), torch.randint(-1, 64, (2, 256, 256))
    with Counter([*branch.parameters(), regions]) as counter, torch.no_grad():
        branch(f, regions)
    assert counter.peak < 8 * regions.numel() * 8
