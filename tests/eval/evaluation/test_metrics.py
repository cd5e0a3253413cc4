"""Every metric against an independent computation, on whole pictures and in regions. The networks are tiny and
untrained, as no published weights are available to the tests."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchmetrics
from PIL import Image
from safetensors.torch import load_file, save_file
from thin import THIN, red
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPModel, ViTConfig, ViTModel

from reasonbrain.data.record import Record
from reasonbrain.errors import UserError
from reasonbrain.eval.evaluation.metrics import METRICS, TOP_PSNR, look_at, scores
from reasonbrain.eval.evaluation.networks import Models
from reasonbrain.utils.images import to_pil

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CAPTIONS = ("a lit candle", "a candle that was blown out")


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = ViTModel(ViTConfig(**small, image_size=28, patch_size=7), add_pooling_layer=False)
    for p in model.parameters():  # livelier than the usual start
        p.data.mul_(3.0)
    folder = tmp_path_factory.mktemp("vit")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(parts, vit):
    return Models(str(parts / "clip"), str(vit))


def noise(seed, size=(60, 48)):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    return Image.fromarray((np.asarray(coarse) * 0.8 + rng.integers(0, 51, (size[1], size[0], 3))).astype(np.uint8))


@pytest.fixture(scope="module")
def mask():
    where = np.zeros((48, 60), bool)
    where[14:30, 20:44] = True
    return where


@pytest.fixture(scope="module")
def case(mask):
    white = Image.fromarray(mask).convert("L")
    record = Record("a", noise(1), noise(2), ["what if"], mask=white, captions=CAPTIONS, notes={"CLIP": "red candle"})
    return look_at(record, noise(3))


def measure(case, models, *names):
    return scores(case, {name: METRICS[name] for name in names}, models)


def tensor(image):
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 255


def black(image, where):
    out = np.asarray(image).copy()
    out[~where] = 0
    return Image.fromarray(out)


def test_pixels(case, mask, models):
    found = measure(case, models, "L1", "L2", "PSNR", "L1 to source", "PSNR to source")
    edit, target, source = (tensor(i)[0].double() for i in (case.edit, case.target, case.source))
    for region, where in (("", np.ones_like(mask)), (" inside", mask), (" outside", ~mask)):
        inside = torch.from_numpy(where)
        a, b, c = edit[:, inside], target[:, inside], source[:, inside]
        assert found[f"L1{region}"] == pytest.approx(float((a - b).abs().mean()))
        assert found[f"L2{region}"] == pytest.approx(torchmetrics.functional.mean_squared_error(a, b).item())
        psnr = torchmetrics.functional.image.peak_signal_noise_ratio(a, b, data_range=1.0)
        assert found[f"PSNR{region}"] == pytest.approx(psnr.item())
        assert found[f"L1 to source{region}"] == pytest.approx(float((a - c).abs().mean()))
    assert len({round(found[f"L1{r}"], 6) for r in ("", " inside", " outside")}) == 3


def test_ssim(case, mask, models):
    found = measure(case, models, "SSIM", "SSIM to source")
    for name, reference in (("SSIM", case.target), ("SSIM to source", case.source)):
        mean, full = torchmetrics.functional.image.structural_similarity_index_measure(
            tensor(case.edit), tensor(reference), data_range=1.0, return_full_image=True
        )
        assert found[name] == pytest.approx(mean.item(), abs=1e-5)
        local = full[0].mean(0).numpy()
        assert found[f"{name} inside"] == pytest.approx(local[mask].mean(), abs=1e-5)
        assert found[f"{name} outside"] == pytest.approx(local[~mask].mean(), abs=1e-5)


def test_equal_pictures_have_finite_scores(case, models):
    names = [n for n, m in METRICS.items() if m.needs == ("target",) or m.needs == ("target", "clip")]
    same = measure(look_at(case.record, case.target), models, *names, "DINO")
    assert same["PSNR"] == same["PSNR outside"] == TOP_PSNR
    assert same["L1"] == same["L2 inside"] == 0
    for name in ("SSIM", "SSIM inside", "CLIP-I", "CVS outside", "DINO"):
        assert same[name] == pytest.approx(1, abs=1e-5)


@torch.no_grad()
def clip_image(folder, image):
    """CLIP's image embedding with its own preprocessing."""
    model = CLIPModel.from_pretrained(folder)
    side = model.config.vision_config.image_size
    scale = side / min(image.size)
    width, height = int(image.width * scale), int(image.height * scale)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    pixels = tensor(image.crop((left, top, left + side, top + side)))
    pixels = (pixels - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)
    return F.normalize(model.get_image_features(pixels).pooler_output[0], dim=0)


