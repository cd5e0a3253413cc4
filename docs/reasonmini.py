"""Draws docs/reasonmini.png, two instructions asked of six pictures each: ``python docs/reasonmini.py``."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from reasonbrain.modules.data.reasonmini2.world import make

ASKED = {
    "What happens if it gets really hot?": "ice.cube balloon.tied pot.filled candle.tall egg.pan chocolate.bar",
    "Let time do its work.": "candle.short tap.running caterpillar.cocoon apple.half house.site bread.loaf",
}
EVENTS = ("heat", "time")
SIZE, GAP, TITLE = 256, 12, 44

sheet = Image.new("RGB", (6 * (SIZE + GAP) + GAP, 2 * (2 * SIZE + GAP + TITLE) + GAP), "white")
draw = ImageDraw.Draw(sheet)
for row, (text, names) in enumerate(ASKED.items()):
    top = row * (2 * SIZE + GAP + TITLE)
    draw.text((GAP, top + 8), text, (38, 40, 46), ImageFont.load_default(26))
    for column, name in enumerate(names.split()):
        sample = make("picture", column, seed=11, size=SIZE, kind=f"{name}.{EVENTS[row]}")
        for line, image in enumerate((sample.source, sample.target)):
            sheet.paste(image, (GAP + column * (SIZE + GAP), top + TITLE + line * (SIZE + 4)))
sheet.save(Path(__file__).with_suffix(".png"), optimize=True)
