"""The package is imported lazily, and transformers knows its models without a call, in any order of imports.

Each case is a process of its own, since a process registers the package once.
"""

import json
import os
import subprocess
import sys

import pytest
from paths import REPOSITORY
from small_pretraining import TINY_MODEL
from transformers import BlipImageProcessorPil

import albef_hf
from albef_hf import AlbefConfig, AlbefForRetrieval, AlbefProcessor
from albef_hf.data import embedded_tokenizer

AUTO_CLASSES = """
from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor
assert type(AutoConfig.from_pretrained(folder)).__module__ == "albef_hf.configuration_albef"
assert type(AutoModel.from_pretrained(folder)).__name__ == "AlbefForRetrieval"  # it embeds
assert type(AutoModelForZeroShotImageClassification.from_pretrained(folder)).__name__ == "AlbefForRetrieval"
assert type(AutoProcessor.from_pretrained(folder)).__module__ == "albef_hf.processing_albef"
"""
PIPELINES = """
from PIL import Image
from transformers import pipeline
results = pipeline("image-text-retrieval", model=folder)(Image.new("RGB", (40, 40)), candidate_texts=["a", "a dog"])
assert len(results) == 2
from transformers.pipelines import check_task, get_supported_tasks
assert check_task("visual-question-answering")[1]["impl"].__module__ == "albef_hf.pipeline_albef"
"""
CASES = {
    "Auto classes after the package": f"import albef_hf{AUTO_CLASSES}",
    "Auto classes before the package": f"from transformers import AutoModel\nimport albef_hf{AUTO_CLASSES}",
    "pipelines after the package": f"import albef_hf{PIPELINES}",
    "pipelines before the package": f"from transformers import pipeline\nimport albef_hf{PIPELINES}",
    "a configuration from its module": """
from albef_hf.configuration_albef import AlbefConfig
config = AlbefConfig.from_pretrained(folder)
from transformers import AutoModel
assert type(AutoModel.from_config(config)).__module__ == "albef_hf.modeling_albef"
""",
    "a head from its module": """
from albef_hf.modeling_albef import AlbefForRetrieval
import transformers
config = AlbefForRetrieval.from_pretrained(folder).config
assert type(transformers.AutoModelForPreTraining.from_config(config)).__name__ == "AlbefForPreTraining"
""",
    "threads": """
import albef_hf
from concurrent.futures import ThreadPoolExecutor
from transformers import AutoConfig
with ThreadPoolExecutor(4) as pool:
    configs = list(pool.map(AutoConfig.from_pretrained, [folder] * 8))
assert {type(config).__module__ for config in configs} == {"albef_hf.configuration_albef"}
""",
    "other models": """
import albef_hf, sys
from transformers import AutoConfig, BertConfig
assert type(AutoConfig.for_model("bert")) is BertConfig
assert "albef_hf.modeling_albef" not in sys.modules
""",
}


LAZY = """
import albef_hf, sys
assert albef_hf.__version__ and "AlbefModel" in dir(albef_hf)
assert not {"torch", "transformers", "numpy"} & set(sys.modules)
"""

# Fork a process for each case; most of what transformers imports has been imported before.
FORKS = """
import accelerate, json, os, sys, torch._dynamo, torch.export, traceback

assert not {"albef_hf", "transformers"} & set(sys.modules)
folder, cases = json.load(sys.stdin)
codes = {}
for name, script in cases.items():
    child = os.fork()
    if child == 0:
        try:
            exec(script, {"folder": folder})
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    codes[name] = os.waitpid(child, 0)[1]
print(json.dumps(codes))
"""
ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> tuple[dict[str, int], str]:
    """Return the exit code of each case, and what all of them have reported."""
    folder = str(tmp_path_factory.mktemp("model"))
    AlbefForRetrieval(AlbefConfig(**TINY_MODEL)).save_pretrained(folder)
    AlbefProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), embedded_tokenizer()).save_pretrained(
        folder
    )
    run = subprocess.run(
        [sys.executable, "-c", FORKS],
        input=json.dumps([folder, CASES]),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1]), run.stderr


@pytest.mark.parametrize("case", CASES)
def test_transformers_knows_the_package(case, outcomes):
    codes, errors = outcomes
    assert codes[case] == 0, errors[-3000:]


def test_the_package_imports_no_library():
    run = subprocess.run([sys.executable, "-c", LAZY], env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]


def test_public_names_are_imported_when_they_are_used():
    for name in albef_hf.__all__:
        assert getattr(albef_hf, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'albef_hf' has no attribute 'Absent'"):
        albef_hf.Absent  # noqa: B018
