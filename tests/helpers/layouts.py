"""Small data sets in their public layouts. Each function fills a folder and returns the value for ``data.path``."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

HOLE = (10, 6, 30, 20)  # left, top, right, bottom of what may change in MagicBrush's and ReasonEdit's masks


def picture(seed: int, size=(48, 32)) -> Image.Image:
    """Coarse noise, which survives JPEG and looks different for every seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form="PNG") -> bytes:
    buffer = BytesIO()
    image.save(buffer, form, quality=95)
    return buffer.getvalue()


def cell(image: Image.Image) -> dict:
    """A picture as the Hub stores it in Parquet."""
    return {"bytes": encoded(image), "path": None}


def mask(inside=255, outside=0, size=(48, 32)) -> Image.Image:
    found = Image.new("L", size, outside)
    found.paste(inside, HOLE)
    return found


def holed(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    image.putalpha(mask(0, 255))
    return image


def parquet(path: Path, rows: list[dict]) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=95)


def manifest(folder: Path, count=3) -> str:
    rows = []
    for i in range(count):
        for end, seed in (("src", 2 * i), ("tgt", 2 * i + 1)):
            save(picture(seed), folder / "images" / f"{i}_{end}.png")
        named = {"src_image": f"images/{i}_src.png", "tgt_image": f"images/{i}_tgt.png"}
        row = {"id": f"r{i}", "category": "causal", **named, "instruction": f"What if number {i} fell?"}
        rows.append(row | {"target_caption": f"fallen {i}", "objects": ["ball"]})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "manifest.jsonl")


def triples(folder: Path) -> str:
    for i in range(3):
        save(picture(2 * i), folder / "heat" / f"{i}_source.png")
        save(picture(2 * i + 1), folder / "heat" / f"{i}_target.jpg")
        (folder / "heat" / f"{i}.txt").write_text(f"Heat {i}.\n")
    return str(folder)


def hub(folder: Path) -> str:
    rows = [{"source": cell(picture(2 * i)), "instruction": f"do {i}"} for i in range(3)]
    for i, row in enumerate(rows):
        row["target"] = cell(picture(2 * i + 1))
    parquet(folder / "data" / "train-00000-of-00002.parquet", rows[:2])
    parquet(folder / "data" / "train-00001-of-00002.parquet", rows[2:])
    return str(folder)


def shards(folder: Path, count=5) -> str:
    import webdataset

    folder.mkdir(parents=True, exist_ok=True)
    with webdataset.ShardWriter(str(folder / "edits-%06d.tar"), maxcount=2, verbose=0) as writer:
        for i in range(count):
            source, target = encoded(picture(2 * i)), encoded(picture(2 * i + 1), "JPEG")
            words = {"id": f"w{i}", "instruction": f"do {i}", "category": "story", "objects": ["cup"]}
            writer.write({"__key__": f"{i:04d}", "source.png": source, "target.jpg": target, "json": words})
    return str(folder / "edits-*.tar")


def magicbrush(folder: Path) -> str:
    """Two sessions, of two turns and of one."""
    rows = []
    for session, turns in (("139306", 2), ("30", 1)):
        for turn in range(1, turns + 1):
            seed = int(session) + turn
            named = {"img_id": session, "turn_index": turn, "instruction": f"turn {turn} of {session}"}
            pictures = {"source_img": picture(seed), "mask_img": holed(picture(seed)), "target_img": picture(seed + 1)}
            rows.append(named | {name: cell(image) for name, image in pictures.items()})
    return parquet(folder / "data" / "dev-00000-of-00001.parquet", rows)


def magicbrush_test(folder: Path) -> str:
    named = [{"input": "7-input.png", "mask": "7-mask1.png", "output": "7-output1.png", "instruction": "first"}]
    named += [{"input": "7-output1.png", "mask": "7-mask2.png", "output": "7-output2.png", "instruction": "second"}]
    for seed, name in enumerate(("7-input.png", "7-output1.png", "7-output2.png")):
        save(picture(seed), folder / "images" / "7" / name)
    for seed in (1, 2):
        save(holed(picture(seed - 1)), folder / "images" / "7" / f"7-mask{seed}.png")
    (folder / "edit_sessions.json").write_text(json.dumps({"7": named}))
    return str(folder)


