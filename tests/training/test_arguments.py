"""Options: defaults, checks, recipes and error messages."""

import re
import shlex
from dataclasses import fields

import pytest
import yaml

from albef_hf import AlbefConfig, cli
from albef_hf.tasks import evaluation_names, find_arguments, find_task, task_names
from albef_hf.training.arguments import DataArguments, PretrainingArguments
from albef_hf.training.model_setup import parse_model_config, read_model_config, with_dropout
from albef_hf.utils.command_line import RECIPES, parse_arguments, recipe_names, save_arguments
from albef_hf.utils.renamed_options import RENAMED_OPTIONS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lerning_rate", "1"], "did you mean --learning_rate?"),
        (["--per_device_train_batch-sise=4"], "did you mean --per_device_train_batch_size?"),
        (["--per_device_train_batch_size", "1"], "use at least 2"),
        (["--per_device_train_batch_size", "many"], "invalid int value: 'many'"),
        (["--alpha", "1.5"], "must be between 0 and 1"),
        (["--hardness_strength", "1.5"], "must be between 0 and 1"),
        (["--hardness_strength", "nan"], "must be between 0 and 1"),
        (["--itm_contrast_weight", "-1"], "itm_contrast_weight is -1.0; it must be at least 0"),
        (["--freeze", "itm_head"], "choose from image_encoder, text_encoder, contrastive_head"),
        (["--itm_negatives", "0"], "itm_negatives is 0; it must be at least 1"),
        (["--itm_negatives", "4", "--per_device_train_batch_size", "4"], "needs more pairs"),
        (["--mixed_precision", "int4"], "choose no, bf16 or fp16"),
        (
            ["--config", "absent.yaml"],
            "nor a recipe of this package: photographs, photographs_efficientnet, photographs_minilm, scenes",
        ),
        (["--mlm_probability", "2"], "must be between 0 and 1"),
        (["--max_words", "0"], "at least 1"),
        (["--model", "a", "--text_model", "b"], "remove text_model"),
        (["--train_files", "a", "--dataset", "b"], "choose one"),
        (["--shards", "a", "--dataset", "b"], "choose one"),
        (["--data_files", "a.json"], "data_files has no effect, since dataset is not set"),
        (["--dataset_config", "a"], "dataset_config has no effect"),
        (["--train_files", "a", "--caption_column", "text"], "caption_column has no effect"),
        (["--train_files", "a", "--image_column", "photo"], "image_column has no effect"),
        (["--shards", "a", "--streaming"], "streaming has no effect"),
        (["stray"], "belongs to no option"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_invalid_options_are_errors_with_a_remedy(run, arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("pretrain", *arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_yaml_is_checked_like_the_command_line_which_takes_precedence(run, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "learning_rate: 1e-3\nper_device_train_batch_size: 16\nteacher_dropout: false\n"
        "model_config: {projection_dim: 8}\n"
    )
    options = parse_arguments(
        PretrainingArguments, "", ["--config", str(recipe), "--per_device_train_batch_size", "4"]
    )
    assert (options.learning_rate, options.per_device_train_batch_size, options.teacher_dropout) == (1e-3, 4, False)
    assert read_model_config(options.model_config) == {"projection_dim": 8}
    save_arguments(options, tmp_path / "saved.yaml")
    assert parse_arguments(PretrainingArguments, "", ["--config", str(tmp_path / "saved.yaml")]) == options

    recipe.write_text("mixed_precision: no\nalpha_ramp_steps: -1\ntrain_files: [a.json, b.json]\n")
    options = parse_arguments(PretrainingArguments, "", ["--config", str(recipe)])
    assert (options.mixed_precision, options.train_files) == ("no", ["a.json", "b.json"])

    recipe.write_text("lerning_rate: 1e-3\n")
    with pytest.raises(SystemExit):
        run("pretrain", "--config", recipe)
    assert "did you mean --learning_rate?" in capsys.readouterr().err


def test_defaults_are_those_of_the_paper():
    options = PretrainingArguments()
    assert (options.per_device_train_batch_size, options.num_train_epochs, options.warmup_steps) == (64, 30, 1000)
    assert (options.learning_rate, options.min_learning_rate, options.weight_decay) == (1e-4, 1e-5, 0.02)
    assert (options.alpha, options.momentum, options.queue_size) == (0.4, 0.995, 65536)
    assert (options.mlm_probability, options.max_words, options.max_tokens, options.min_crop_scale) == (
        0.15,
        30,
        25,
        0.2,
    )


def test_help_lists_the_options(run, capsys):
    with pytest.raises(SystemExit):
        run("pretrain", "--help")
    text = capsys.readouterr().out
    for name in ("--learning_rate", "--queue_size", "--config", "--train_files"):
        assert name in text
    assert "temperature" not in text and "weight of the teacher in the targets" in " ".join(text.split())


ARGUMENTS = [find_task(name).arguments_class for name in ("pretraining", *evaluation_names())]


def test_the_options_of_a_task_are_found_without_the_task():
    assert [find_arguments(name) for name in evaluation_names()] == ARGUMENTS[1:]


@pytest.mark.parametrize(("former", "name"), RENAMED_OPTIONS.items())
def test_a_renamed_option_is_refused_with_its_present_name(capsys, former, name):
    kind = find_task("retrieval").arguments_class
    assert name in {option.name for option in fields(kind)}
    with pytest.raises(SystemExit):
        parse_arguments(kind, "", ["--model", "m", f"--{former}", "1"])
    assert f"--{former} was renamed to --{name}" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ARGUMENTS, ids=lambda kind: kind.__name__)
def test_every_option_has_help(capsys, kind):
    """Also those of which a subclass overrides the default."""
    with pytest.raises(SystemExit):
        parse_arguments(kind, "", ["--help"])
    printed = " ".join(capsys.readouterr().out.split())
    general = {option.name: option.metadata["help"] for option in fields(DataArguments)}
    for option in fields(kind):
        assert option.metadata["help"] == general.get(option.name, option.metadata["help"])
        assert f"--{option.name}" in printed


def test_options_without_effect_are_refused_and_ignored_in_a_file(tmp_path, capsys):
    unused = {"learning_rate", "teacher_dropout"}
    for given in (["--learning_rate", "1"], ["--learning-rate=1"], ["--no_teacher_dropout"]):
        with pytest.raises(SystemExit):
            parse_arguments(PretrainingArguments, "", given, unused=unused)
        assert "has no effect in this command; remove it" in capsys.readouterr().err
    (tmp_path / "run.yaml").write_text("learning_rate: 1")
    parse_arguments(PretrainingArguments, "", ["--config", str(tmp_path / "run.yaml")], unused=unused)


# Recipes


EVERY_RECIPE = pytest.mark.parametrize(
    "recipe", sorted(RECIPES.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)


@EVERY_RECIPE
def test_a_recipe_is_found_by_name_and_contains_what_differs_from_the_defaults(recipe):
    folder = recipe.parent.name
    assert recipe.stem in recipe_names(folder)
    task = find_task(folder)
    settings = yaml.safe_load(recipe.read_text())
    start = [] if folder == "pretraining" or {"model", "model_config"} & {*settings} else ["--model", "m"]
    args = parse_arguments(task.arguments_class, "", ["--config", recipe.stem, *start], recipes=folder)
    defaults = {option.name: option.default for option in fields(args)}
    assert [name for name in settings if getattr(args, name) == defaults[name]] == []
    if folder != "pretraining" and args.model_config:
        if args.model:
            with_dropout(AlbefConfig(), parse_model_config(args.model_config))
        else:
            task.load_model(args)


@EVERY_RECIPE
def test_a_recipe_begins_with_its_commands(recipe, monkeypatch):
    """One trains with it, and another evaluates the model on other rows."""
    parsed = {}
    monkeypatch.setattr(cli, "_train", lambda name, args: parsed.update(trained=(name, args)))
    monkeypatch.setattr("albef_hf.evaluation.arguments._rerank_k_of_training", lambda args: None)  # no model is there
    monkeypatch.setattr("albef_hf.evaluation.evaluate.evaluate", lambda task, args: parsed.update(evaluated=args))
    comment = re.match(r"(#.*\n)+", recipe.read_text())[0]
    for line in re.findall(r"^#   (?:albef|accelerate .* -m albef_hf) (.*)$", re.sub(r"\\\n# *", "", comment), re.M):
        words = shlex.split(line)
        cli.COMMANDS[words[0]](words[1:])
        assert recipe.stem in words or words[0] == "evaluate"
    name, trained = parsed["trained"]
    evaluated = parsed["evaluated"]
    assert (name, trained.output_dir) == (recipe.parent.name, evaluated.model)
    assert (evaluated.validation_files, evaluated.seed) != (trained.validation_files, trained.seed)


def test_every_task_has_recipes():
    assert {path.name for path in RECIPES.iterdir()} == {"pretraining", *task_names()}
    assert all(recipe_names(name) for name in ("pretraining", *task_names()))