@torch.no_grad()
def clip_text(folder, text):
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids
    return F.normalize(CLIPModel.from_pretrained(folder).get_text_features(ids).pooler_output[0], dim=0)


def test_clip(case, mask, models, parts):
    found = measure(case, models, "CLIP-I", "CVS", "CLIP-T", "CTS", "CLIP Score", "CLIP direction", "CLIP-I to source")
    before, after = (clip_text(parts / "clip", c) for c in CAPTIONS)
    for region, where in (("", np.ones_like(mask)), (" inside", mask), (" outside", ~mask)):
        edit, source, target = (
            clip_image(parts / "clip", black(i, where)) for i in (case.edit, case.source, case.target)
        )
        assert found[f"CLIP-I{region}"] == found[f"CVS{region}"] == pytest.approx(float(edit @ target), abs=1e-5)
        assert found[f"CLIP-I to source{region}"] == pytest.approx(float(edit @ source), abs=1e-5)
        assert found[f"CLIP-T{region}"] == found[f"CTS{region}"] == pytest.approx(float(edit @ after), abs=1e-5)
        assert found[f"CLIP Score{region}"] == pytest.approx(max(100 * float(edit @ after), 0), abs=1e-3)
        change, words = edit - source, after - before
        angle = float(change @ words / change.norm() / words.norm())
        assert found[f"CLIP direction{region}"] == pytest.approx(angle, abs=1e-4)
    assert found["CLIP-I inside"] != pytest.approx(found["CLIP-I outside"], abs=1e-4)


def test_clip_score_is_torchmetrics(case, models, parts):
    """torchmetrics 1.9 expects the return values of transformers 4; this adapts those of transformers 5."""

    class Before(CLIPModel):
        def get_image_features(self, *args):
            return super().get_image_features(*args).pooler_output

        def get_text_features(self, *args):
            return super().get_text_features(*args).pooler_output

    clip, tokenizer = Before.from_pretrained(parts / "clip"), AutoTokenizer.from_pretrained(parts / "clip")

    def processor(text=None, images=None, **_):
        if text is not None:
            return tokenizer(text, return_tensors="pt")
        return models.clip.processor([Image.fromarray(i.permute(1, 2, 0).numpy()) for i in images], return_tensors="pt")

    pixels = torch.from_numpy(np.asarray(case.edit).copy()).permute(2, 0, 1)
    theirs = torchmetrics.functional.multimodal.clip_score(pixels, CAPTIONS[1], lambda: (clip, processor))
    assert measure(case, models, "CLIP Score")["CLIP Score"] == pytest.approx(theirs.item(), abs=1e-3)


def test_no_change_has_no_direction(case, models):
    assert measure(look_at(case.record, case.source), models, "CLIP direction")["CLIP direction"] == 0


def test_dino(case, mask, models, vit):
    found = measure(case, models, "DINO", "DINO to source")
    model = ViTModel.from_pretrained(vit, add_pooling_layer=False)

    @torch.no_grad()
    def seen(image):  # 48 pixels high -> 32 (as 256 to 224), the middle 28
        image = image.resize((40, 32), Image.Resampling.BICUBIC).crop((6, 2, 34, 30))
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        return model((tensor(image) - mean.view(3, 1, 1)) / std.view(3, 1, 1)).last_hidden_state[0, 0]

    for region, where in (("", np.ones_like(mask)), (" inside", mask), (" outside", ~mask)):
        edit, source, target = (seen(black(i, where)) for i in (case.edit, case.source, case.target))
        assert found[f"DINO{region}"] == pytest.approx(F.cosine_similarity(edit, target, dim=0).item(), abs=1e-5)
        same = F.cosine_similarity(edit, source, dim=0).item()
        assert found[f"DINO to source{region}"] == pytest.approx(same, abs=1e-5)


