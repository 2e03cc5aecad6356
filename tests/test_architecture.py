"""The rules of the house: which file may import which, and how long a function may be."""

import ast
import re
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "albef_hf"
TRAIN, DEMO, BENCHMARKS = (PACKAGE.parent / name for name in ("train", "demo", "benchmarks"))
HUB_FILES = (
    "compatibility_albef",
    "configuration_albef",
    "modeling_albef",
    "images_albef",
    "processing_albef",
    "heatmaps_albef",
    "retrieval_albef",
    "pipeline_albef",
)
FILES = sorted(file for folder in (PACKAGE, TRAIN, DEMO, BENCHMARKS) for file in folder.rglob("*.py"))

# What each file may import of the package, by the first part of its name; `data` stands for its whole folder.
ALLOWED = {
    "compatibility_albef": set(),
    "configuration_albef": {"compatibility_albef"},
    "modeling_albef": {"compatibility_albef", "configuration_albef"},
    "images_albef": set(),
    "processing_albef": {"images_albef"},
    "retrieval_albef": {"modeling_albef", "processing_albef"},
    "heatmaps_albef": {"modeling_albef"},
    "pipeline_albef": {
        "configuration_albef",
        "heatmaps_albef",
        "images_albef",
        "processing_albef",
        "retrieval_albef",
    },
    "utils": {"utils"},
    "momentum": {"compatibility_albef", "modeling_albef", "utils"},
    "metrics": set(),
    "model_card": {"compatibility_albef", "utils"},
    "data": {"data", "images_albef", "processing_albef", "utils"},
    "evaluation": set(),
    "conversion": {
        "compatibility_albef",
        "configuration_albef",
        "data",
        "model_card",
        "modeling_albef",
        "momentum",
        "processing_albef",
        "utils",
    },
    "search": {
        "compatibility_albef",
        "data",
        "heatmaps_albef",
        "modeling_albef",
        "processing_albef",
        "retrieval_albef",
        "search",
        "utils",
    },
    "training": {
        "compatibility_albef",
        "configuration_albef",
        "data",
        "model_card",
        "modeling_albef",
        "momentum",
        "processing_albef",
        "training",
        "utils",
    },
    "tasks": {
        "configuration_albef",
        "data",
        "evaluation",
        "heatmaps_albef",
        "metrics",
        "modeling_albef",
        "processing_albef",
        "retrieval_albef",
        "tasks",
        "training",
        "utils",
    },
}


def imports_of(path: Path) -> list[tuple[int, str]]:
    """(level, module) of every import statement that is run."""
    found, nodes = [], [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            nodes += ast.iter_child_nodes(node)
    return found


def relative_imports_of(path: Path) -> set[str]:
    """The files that transformers' copier takes along: it reads the text, a docstring or what is never run too."""
    return set(re.findall(r"^\s*from\s+\.(\S*)\s+import", path.read_text(encoding="utf-8"), re.MULTILINE))


def owner_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    if path == PACKAGE / "__init__.py":
        return
    owner, depth = owner_of(path), len(path.relative_to(PACKAGE).parts)
    for level, module in imports_of(path):
        assert level or module.split(".")[0] not in ("albef_hf", "train"), f"{path.name} imports {module}"
        if level:
            inside = owner if level < depth else module.split(".")[0]
            assert inside in ALLOWED[owner], f"{path.name} imports {inside}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_loggers_are_below_that_of_transformers(path):
    """So that its verbosity holds for their warnings."""
    for name in re.findall(r"getLogger\(([^)]*)\)|get_logger\(([^)]*)\)", path.read_text(encoding="utf-8")):
        assert "".join(name) == 'f"transformers.{__name__}"'


@pytest.mark.parametrize("name", HUB_FILES)
def test_what_ships_to_the_hub_is_flat_and_needs_transformers_alone(name):
    path = PACKAGE / f"{name}.py"
    for level, module in imports_of(path):
        if level:
            assert level == 1 and module in HUB_FILES, "the Hub copier follows `from .file import name` alone"
        else:
            library = module.split(".")[0]
            assert library in sys.stdlib_module_names or library in {
                "torch",
                "transformers",
                "tokenizers",
                "huggingface_hub",
                "numpy",
                "PIL",
            }
            assert not module.startswith("torch.distributed")
    assert relative_imports_of(path) <= set(HUB_FILES)


def test_a_model_takes_all_that_ships_to_the_hub_along():
    assert relative_imports_of(PACKAGE / "modeling_albef.py") == set(HUB_FILES) - {"modeling_albef"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_functions_are_short(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            lines = node.end_lineno - node.lineno + 1 - (len(docstring.split("\n")) if docstring else 0)
            limit = 40 if node.name == "forward" else 50
            assert lines <= limit, f"{path.name}: {node.name} has {lines} lines"


def test_the_package_imports_without_what_only_training_needs():
    for name in ("__init__", *HUB_FILES, "momentum"):
        libraries = {module.split(".")[0] for level, module in imports_of(PACKAGE / f"{name}.py") if not level}
        assert not libraries & {"accelerate", "datasets", "evaluate", "faiss", "yaml", "matplotlib"}
