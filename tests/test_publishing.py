"""Model cards name the published weights, and their licences; a checkpoint that only works here is not uploaded."""

import pytest

from reasonbrain.checkpoint import slot_folder
from reasonbrain.config.loading import load_config
from reasonbrain.errors import UserError
from reasonbrain.publishing import model_card, push


def test_a_card_names_published_weights(monkeypatch):
    licences = {"openai/clip-vit-large-patch14": "mit", "Qwen/Qwen2.5-VL-7B-Instruct": "apache-2.0"}
    monkeypatch.setattr("reasonbrain.publishing.licence_of", lambda base: licences.get(base, "not stated"))
    cfg = load_config("reasonbrain_flux_kontext", ["train.steps=2000"], reads_data=False)
    card = model_card("someone/melter", cfg)
    assert card.data.license == "other" and card.data.eval_results is None
    assert "black-forest-labs/FLUX.1-Kontext-dev" in card.data.base_model
    assert "| mllm | `qwen2_5_vl` | Qwen/Qwen2.5-VL-7B-Instruct (apache-2.0) |" in card.text
    assert "| cme | `hybrid` | none |" in card.text and "2,000 steps" in card.text
    assert card.text.rstrip().endswith("## Evaluation\n\nNot stated.")
    only = model_card("someone/melter", load_config("tiny", ["model.encoders=null"], reads_data=False))
    assert only.data.license is None and only.data.base_model is None


def test_weights_of_this_machine_are_refused(model, settings, tmp_path):
    from reasonbrain.checkpoint import save_model

    cfg = settings()
    save_model(model, cfg, tmp_path / "model")
    written = (tmp_path / "model" / "config.yaml").read_text()
    (tmp_path / "model" / "config.yaml").write_text(written.replace("pretrained: null", "pretrained: /here/clip", 1))
    for slot in ("encoders", "mllm"):
        (slot_folder(tmp_path / "model", slot) / "trained.safetensors").touch()
    with pytest.raises(UserError, match=r"model.encoders.pretrained: '/here/clip' is no repository of the hub"):
        push(tmp_path / "model", "someone/melter")
