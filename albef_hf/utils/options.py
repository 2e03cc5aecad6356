"""Options of the scripts: one dataclass each, from the command line and a YAML file."""

import argparse
import dataclasses
import difflib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from transformers import HfArgumentParser

Options = TypeVar("Options")


def option(default: Any, description: str) -> Any:
    """A field of an options dataclass; the description is what `--help` says of it."""
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, metadata={"help": description})
    return dataclasses.field(default=default, metadata={"help": description})


def with_defaults(kind: type[Options], **defaults: Any) -> type[Options]:
    """The same options with other defaults, such as the paper's for a task."""
    changed = [
        (entry.name, entry.type, dataclasses.field(default=defaults[entry.name], metadata=entry.metadata))
        for entry in dataclasses.fields(kind)
        if entry.name in defaults
    ]
    return dataclasses.make_dataclass(kind.__name__, changed, bases=(kind,))


def parse_options(kind: type[Options], description: str, arguments: list[str]) -> Options:
    """Read options; the command line wins over the YAML file given by `--config`.

    A mistyped option ends the program with an error that names the nearest right one.

    Args:
        kind: A dataclass whose fields are made by `option`.
        description: First lines of `--help`.
        arguments: The command line without the program's name.
    """
    config_parser = argparse.ArgumentParser(add_help=False)
    config_parser.add_argument("--config", help="YAML file of options; the command line wins over it")
    usage = "%(prog)s [--config FILE.yaml] [--OPTION VALUE ...]"
    parser = HfArgumentParser(kind, usage=usage, description=description, parents=[config_parser], allow_abbrev=False)
    known, arguments = config_parser.parse_known_args(arguments)
    try:
        recipe = _yaml_arguments(known.config, kind) if known.config else []
        values, unknown = parser.parse_known_args(recipe + arguments)
        if unknown:
            parser.error(_nearest_option(unknown[0], kind))
        chosen = {field.name: getattr(values, field.name) for field in dataclasses.fields(kind)}
        return kind(**chosen)
    except ValueError as error:
        parser.error(str(error))


def save_options(options: Any, path: Path) -> None:
    """Write options as YAML that `--config` reads, without the passwords and tokens of addresses."""
    path.write_text(yaml.safe_dump(redact(dataclasses.asdict(options)), sort_keys=False), encoding="utf-8")


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint at the right spelling of a mistyped name, or nothing."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.4)
    return f"; did you mean {close[0]}?" if close else ""


SECRET_NAMES = "token|key|apikey|secret|sig|signature|password|auth|credential"
SECRETS = (  # of addresses, also where a library has normalized them to one slash
    (re.compile(r"(\w{2,}:/+)(?:[^/\s'\"]+|[^/:\s'\"]+:(?!\d+/)[^\s'\"?#]+)@"), r"\1***@"),  # but no host:80/path@x
    (re.compile(rf"([?&;#](?:[^=&;#\s]*[-_.])?(?:{SECRET_NAMES})(?:[-_.][^=&;#\s]*)?=)[^&;#\s'\")]+", re.I), r"\1***"),
    (re.compile(r"\bhf_[A-Za-z0-9]{30,}"), "hf_***"),
)


def redact(value: Any) -> Any:
    """Return a text, or everything in lists and dictionaries, without the passwords and tokens of its addresses."""
    if isinstance(value, str):
        for pattern, replacement in SECRETS:
            value = pattern.sub(replacement, value)
        return value
    if isinstance(value, dict):
        return {name: redact(part) for name, part in value.items()}
    return [redact(part) for part in value] if isinstance(value, list) else value


def _yaml_arguments(path: str, kind: type) -> list[str]:
    """The content of a YAML file as a command line, so that both are checked by the same parser."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"--config {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"--config {path} must hold lines of `option: value`.")
    if "config" in content:
        raise ValueError(f"--config {path} names another config; one recipe cannot include another.")
    texts = {field.name for field in dataclasses.fields(kind) if field.type in (str, "str")}
    arguments = []
    for name, value in content.items():
        if value is None or value == []:
            continue
        if name in texts and value is False:
            value = "no"  # which YAML takes for a boolean
        values = value if isinstance(value, list) else [value]
        arguments += [f"--{name}", *(json.dumps(v) if isinstance(v, (dict, bool)) else str(v) for v in values)]
    return arguments


def _nearest_option(argument: str, kind: type) -> str:
    name = re.sub(r"=.*", "", argument).lstrip("-").replace("-", "_")
    hint = nearest(name, [field.name for field in dataclasses.fields(kind)])
    if not argument.startswith("-"):
        return f"{argument} belongs to no option"
    return f"there is no option {argument}{hint.replace('mean ', 'mean --') or '; --help lists all of them'}"
