"""The rules of the house: which file may import which, and how long a function may be."""

import ast
import graphlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports

PACKAGE = Path(__file__).parents[1] / "albef_hf"
TRAIN, DEMO, BENCHMARKS = (PACKAGE.parent / name for name in ("train", "demo", "benchmarks"))
HUB_FILES = (
    "compatibility_albef",
    "calibration_albef",
    "configuration_albef",
    "outputs_albef",
    "losses_albef",
    "shared_inputs_albef",
    "masks_albef",
    "encoders_albef",
    "head_layers_albef",
    "answers_albef",
    "image_encoder_albef",
    "initialization_albef",
    "matching_albef",
    "unimodal_albef",
    "captioning_albef",
    "classification_albef",
    "modeling_albef",
    "images_albef",
    "processing_albef",
    "heatmaps_albef",
    "retrieval_albef",
    "zero_shot_albef",
    "pipeline_albef",
    "sentence_albef",
)
FILES = sorted(file for folder in (PACKAGE, TRAIN, DEMO, BENCHMARKS) for file in folder.rglob("*.py"))

# What each file may import of the package, by the first part of its name; `data` stands for its whole folder.
ALLOWED = {
    "compatibility_albef": set(),
    "calibration_albef": set(),
    "configuration_albef": {"calibration_albef", "compatibility_albef"},
    "outputs_albef": set(),
    "losses_albef": {"configuration_albef"},
    "shared_inputs_albef": set(),
    "masks_albef": {"compatibility_albef", "shared_inputs_albef"},
    "encoders_albef": {"compatibility_albef", "configuration_albef", "masks_albef", "shared_inputs_albef"},
    "head_layers_albef": {"configuration_albef", "encoders_albef", "losses_albef", "outputs_albef"},
    "answers_albef": {"configuration_albef", "losses_albef"},
    "image_encoder_albef": {"configuration_albef", "encoders_albef"},
    "initialization_albef": {"compatibility_albef", "configuration_albef", "encoders_albef"},
    "matching_albef": {"calibration_albef", "encoders_albef", "head_layers_albef", "losses_albef", "outputs_albef"},
    "unimodal_albef": {
        "configuration_albef",
        "encoders_albef",
        "image_encoder_albef",
        "initialization_albef",
        "outputs_albef",
    },
    "classification_albef": {
        "configuration_albef",
        "encoders_albef",
        "head_layers_albef",
        "losses_albef",
        "outputs_albef",
    },
    "captioning_albef": {
        "compatibility_albef",
        "configuration_albef",
        "encoders_albef",
        "head_layers_albef",
        "losses_albef",
        "masks_albef",
        "outputs_albef",
        "unimodal_albef",
    },
    "modeling_albef": {
        "answers_albef",
        "calibration_albef",
        "captioning_albef",
        "classification_albef",
        "compatibility_albef",
        "configuration_albef",
        "encoders_albef",
        "head_layers_albef",
        "images_albef",
        "initialization_albef",
        "losses_albef",
        "matching_albef",
        "outputs_albef",
        "unimodal_albef",
    },
    "images_albef": set(),
    "processing_albef": {"images_albef"},
    "retrieval_albef": {"calibration_albef", "compatibility_albef", "processing_albef"},
    "zero_shot_albef": {"calibration_albef", "processing_albef", "retrieval_albef"},
    "heatmaps_albef": {"compatibility_albef", "processing_albef"},
    "pipeline_albef": {
        "calibration_albef",
        "compatibility_albef",
        "configuration_albef",
        "heatmaps_albef",
        "images_albef",
        "processing_albef",
        "retrieval_albef",
        "zero_shot_albef",
    },
    "sentence_albef": {"calibration_albef", "configuration_albef"},
    "registration": {
        "configuration_albef",
        "encoders_albef",
        "modeling_albef",
        "pipeline_albef",
        "processing_albef",
    },
    "utils": {"utils"},
    "momentum": {"compatibility_albef", "losses_albef", "modeling_albef", "outputs_albef", "utils"},
    "metrics": {"metrics"},
    "model_card": {"compatibility_albef", "utils"},
    "data": {"compatibility_albef", "configuration_albef", "data", "images_albef", "processing_albef", "utils"},
    "evaluation": {
        "calibration_albef",
        "configuration_albef",
        "data",
        "evaluation",
        "model_card",
        "momentum",
        "processing_albef",
        "retrieval_albef",
        "sentence_albef",
        "training",
        "utils",
        "zero_shot_albef",
    },
    "conversion": {
        "compatibility_albef",
        "configuration_albef",
        "conversion",
        "data",
        "encoders_albef",
        "losses_albef",
        "model_card",
        "modeling_albef",
        "momentum",
        "processing_albef",
        "utils",
    },
    "export": {
        "compatibility_albef",
        "configuration_albef",
        "export",
        "modeling_albef",
        "processing_albef",
        "training",
        "utils",
    },
    "demo": {
        "calibration_albef",
        "data",
        "demo",
        "heatmaps_albef",
        "images_albef",
        "pipeline_albef",
        "processing_albef",
        "search",
    },
    "search": {
        "calibration_albef",
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
        "image_encoder_albef",
        "compatibility_albef",
        "configuration_albef",
        "data",
        "encoders_albef",
        "losses_albef",
        "matching_albef",
        "model_card",
        "modeling_albef",
        "momentum",
        "outputs_albef",
        "processing_albef",
        "training",
        "utils",
    },
    "tasks": {
        "calibration_albef",
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
        "zero_shot_albef",
    },
    "cli": {
        "conversion",
        "data",
        "demo",
        "evaluation",
        "export",
        "model_card",
        "search",
        "tasks",
        "training",
        "utils",
    },
    "__main__": {"cli"},
}


