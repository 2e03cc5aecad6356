"""The first hour of a user with encoders of their own: pretrain by command, push, load without the package, search."""

import json
import os
import subprocess
import sys

import pytest
import torch
from hub_server import HubServer
from PIL import Image
from test_architecture import PACKAGE
from text_models import save_text_model
from transformers import AutoModel, Dinov2Config

VISITOR = """
import sys, torch
from PIL import Image
from transformers import AutoModelForPreTraining, AutoProcessor
model = AutoModelForPreTraining.from_pretrained("owner/own-encoders", trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained("owner/own-encoders", trust_remote_code=True)
assert not any(name.startswith("albef_hf") for name in sys.modules)
inputs = processor(images=Image.open(sys.argv[1]), text=["ein roter Kreis", "两只狗"], return_tensors="pt")
with torch.no_grad():
    torch.save(dict(inputs) | {"itm_logits": model(**inputs).itm_logits}, sys.argv[2])
"""


@pytest.mark.skipif(not os.environ.get("ALBEF_LONG"), reason="takes long: ALBEF_LONG=1 runs it")
@pytest.mark.parametrize(
    "frozen", [pytest.param((), id="trained"), pytest.param(("image_encoder", "text_encoder"), id="frozen")]
)
def test_own_encoders_from_pretraining_to_search(frozen, tmp_path):
    tiny = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    AutoModel.from_config(Dinov2Config(**tiny, image_size=112, patch_size=14)).save_pretrained(tmp_path / "dinov2")
    own = {"crop_size": {"height": 56, "width": 56}, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.2] * 3}
    (tmp_path / "dinov2" / "preprocessor_config.json").write_text(json.dumps(own))
    save_text_model(tmp_path / "xlm-r", "xlm-roberta", layers=2)
    images = tmp_path / "images"
    images.mkdir()
    for color in ("red", "green", "blue"):
        Image.new("RGB", (80, 60), color).save(images / f"{color}.png")

    def albef(*words: str) -> str:
        command = [sys.executable, "-m", "albef_hf", *words]
        run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert run.returncode == 0, run.stderr[-3000:]
        return run.stdout

    with HubServer() as hub:
        environment = hub.environment(
            tmp_path / "home", "hf_owner", OMP_NUM_THREADS="1", PYTHONPATH=str(PACKAGE.parent)
        )
        options = {
            "vision_model": "dinov2",
            "text_model": "xlm-r",
            "model_config": json.dumps({"projection_dim": 16, "text_config": {"num_hidden_layers": 1}}),
            "scenes": 24,
            "validation_size": 4,
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "queue_size": 8,
            "dataloader_num_workers": 0,
            "report_to": "none",
            "output_dir": "own-encoders",
            "hub_model_id": "owner/own-encoders",
        }
        chosen = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        albef("pretrain", *chosen, "--push_to_hub", *(["--freeze", *frozen] if frozen else []))
        visitor = hub.environment(tmp_path / "visitor", "hf_visitor", OMP_NUM_THREADS="1")
        command = [sys.executable, "-c", VISITOR, str(images / "red.png"), str(tmp_path / "seen.pt")]
        subprocess.run(command, env=visitor, cwd=tmp_path, check=True, timeout=300)
        albef("index", "build", "images", "--model", "own-encoders")
        printed = albef("search", "ein roter Kreis")
    from albef_hf import AlbefForPreTraining, AlbefProcessor

    model = AlbefForPreTraining.from_pretrained(tmp_path / "own-encoders").eval()
    assert model.config.vision_config.model_type == "dinov2" and model.config.text.position_offset == 2
    processor = AlbefProcessor.from_pretrained(tmp_path / "own-encoders")
    assert processor.image_processor.size == {"height": 56, "width": 56} and processor.keep_case
    seen = torch.load(tmp_path / "seen.pt")
    expected = seen.pop("itm_logits")
    with torch.no_grad():
        torch.testing.assert_close(model(**seen).itm_logits, expected)
    assert all(f"{color}.png" in printed for color in ("red", "green", "blue"))
    weights = AutoModel.from_pretrained(tmp_path / "dinov2").state_dict()
    same = all(
        torch.equal(weight, weights[name]) for name, weight in model.albef.vision_model.encoder.state_dict().items()
    )
    assert same == bool(frozen)