def test_the_background_as_smartedit_measures_it(case, mask, models):
    """Pictures that are black inside the mask; the black pixels are part of every mean."""
    names = ("PSNR of background", "SSIM of background", "L2 of background")
    found = measure(case, models, *names)
    assert set(found) == set(names)
    a, b = tensor(black(case.edit, ~mask)), tensor(black(case.source, ~mask))
    image = torchmetrics.functional.image
    assert found["L2 of background"] == pytest.approx(((a - b) ** 2).mean().item(), rel=1e-5)
    assert found["PSNR of background"] == pytest.approx(image.peak_signal_noise_ratio(a, b, data_range=1.0).item())
    ssim = image.structural_similarity_index_measure(a, b, data_range=1.0)
    assert found["SSIM of background"] == pytest.approx(ssim.item(), abs=1e-5)


def test_the_object_as_smartedit_crops_it(case, models, parts):
    box = case.edit.crop((20, 14, 43, 29))  # the mask's last row and column are left out there
    scores = []
    for name in ("red candle", "ice", "a tall blue boat"):
        record = replace(case.record, notes={"CLIP": name})
        score = 100 * float(clip_image(parts / "clip", box) @ clip_text(parts / "clip", name))
        found = measure(replace(case, record=record), models, "CLIP Score of object")
        assert found == {"CLIP Score of object": pytest.approx(max(score, 0), abs=1e-3)}
        scores.append(score)
    assert max(scores) > 1  # one that is not cut off at 0


def test_scores_outside_do_not_depend_on_the_inside(case, mask, models):
    names = ("L1", "L2", "PSNR", "CLIP-I", "DINO", "CLIP direction")
    painted = np.asarray(case.edit).copy()
    painted[mask] = (255, 0, 200)
    before, after = (
        measure(case, models, *names),
        measure(look_at(case.record, Image.fromarray(painted)), models, *names),
    )
    for name in names:
        assert after[f"{name} outside"] == before[f"{name} outside"]
        assert after[f"{name} inside"] != before[f"{name} inside"]


def test_an_edit_is_compared_at_the_targets_size(case, models):
    large = case.edit.resize((120, 96), Image.Resampling.NEAREST)
    again = look_at(case.record, large)
    assert again.edit.size == again.source.size == again.target.size == (60, 48) and again.mask.shape == (48, 60)
    square = look_at(case.record, large, 32)
    assert {i.size for i in (square.edit, square.source, square.target)} == {(32, 32)} and square.mask.shape == (32, 32)


def test_metrics_whose_inputs_are_missing_are_none(case, models):
    bare = look_at(Record("b", noise(1), None, ["what if"]), noise(3))
    found = measure(bare, models, *(n for n in METRICS if "LPIPS" not in n))
    known = {name for name, value in found.items() if value is not None}
    assert known == {f"{n} to source" for n in ("L1", "L2", "PSNR", "SSIM", "CLIP-I", "DINO")}
    everywhere = Record("c", noise(1), noise(2), ["what if"], mask=Image.new("L", (60, 48), 255))
    found = measure(look_at(everywhere, noise(3)), models, "L1", "SSIM")
    assert found["L1 outside"] is None and found["SSIM outside"] is None and found["L1 inside"] == found["L1"]


@pytest.mark.parametrize(
    ("value", "name"), [(0, "CLIP Score of object"), (255, "PSNR of background"), (255, "L1 of background")]
)
def test_a_region_without_pixels_has_no_score(value, name, case, models):
    """An empty background would be perfect, and an empty mask, as of an object that scaling has lost, has no box."""
    record = replace(case.record, mask=Image.new("L", case.record.source.size, value), notes={"CLIP": "a cup"})
    assert measure(look_at(record, case.edit), models, name) == {name: None}