def executed_nodes(path: Path) -> Iterator[ast.AST]:
    """Yield the nodes of a file, except those that only type checkers read."""
    nodes: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            nodes += ast.iter_child_nodes(node)


def imports_of(path: Path) -> list[tuple[int, str]]:
    """Return (level, module) of every import statement that is executed."""
    found = []
    for node in executed_nodes(path):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
    return found


def relative_imports_of(path: Path) -> set[str]:
    """The files that transformers' copier takes along: it reads the text, a docstring or what is never run too."""
    return set(re.findall(r"^\s*from\s+\.(\S*)\s+import", path.read_text(encoding="utf-8"), re.MULTILINE))


def shipped_with(name: str) -> set[str]:
    """Return the files that transformers copies when an object of this file is saved."""
    shipped, pending = set(), {name}
    while pending:
        shipped |= pending
        pending = set().union(*(relative_imports_of(PACKAGE / f"{file}.py") for file in pending)) - shipped
    return shipped


def imported_files(path: Path) -> set[Path]:
    """Return the files of the package that a file imports anywhere.

    Of a file that ships to the Hub, imports for type checkers count, too: the Hub copier reads the text.
    """
    files = set()
    is_shipped = path.parent == PACKAGE
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if is_shipped else executed_nodes(path):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            modules = [folder.with_suffix(".py"), folder / "__init__.py"]
            modules += [folder / f"{alias.name}.py" for alias in node.names]
            files |= {module for module in modules if module.exists()}
    return files


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
    """So that its verbosity holds for their warnings; those of libraries are listened to or filtered."""
    libraries = ('"torch._dynamo.convert_frame"', '"transformers.modeling_utils"')
    for name in re.findall(r"getLogger\(([^)]*)\)|get_logger\(([^)]*)\)", path.read_text(encoding="utf-8")):
        assert "".join(name) in ('f"transformers.{__name__}"', *libraries)


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
                "peft",
                *(["sentence_transformers"] if name == "sentence_albef" else []),
            }
            assert not module.startswith("torch.distributed")
    assert relative_imports_of(path) <= set(HUB_FILES)
    assert "peft" not in get_imports(path), "only a model that was saved with adapters needs it"
    assert "sentence_transformers" not in get_imports(path), "only who loads a model with it needs it"


def test_a_saved_model_ships_the_files_that_it_needs():
    assert shipped_with("modeling_albef") == set(HUB_FILES)  # with pipelines, for users without the package
    assert shipped_with("encoders_albef") == {
        "calibration_albef",
        "compatibility_albef",
        "configuration_albef",
        "encoders_albef",
        "masks_albef",
        "shared_inputs_albef",
    }
    assert shipped_with("processing_albef") == {"images_albef", "processing_albef"}


def test_no_imports_are_circular():
    """Also counts imports inside functions, and in files that ship to the Hub those that only type checkers read."""
    files = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]
    graph = {path: imported_files(path) - {path} for path in files}
    assert graph[PACKAGE / "modeling_albef.py"] >= {PACKAGE / "encoders_albef.py", PACKAGE / "pipeline_albef.py"}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError and names the circle


def test_no_folders_are_circular():
    graph = {owner: allowed - {owner} for owner, allowed in ALLOWED.items()}
    list(graphlib.TopologicalSorter(graph).static_order())


MAX_LINES, MAX_FORWARD_LINES = 45, 30  # of a function without its docstring


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE.parent)))
def test_functions_are_short(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            lines = node.end_lineno - node.lineno + 1 - (len(docstring.split("\n")) if docstring else 0)
            limit = MAX_FORWARD_LINES if node.name == "forward" else MAX_LINES
            assert lines <= limit, f"{path.name}:{node.lineno} {node.name} has {lines} lines"


def packed_statements(tree: ast.AST) -> Iterator[str]:
    """Yield what shortens code without making it shorter to read."""
    tuples = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and is_named_tuple(node)}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Tuple)
            and isinstance(node.value, ast.Tuple)
        ):
            if len(node.targets[0].elts) > 2:
                yield f"{node.lineno}: {len(node.targets[0].elts)} assignments in one"
        elif isinstance(node, ast.Call):
            for argument in node.args:
                if isinstance(argument, ast.Starred) and is_packed(argument.value, tuples):
                    yield f"{node.lineno}: {ast.unparse(argument)} hides what is passed"


def is_named_tuple(node: ast.ClassDef) -> bool:
    return any(ast.unparse(base) in ("NamedTuple", "typing.NamedTuple") for base in node.bases)


def is_packed(value: ast.AST, tuples: set[str]) -> bool:
    """Whether a splat is of a tuple made for the call, or of a named tuple."""
    return isinstance(value, ast.Tuple) or (isinstance(value, ast.Call) and ast.unparse(value.func) in tuples)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE.parent)))
def test_nothing_is_packed(path):
    """One assignment a line, of two targets at most; arguments that can be read where they are passed."""
    assert not list(packed_statements(ast.parse(path.read_text(encoding="utf-8"))))


def test_the_package_imports_without_what_only_training_needs():
    for name in ("__init__", *HUB_FILES, "momentum"):
        libraries = {module.split(".")[0] for level, module in imports_of(PACKAGE / f"{name}.py") if not level}
        assert not libraries & {"accelerate", "datasets", "evaluate", "faiss", "yaml", "matplotlib"}
        assert "sentence_transformers" not in libraries or name == "sentence_albef"