def emu_edit(folder: Path) -> str:
    rows = []
    for i, task in enumerate(("add", "style")):
        words = {"instruction": f"do {i}", "task": task, "split": "test", "idx": 17 + i, "hash": f"h{i}"}
        words |= {"input_caption": f"before {i}", "output_caption": f"after {i}"}
        rows.append(words | {"image": cell(picture(i))})
    return parquet(folder / "data" / "test-00000-of-00001.parquet", rows)


def editworld(folder: Path) -> str:
    for branch, spelling in (("generated_img", "instuction"), ("human_select_img", "instruction")):
        group = folder / branch / "group_0"
        rows = {}
        for i in range(2):
            save(picture(2 * i), group / f"sample{i}_ori.png")
            save(picture(2 * i + 1), group / f"sample{i}_tar.png")
            named = {f"{end}_img_path": f"datasets/{branch}/group_0/sample{i}.png" for end in ("original", "target")}
            rows[f"sample{i}"] = named | {spelling: f"leave it in the sun {i}"}
        (group / "img_txt.json").write_text(json.dumps(rows, indent=4))
    return str(folder)


def reasonedit(folder: Path) -> str:
    for name, words in (("1-Left-Right", "Left_Right_text.txt"), ("6-Reasoning", "Reason_test.txt")):
        for i in (1, 2):
            save(picture(i), folder / name / f"{i:03d}.png")
            save(mask(), folder / name / f"{i:03d}_mask.jpg")
        lines = [f"Remove the thing {i} CLIP: thing {i}\n" for i in (1, 2)]
        (folder / name / words).write_text("".join(lines))
    return str(folder)


def pix2pix(folder: Path) -> str:
    seeds = [["0000000", ["12", "99"]], ["0000001", ["5"]]]
    for prompt, numbers in seeds:
        for seed in numbers:
            for end in (0, 1):
                save(picture(int(seed) + end), folder / prompt / f"{seed}_{end}.jpg")
        said = {"input": "a dog", "edit": f"make it {prompt}", "output": "a cat"}
        (folder / prompt / "prompt.json").write_text(json.dumps(said))
    (folder / "seeds.json").write_text(json.dumps(seeds))
    return str(folder)


def pix2pix_hub(folder: Path) -> str:
    words = {"original_prompt": "a dog", "edit_prompt": "make it a cat", "edited_prompt": "a cat"}
    row = words | {"original_image": cell(picture(0)), "edited_image": cell(picture(1))}
    return parquet(folder / "data" / "train-00000-of-00001.parquet", [row])


def risebench(folder: Path) -> str:
    """The third record has two sources."""
    names = ["causal_reasoning_images/1.png", "spatial_reasoning_images/2.png", "temporal_reasoning_images/8_1.png"]
    for seed, name in enumerate([*names, "spatial_reasoning_images/2_ref.png"]):
        save(picture(seed), folder / name)
    rows = [
        {"image": names[0], "reference": "A bitten apple.", "reference_img": None, "consistency_free": None},
        {"image": [names[1]], "reference_img": "spatial_reasoning_images/2_ref.png"},
        {"image": [names[2], names[0]], "multi_img": "True"},
    ]
    for i, row in enumerate(rows):
        category = row["image"][0] if isinstance(row["image"], list) else row["image"]
        row |= {"category": category.split("_images")[0], "index": f"x_{i}", "instruction": f"draw {i}"}
    (folder / "datav2_total_w_subtask.json").write_text(json.dumps(rows))
    return str(folder)


def kris(folder: Path) -> str:
    """One task whose records have several sources."""
    tasks = {
        "abstract_reasoning": {"1": {"ori_img": "1.jpg", "ins_en": "fill in", "explain_en": "32"}},
        "viewpoint_change": {"4": {"ori_img": "4.jpg", "gt_img": "4_gt.jpg", "ins_en": "top view", "explain_en": ""}},
        "temporal_prediction": {"1": {"ori_img": ["1.jpg", "2.jpg"], "gt_img": "3.jpg", "ins_en": "predict"}},
    }
    for task, rows in tasks.items():
        for row in rows.values():
            for seed, key in enumerate(("ori_img", "gt_img")):
                if isinstance(row.get(key), str):
                    save(picture(seed), folder / task / row[key])
        (folder / task / "annotation.json").write_text(json.dumps(rows, indent=2))
    return str(folder)
