"""Documents agree with the code: examples in docstrings, commands and their options, files and links."""

import contextlib
import doctest
import functools
import importlib
import io
import re
import shlex
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from paths import REPOSITORY

import albef_hf.data
from albef_hf import cli
from albef_hf.evaluation import evaluate as evaluation
from albef_hf.tasks import PRETRAINING, evaluation_names, find_arguments, task_names
from albef_hf.utils.command_line import RECIPES, recipe_names

MARKDOWN = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "demo/README.md")),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    *sorted((REPOSITORY / "benchmarks").rglob("*.md")),
]
COMMENTED = sorted((REPOSITORY / "train").rglob("*.yaml")) + sorted((REPOSITORY / "train").rglob("*.sbatch"))
# What launches a command, and the command.
LAUNCHED = {
    r"albef\s": "",
    r"\S*bin/albef\s": "",
    r"\S+ .*-m albef_hf\s": "",
    r"python benchmarks/photographs/albef\.py\s": "",
    r"\S+ .*train/(pretrain|finetune|evaluate)\.py\b": r"\1 ",
    r"\S+ .*train/prepare_shards\.py\b": "shards ",
    r"sbatch train/slurm/pretrain\.sbatch\b": "pretrain ",
}
WITH_TASK = ("finetune", "evaluate")
MARKDOWN += [REPOSITORY / "AGENTS.md", REPOSITORY / "examples/README.md"]


def id_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def code_of(path: Path) -> list[str]:
    """Return the lines of shell blocks and the code spans of a document, or the comments of another file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".md":
        lines = re.findall(r"^# ?(.*)$", text, re.MULTILINE)
        return [line.strip() for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines()]
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    spans = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [part for line in lines for part in line.split(" && ")] + [" ".join(span.split()) for span in spans]


def albef_commands(path: Path) -> list[list[str]]:
    """Return the command lines of `albef` in a document, each as words without the program's name."""
    commands = []
    for line in code_of(path):
        for launcher, command in LAUNCHED.items():
            match = re.match(launcher, line)
            if match:
                line = re.sub(r"\$\(.*\)", "", line)  # what the shell inserts
                commands.append(shlex.split(match.expand(command) + line[match.end() :], comments=True))
                break
    return [words for words in commands if words]


def complete_commands() -> list[list[str]]:
    """Return the command lines of trainings and evaluations in blocks of README and site, without those of a part."""
    lines = [line for path in MARKDOWN for line in albef_commands(path) if "benchmarks" not in path.parts]
    given = [words for words in lines if words[0] in ("pretrain", *WITH_TASK) and len(words) > 2]
    return [words for words in given if not {"...", "TASK", "my.yaml"} & {*words}]


@functools.cache
def help_of(*words: str) -> str:
    """Return what `albef WORDS --help` prints."""
    printed = io.StringIO()
    with pytest.raises(SystemExit) as ended, contextlib.redirect_stdout(printed):
        cli.COMMANDS[words[0]]([*words[1:], "--help"])
    assert not ended.value.code
    return printed.getvalue()


def options_in(text: str) -> set[str]:
    """Return the options that the text of a `--help` lists."""
    lines = re.findall(r"^ +(-.*?)(?: {2,}|$)", text, re.MULTILINE)
    return {option for line in lines for option in re.findall(r"(?<![\w-])--[\w-]+", line)}


def subcommands(words: list[str]) -> list[str]:
    """Return the words of a command line that name what is run: the command, and its task or subcommand."""
    if words[0] in WITH_TASK:
        return [words[0], "retrieval" if words[1] == "TASK" else words[1]]
    return words[:2] if words[0] == "index" and len(words) > 1 else words[:1]


@functools.cache
def known_options() -> set[str]:
    """Return the options of all commands, of the scripts in `benchmarks`, and of `accelerate launch`."""
    commands = [[name] for name in cli.COMMANDS if name not in WITH_TASK]
    commands += [["finetune", task] for task in task_names()] + [["evaluate", task] for task in evaluation_names()]
    commands += [["index", name] for name in ("build", "add", "remove", "info")]
    options = set().union(*(options_in(help_of(*words)) for words in commands))
    for script in (REPOSITORY / "benchmarks").rglob("*.py"):
        options |= set(re.findall(r'add_argument\(\s*"(--\w+)"', script.read_text(encoding="utf-8")))
    return options | {option for action in launch_command_parser()._actions for option in action.option_strings}


