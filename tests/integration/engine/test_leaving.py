"""Leaving a program while an answer is written never kills the process: each way out in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jupyter_client.manager import KernelManager
from transformers import PreTrainedTokenizerFast

from tests.conftest import DEMO, tiny_llama

# The model: tiny, for it is loaded by every process, and it never ends by itself.
LANGCHAIN = """
from draftapprox_integrations.langchain import ChatSpecKV
chat = ChatSpecKV(MODEL, max_tokens=50_000)
pieces = (chunk.text for chunk in chat.stream("Tell me a long story."))
"""
LLAMA_INDEX = """
from draftapprox_integrations.llama_index import SpecKVLLM
pieces = (part.delta for part in SpecKVLLM(MODEL, max_tokens=50_000).stream_complete("Tell me a long story."))
"""
ENGINE = """
from draftapprox_integrations import SpecKV
engine = SpecKV(MODEL, "self")
pieces = engine.stream("Once upon a time", max_new_tokens=50_000)
"""
# A background job of a shell inherits an ignored SIGINT; the programs tested here must not.
HEED_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
COMMAND_LINE = HEED_CTRL_C + "from draftapprox_integrations.cli.app import app; app()"
START = 'print("writing", next(piece for piece in pieces if piece), flush=True)\n'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> str:
    """The script's line that names the model."""
    folder = tmp_path_factory.mktemp("model")
    endless = tiny_llama(eos_token_id=None, max_position_embeddings=60_000)
    endless.generation_config.eos_token_id = None
    endless.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return f"MODEL = {str(folder)!r}\n"


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)


def test_breaking_out_of_streams(model: str) -> None:
    done = run(model + LANGCHAIN + START + "first = pieces\n" + LLAMA_INDEX + START)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("writing") == 2


def test_an_exception_while_a_stream_is_open(model: str) -> None:
    done = run(model + LANGCHAIN + START + 'raise SystemExit("the program failed")\n')
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("the program failed")


def test_an_async_call_that_timed_out(model: str) -> None:
    script = (
        model
        + LANGCHAIN
        + (
            "import asyncio\n"
            "chat.load()\n"
            "async def main():\n"
            "    try:\n"
            '        await asyncio.wait_for(chat.ainvoke("Tell me a long story."), 1)\n'
            "    except TimeoutError:\n"
            '        print("timed out")\n'
            "asyncio.run(main())\n"
        )
    )
    done = run(script)
    assert (done.returncode, done.stdout) == (0, "timed out\n"), done.stderr


def test_a_forked_child_leaves_and_the_parent_goes_on(model: str) -> None:
    script = (
        model
        + ENGINE
        + START
        + (
            "import os\n"
            "child = os.fork()\n"
            "if child == 0:\n"
            "    raise SystemExit(7)\n"
            "code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
            'print("child", code, "idle", engine.is_idle, "more", bool(next(pieces)))\n'
        )
    )
    done = run(script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("child 7 idle False more True\n")


# Python ends by SIGINT itself, or with code 1 where a library that it has loaded runs code at exit.
@pytest.mark.parametrize(
    ("signal_number", "exit_codes"), [(signal.SIGINT, (-signal.SIGINT, 1)), (signal.SIGTERM, (-15,))]
)
def test_a_signal_while_an_answer_is_written(
    model: str, signal_number: signal.Signals, exit_codes: tuple[int, ...]
) -> None:
    script = HEED_CTRL_C + model + LANGCHAIN + START + "for piece in pieces: pass\n"
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("writing")
    process.send_signal(signal_number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode in exit_codes, errors
    assert "terminate called" not in errors


@pytest.mark.usefixtures("embedded_model")  # converted once, before the process reads it
def test_ctrl_c_on_the_command_line_is_one_line_and_130() -> None:
    command = [sys.executable, "-c", COMMAND_LINE, "ask", "--docs", DEMO / "docs" / "museum-guide.md", "--top-k", "2"]
    command += ["--max-new-tokens", "400", "Tell me everything about the museum."]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    while "tokens" not in process.stdout.readline():  # what was kept is shown just before the answer is written
        assert process.poll() is None
    time.sleep(0.3)  # into the answer, which takes over a second on a fast machine with nothing else to do
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert errors.rstrip().splitlines()[-1] == "Interrupted."


def test_a_notebook_restarted_while_an_answer_is_written(tmp_path: Path, model: str) -> None:
    errors = tmp_path / "stderr"
    manager = KernelManager()
    with errors.open("wb") as stderr:
        manager.start_kernel(stderr=stderr)
        client = manager.blocking_client()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=60)
            reply = client.execute_interactive(model + ENGINE + START, timeout=120, output_hook=lambda message: None)
            assert reply["content"]["status"] == "ok"
            manager.restart_kernel(now=False)
            client.wait_for_ready(timeout=60)
        finally:
            client.stop_channels()
            manager.shutdown_kernel()
    assert b"terminate called" not in errors.read_bytes()
    assert b"Abort" not in errors.read_bytes()
