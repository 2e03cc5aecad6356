"""The command `albef` and the scripts in `train`."""

import os
import signal
import subprocess
import sys

import pytest
from paths import REPOSITORY
from small_pretraining import small_run

from albef_hf import cli


def test_accelerate_launch_runs_it_and_an_error_is_one_line(tmp_path):
    script = REPOSITORY / "train" / "pretrain.py"
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", str(script)]
    command += small_run(tmp_path / "out", 4)
    environment = {name: value for name, value in os.environ.items() if name != "ALBEF_TRACEBACK"}
    command += ["--train_files", "absent.json"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode != 0
    assert "error: absent.json cannot be read" in run.stderr


@pytest.mark.parametrize("name", ["pretrain", "finetune", "evaluate", "prepare_shards"])
def test_scripts_run_their_command(name, tmp_path):
    """Though the folder of the scripts, which python searches first, has an `evaluate` of its own."""
    arguments = ["vqa"] if name in ("finetune", "evaluate") else []
    command = [sys.executable, str(REPOSITORY / "train" / f"{name}.py"), *arguments, "--help"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    shown = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert shown.returncode == 0, shown.stderr[-3000:]
    assert f"usage: albef {name.removeprefix('prepare_')}" in shown.stdout


# Print the help of every command, and end with an error that names the first one that imports a slow library.
HELP = """
import contextlib, sys
from albef_hf import cli
from albef_hf.tasks import evaluation_names, task_names

tasks = [["finetune", task] for task in task_names()] + [["evaluate", task] for task in evaluation_names()]
for arguments in tasks + [[command] for command in cli.COMMANDS]:
    with contextlib.suppress(SystemExit):
        cli.main([*arguments, "--help"])
    slow = {"faiss", "gradio", "huggingface_hub", "numpy", "PIL", "torch", "transformers"} & set(sys.modules)
    if slow:
        sys.exit(f"albef {' '.join(arguments)} --help imports {slow}")
"""


def test_help_imports_no_slow_library():
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    shown = subprocess.run([sys.executable, "-c", HELP], env=environment, capture_output=True, text=True, timeout=300)
    assert shown.returncode == 0, shown.stderr[-3000:]
    for command in cli.COMMANDS:
        assert f"usage: albef {command}" in shown.stdout


def test_help_lists_the_commands(run, capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    printed = capsys.readouterr().out
    for name, command in cli.COMMANDS.items():
        assert f"  {name:9} {command.__doc__}" in printed


@pytest.mark.parametrize("command", ["finetune", "evaluate"])
def test_an_unknown_task_is_refused_with_the_known_ones(run, command, capsys):
    with pytest.raises(SystemExit):
        run(command, "translation")
    assert "choose from" in (error := capsys.readouterr().err) and "vqa" in error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ModuleNotFoundError("No module named 'faiss'", name="faiss"), 'pip install "albef_hf[search]"'),
        (ModuleNotFoundError("...", name="datasets.distributed"), 'pip install "albef_hf[train]"'),
        (ModuleNotFoundError("...", name="onnxscript"), 'pip install "albef_hf[export]"'),
        (ValueError("https://me:secret@host/x cannot be read"), "error: https://***@host/x cannot be read"),
        (OSError("the disk is full"), "error: the disk is full"),
    ],
)
def test_expected_errors_are_one_line(error, message, run, monkeypatch):
    def fail(arguments):
        raise error

    monkeypatch.setitem(cli.COMMANDS, "card", fail)
    monkeypatch.delenv(cli.TRACEBACK)
    with pytest.raises(SystemExit) as ended:
        run("card")
    assert message in ended.value.code
    monkeypatch.setenv(cli.TRACEBACK, "1")
    with pytest.raises(type(error)):
        run("card")


def test_ctrl_c_is_a_line_and_ends_the_program_as_a_shell_expects():
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job ignores it
    code += "from albef_hf import cli; cli.COMMANDS['card'] = lambda arguments: [print(flush=True), input()]\n"
    code += "cli.main(['card'])"
    environment = {name: value for name, value in os.environ.items() if name != "ALBEF_TRACEBACK"}
    environment["PYTHONPATH"] = str(REPOSITORY)
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as program:
        program.stdout.readline()
        program.send_signal(signal.SIGINT)
        assert program.communicate(timeout=60)[1] == "interrupted\n"
    assert program.returncode == -signal.SIGINT


def test_errors_of_the_program_keep_their_traceback(run, monkeypatch):
    monkeypatch.delenv(cli.TRACEBACK)
    for error in (ModuleNotFoundError("No module named 'own'", name="own"), TypeError("a bug")):
        monkeypatch.setitem(cli.COMMANDS, "card", lambda arguments, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(type(error)):
            run("card")
