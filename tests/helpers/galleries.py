"""Parses galleries of utils/gallery.py."""

import json
from html.parser import HTMLParser


class Page(HTMLParser):
    """A parsed gallery. ``text``: the texts of its elements. ``cards``, ``better``: its data. Asserts that only its own
    two scripts can run, and that it loads nothing."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.data = [], [], ""
        self.feed(text)
        assert [tag for tag, _ in self.tags if tag == "script"] == ["script", "script"]
        assert not any(name in attrs for _, attrs in self.tags for name in ("src", "href", "onerror", "onload"))
        (policy,) = (
            attrs["content"] for tag, attrs in self.tags if attrs.get("http-equiv") == "Content-Security-Policy"
        )
        assert "default-src 'none'; img-src data:;" in policy
        data = json.loads(self.data)
        self.cards, self.better = data["cards"], data["better"]
        assert all(uri.startswith("data:image/") for card in self.cards for _, uri in card["pictures"])

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1] == ("script", {"type": "application/json", "id": "data"}):
            self.data += data
        elif data.strip():
            self.text.append(data)

    def handle_endtag(self, tag):
        if tag == "script":
            self.tags.append((f"/{tag}", {}))
