"""Names of the former release: they still work, with a warning, and folders that have them load as what they are."""

import json

import pytest
import torch
from transformers import AutoModel

from albef_hf import encoders_albef, heatmaps_albef, modeling_albef, retrieval_albef
from albef_hf.configuration_albef import AlbefConfig
from albef_hf.conversion.code_renewal import renew_code
from albef_hf.retrieval_albef import best_matches


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        (modeling_albef, "AlbefAlignedModel", "AlbefImageTextModel"),
        (modeling_albef, "AlbefPairModel", "AlbefTwoImageModel"),
        (encoders_albef, "AlbefPairMultimodalModel", "AlbefTwoImageEncoder"),
        (modeling_albef, "AlbefPairMultimodalModel", "AlbefTwoImageEncoder"),
        (heatmaps_albef, "panels", "heatmap_grid"),
        (retrieval_albef, "match_pictures", "match_images"),
        (retrieval_albef, "read_texts", "encode_tokenized_texts"),
    ],
)
def test_old_names_warn(module, old, new):
    with pytest.warns(FutureWarning, match=f"{old} is now called {new}") as warnings:
        assert getattr(module, old) is getattr(module, new)
    assert warnings[0].filename == __file__
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        module.absent  # noqa: B018


def test_old_arguments_warn(model, batch):
    keys = torch.eye(3)
    with pytest.warns(FutureWarning, match="The argument k of best_matches is now called top_k") as warnings:
        similarities, _ = best_matches(keys, keys, k=2)
    assert similarities.shape == (3, 2) and warnings[0].filename == __file__
    with pytest.raises(ValueError, match="negative_hardness was renamed: pass hardness_strength instead"):
        model(**batch, negative_hardness=0.5)


@pytest.mark.parametrize("part", ["model", "encoder"])
def test_a_folder_of_the_former_release_loads_as_its_model(config, tmp_path, part):
    """By the Auto classes and by `renew_code`; it is not taken for the model of one image."""
    model = modeling_albef.AlbefTwoImageModel(config)
    saved = model if part == "model" else model.multimodal_model
    saved.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["architectures"] == [type(saved).__name__]
    old_name = "AlbefPairModel" if part == "model" else "AlbefPairMultimodalModel"
    settings["architectures"] = [old_name]
    settings["auto_map"]["AutoModel"] = f"modeling_albef.{old_name}"
    (tmp_path / "config.json").write_text(json.dumps(settings))

    loaded, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(saved) and not report["missing_keys"] and not report["unexpected_keys"]
    for name, weight in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    renew_code(tmp_path)
    entry = json.loads((tmp_path / "config.json").read_text())["auto_map"]["AutoModel"]
    assert entry.endswith(f"_albef.{type(saved).__name__}")
    assert type(AutoModel.from_pretrained(tmp_path)) is type(saved)


def test_configurations_have_the_new_names():
    assert AlbefConfig(architectures=["AlbefPairModel"]).architectures == ["AlbefTwoImageModel"]
