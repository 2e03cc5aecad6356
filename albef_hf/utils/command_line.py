"""Options of a command: one dataclass, read from the command line and a YAML file."""

import argparse
import dataclasses
import importlib.util
import json
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import yaml

from .redaction import redact
from .spelling import closest

Arguments = TypeVar("Arguments")
RECIPES = Path(__file__).parents[1] / "recipes"


def parse_arguments(
    kind: type[Arguments],
    description: str,
    arguments: list[str],
    *,
    prog: str | None = None,
    recipes: str | None = None,
    unused: Collection[str] = (),
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> Arguments:
    """Read options; the command line takes precedence over the YAML file given by `--config`.

    A misspelled option ends the program with an error that names the closest one.

    Args:
        kind: A dataclass whose fields have a `help` in their metadata, or inherit it from the field they override.
        description: First lines of `--help`.
        arguments: The command line without the program's name.
        prog: The program's name in `--help`; by default the name of the script.
        recipes: Folder below `albef_hf/recipes` in which `--config` finds recipes by name; None if there are none.
        unused: Options that have no effect in this command; refused on the command line, ignored in a recipe.
        defaults: Defaults of this command that differ from those of the class.
    """
    config_parser = argparse.ArgumentParser(add_help=False)
    names = f", or the name of a recipe of this package ({', '.join(recipe_names(recipes))})" if recipes else ""
    config_parser.add_argument("--config", help=f"YAML file of options{names}; the command line takes precedence")
    _inherit_help(kind)
    usage = "%(prog)s [--config FILE_OR_RECIPE] [--OPTION VALUE ...]"
    parser = _parser_class()(
        kind, prog=prog, usage=usage, description=description, parents=[config_parser], allow_abbrev=False
    )
    parser.set_defaults(**defaults)
    for action in parser._actions:
        if action.dest in unused:
            action.help = argparse.SUPPRESS
    known, arguments = config_parser.parse_known_args(arguments)
    try:
        _refuse_unused(arguments, unused)
        recipe = _yaml_arguments(_find_recipe(known.config, recipes), kind) if known.config else []
        values, unknown = parser.parse_known_args(recipe + arguments)
        if unknown:
            parser.error(_explain_unknown(unknown, kind))
        return kind(**{entry.name: getattr(values, entry.name) for entry in dataclasses.fields(kind)})
    except ValueError as error:
        parser.error(str(error))


def _parser_class() -> type:
    """Return transformers' `HfArgumentParser`.

    Its file needs only the standard library and YAML; it is loaded by itself, since importing transformers takes
    longer than `--help` should.
    """
    found = importlib.util.find_spec("transformers")
    places = found.submodule_search_locations if found else None
    path = Path(places[0]) / "hf_argparser.py" if places else None
    if "transformers" in sys.modules or path is None or not path.exists():
        from transformers import HfArgumentParser

        return HfArgumentParser
    spec = importlib.util.spec_from_file_location(f"{__package__}._hf_argparser", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where it looks up the types of a dataclass
    spec.loader.exec_module(module)
    return module.HfArgumentParser


def recipe_names(folder: str) -> list[str]:
    """Return the names of the recipes of a command, such as `scenes`."""
    return sorted(path.stem for path in (RECIPES / folder).glob("*.yaml"))


def save_arguments(arguments: Any, path: Path) -> None:
    """Write options as YAML that `--config` reads, without the passwords and tokens of addresses."""
    path.write_text(yaml.safe_dump(redact(dataclasses.asdict(arguments)), sort_keys=False), encoding="utf-8")


def _inherit_help(kind: type) -> None:
    """Give a field that overrides a default the help of the field it overrides."""
    for entry in dataclasses.fields(kind):
        if "help" not in entry.metadata:
            inherited = (base.__dataclass_fields__.get(entry.name) for base in kind.__mro__ if _is_dataclass(base))
            entry.metadata = next((base.metadata for base in inherited if base and "help" in base.metadata), {})


def _is_dataclass(kind: type) -> bool:
    return "__dataclass_fields__" in vars(kind)


def _refuse_unused(arguments: list[str], unused: Collection[str]) -> None:
    for argument in arguments:
        name = _option_name(argument)
        if argument.startswith("--") and {name, name.removeprefix("no_")} & {*unused}:
            raise ValueError(f"--{name} has no effect in this command; remove it.")


def _find_recipe(config: str, folder: str | None) -> Path:
    """Return the path of a YAML file, or of a recipe of that name."""
    if folder is None or Path(config).is_file():
        return Path(config)
    recipe = RECIPES / folder / f"{config.removesuffix('.yaml')}.yaml"
    if recipe.is_file():
        return recipe
    raise ValueError(
        f"--config {config} is neither a file nor a recipe of this package: {', '.join(recipe_names(folder))}."
    )


def _yaml_arguments(path: Path, kind: type) -> list[str]:
    """Return the content of a YAML file as a command line, so that the same parser checks both."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"--config {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"--config {path} must contain lines of `option: value`.")
    if "config" in content:
        raise ValueError(f"--config {path} names another config; a recipe cannot include another one.")
    texts = {entry.name for entry in dataclasses.fields(kind) if entry.type in (str, "str")}
    arguments = []
    for name, value in content.items():
        if value is None or value == []:
            continue
        if name in texts and value is False:
            value = "no"  # which YAML reads as a boolean
        values = value if isinstance(value, list) else [value]
        arguments += [f"--{name}", *(json.dumps(v) if isinstance(v, (dict, bool)) else str(v) for v in values)]
    return arguments


def _option_name(argument: str) -> str:
    return re.sub(r"=.*", "", argument).lstrip("-").replace("-", "_")


def _explain_unknown(arguments: list[str], kind: type) -> str:
    names = [_option_name(argument) for argument in arguments if argument.startswith("-")]
    present = getattr(kind, "RENAMED", {})
    renamed = [f"--{name} was renamed to --{present[name]}" for name in names if name in present]
    if renamed:
        return "; ".join(renamed)
    argument = arguments[0]
    if not argument.startswith("-"):
        return f"{argument} belongs to no option"
    name = _option_name(argument)
    hint = closest(name, [entry.name for entry in dataclasses.fields(kind)])
    return f"there is no option {argument}{hint.replace('mean ', 'mean --') or '; --help lists all of them'}"