@pytest.mark.parametrize("name", ["configuration_albef", "modeling_albef", "processing_albef", "data.scenes"])
def test_examples_of(name):
    failed, tried = doctest.testmod(importlib.import_module(f"albef_hf.{name}"))
    assert tried and not failed


def test_the_page_of_recipes_has_their_commands():
    page = albef_commands(REPOSITORY / "docs" / "guides" / "recipes.md")
    commands = [words for path in RECIPES.glob("*/*.yaml") for words in albef_commands(path)]
    assert len(commands) == 2 * len([*RECIPES.glob("*/*.yaml")])
    assert [words for words in commands if words not in page] == []


@pytest.mark.parametrize("path", [*MARKDOWN, *COMMENTED, REPOSITORY / "Makefile"], ids=id_of)
def test_every_command_exists_with_its_options(path):
    for words in albef_commands(path):
        assert words[0] in cli.COMMANDS, words
        if words[1:] in ([], ["..."], ["TASK"]):
            continue
        named = subcommands(words)
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert options <= options_in(help_of(*named)) | {"--help"}, words


def test_every_command_line_is_accepted(monkeypatch):
    parsed = []
    monkeypatch.setattr(cli, "_train", lambda name, args: parsed.append(name))
    monkeypatch.setattr(evaluation, "evaluate", lambda task, args: parsed.append(task))
    lines = complete_commands()
    for words in lines:
        cli.COMMANDS[words[0]](words[1:])
    assert len(parsed) == len(lines) > 40


def test_the_reference_has_every_public_name():
    pages = "".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "docs/api").glob("*.md"))
    described = set(re.findall(r"\.\. auto\w+:: ([\w.]+)$", pages, re.MULTILINE))
    assert {f"albef_hf.{name}" for name in albef_hf.__all__} <= described
    assert {f"albef_hf.data.{name}" for name in albef_hf.data.__all__} <= described
    kinds = {kind.__name__ for kind in map(find_arguments, evaluation_names())}
    assert kinds <= set(re.findall(r"\{options\} [\w.]+\.(\w+)$", pages, re.MULTILINE))


@pytest.mark.parametrize("path", [*MARKDOWN, *COMMENTED], ids=id_of)
def test_every_recipe_that_a_command_names_exists(path):
    for words in albef_commands(path):
        if "--config" not in words:
            continue
        recipe = words[words.index("--config") + 1]
        folder = subcommands(words)[1] if words[0] in WITH_TASK else PRETRAINING
        assert recipe.endswith(".yaml") or recipe in recipe_names(folder), words


@pytest.mark.parametrize("path", MARKDOWN, ids=id_of)
def test_every_option_in_the_text_exists(path):
    options = {code.split("=")[0].split()[0] for code in code_of(path) if re.match(r"--\w", code)}
    assert options <= known_options()


def test_the_documents_show_every_command():
    shown = {words[0] for path in MARKDOWN for words in albef_commands(path)}
    assert shown == cli.COMMANDS.keys()


def headings_of(path: Path) -> set[str]:
    """Return the anchors that GitHub and myst give to the headings of a document."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", ["README.md", "docs/architecture.md"])
def test_trees_are_that_of_the_repository(name):
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    tree = re.search(r"```\n(albef_hf/.*?)```", text, re.DOTALL)[1]
    listed, parent = set(), REPOSITORY
    for indent, entry in re.findall(r"^( *)([\w/]+/|\w+\.py)", tree, re.MULTILINE):
        if not indent:
            parent = REPOSITORY / entry
        listed.add(parent / entry if indent else parent)
    assert [path for path in listed if not path.exists()] == []
    package = REPOSITORY / "albef_hf"
    folders = {path.parent for path in package.glob("*/__init__.py")} | {package / "recipes"}
    assert folders <= listed
    assert name == "README.md" or {*package.glob("*_albef.py")} <= listed


@pytest.mark.parametrize("path", MARKDOWN, ids=id_of)
def test_links_and_files_exist(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        assert not anchor or anchor in headings_of(target), link
    for code in code_of(path):
        if re.fullmatch(r"(albef_hf|benchmarks|demo|docs|examples|tests|train)/[\w./-]*\w/?", code):
            assert (REPOSITORY / code).exists(), code