def test_a_mask_of_another_shape_than_its_source_is_an_error(mask):
    """One of a source that was turned or cropped would be stretched over other pixels."""
    half = Record("c", noise(1), None, ["what if"], mask=Image.fromarray(mask).resize((30, 24)))
    assert np.array_equal(look_at(half, noise(3)).mask, mask)
    turned = replace(half, mask=Image.fromarray(mask.T))
    with pytest.raises(UserError, match="the source is 60x48 and the mask 48x60; both need one aspect ratio"):
        look_at(turned, noise(3))


def test_a_wrong_network_is_reported(parts, vit, tmp_path):
    assert Models(str(parts / "clip"), str(vit)).missing("dino") is None
    assert "cannot be loaded" in Models(clip=str(tmp_path)).missing("clip")
    assert "is a clip, not a vit" in Models(dino=str(parts / "clip")).missing("dino")
    assert "is a vit, not a clip" in Models(clip=str(vit)).missing("clip")
    for name, folder in (("clip", parts / "clip"), ("dino", vit)):  # transformers would fill in random weights
        shutil.copytree(folder, tmp_path / name)
        tensors = load_file(tmp_path / name / "model.safetensors")
        lost = next(key for key in sorted(tensors) if key.endswith("q_proj.weight") or key.endswith("query.weight"))
        save_file(
            {k: v for k, v in tensors.items() if k != lost}, tmp_path / name / "model.safetensors", {"format": "pt"}
        )
        assert " lack " in Models(**{name: str(tmp_path / name)}).missing(name)


def test_lpips(case, mask, vit, tmp_path, monkeypatch):
    """Computed from AlexNet's features and the linear layers that torchmetrics ships. AlexNet's weights are random."""
    try:
        from torchvision.models import AlexNet_Weights, alexnet
    except (ImportError, RuntimeError):  # not there, or not built for this torch
        assert "torchvision" in Models().missing("lpips")
        pytest.skip("torchmetrics takes AlexNet from torchvision, of which there is no build for a CPU build of torch")
    from torchmetrics.functional.image import lpips as theirs

    torch.manual_seed(0)
    net = alexnet()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / AlexNet_Weights.DEFAULT.url.rsplit("/", 1)[1]
    cached.parent.mkdir(parents=True)
    torch.save(net.state_dict(), cached)
    linear = torch.load(f"{theirs.__file__.removesuffix('lpips.py')}lpips_models/alex.pth", map_location="cpu")

    @torch.no_grad()
    def distance(a, b):
        total = 0.0
        a, b = ((tensor(i) * 2 - 1 - torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)) for i in (a, b))
        a, b = (i / torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1) for i in (a, b))
        for number, layer in enumerate(net.features):
            a, b = layer(a), layer(b)
            if number in (1, 4, 7, 9, 11):
                apart = (F.normalize(a, dim=1, eps=1e-10) - F.normalize(b, dim=1, eps=1e-10)) ** 2
                weight = linear[f"lin{(1, 4, 7, 9, 11).index(number)}.model.1.weight"]
                total += float((apart * weight).sum(1).mean())
        return total

    big = look_at(case.record, case.edit, 96)
    found = measure(big, Models(), "LPIPS", "LPIPS of background")
    assert found["LPIPS"] == pytest.approx(distance(big.edit, big.target), rel=1e-4)
    assert found["LPIPS inside"] == pytest.approx(
        distance(black(big.edit, big.mask), black(big.target, big.mask)), rel=1e-4
    )
    outside = distance(black(big.edit, ~big.mask), black(big.source, ~big.mask))
    assert found["LPIPS of background"] == pytest.approx(outside, rel=1e-4)


@pytest.mark.parametrize("size", THIN)
@pytest.mark.parametrize("name", ["clip", "dino"])
def test_three_rows_are_not_mistaken_for_three_channels(models, name, size):
    thin, square = (getattr(models, name).image(to_pil(red(*shape))[0]) for shape in (size, (40, 40)))
    torch.testing.assert_close(thin, square)
