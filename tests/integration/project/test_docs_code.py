"""The Python of README and documentation runs, each page from top to bottom; shell commands are only parsed.

Substitutions let it run anywhere: names of hub models become "default", the embedded model; the address of an API
target becomes a small server of this test with OpenAI's protocol, or, on the page about it, the project's own; that of
a service becomes a real one, that of the proxy the application that the page made. The comment of `print(...)  # text`
is its expected output. A block after `<!-- not run: reason -->` is only compiled.
"""

import importlib.util
import io
import json
import re
import shlex
import threading
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, redirect_stdout
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import typer
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import Document as Text
from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding

from draftapprox_integrations import LoadedModel, SpecKV, SpecPC
from draftapprox_integrations.cli.app import app
from draftapprox_integrations.llama_index import SpecKVLLM
from tests.conftest import ROOT
from tests.helpers import service as services
from tests.helpers.openai_service import serving_completions
from tests.helpers.upstream import running

PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]}
BLOCK = re.compile(r"^(?:<!-- not run: (?P<reason>.+) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)^```", re.M | re.S)
NOT_RUN = 2  # raise it only for what cannot run without a key, a download or an environment of its own

HUB_NAME = re.compile(r'"(?:Qwen|meta-llama)/[\w.-]+"')
API_ADDRESS = "http://localhost:8000/v1"
PROXY_ADDRESS = "http://localhost:8080"
OUR_SERVER = "docs/guides/openai_server.md"  # the page whose clients talk to our own service
SERVICE_ADDRESS = "http://127.0.0.1:8000"
API_ANSWER = "It was opened in 1932."

MILL = "The old mill was built in 1821. Today it is a small museum. It closes in winter."
BRIDGE = "The bridge was opened in 1932. It is painted red. Many cyclists cross it every morning."


def blocks(page: Any, language: Any) -> Any:
    return [found for found in BLOCK.finditer(PAGES[page]) if found["language"] == language]


class Api(BaseHTTPRequestHandler):
    """Answers chat completions, whole or streamed, and records the requests."""

    protocol_version = "HTTP/1.1"
    requests: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        assert self.path == "/v1/chat/completions"
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append(asked)
        streamed = asked.get("stream", False)
        pieces = re.findall(r"\S+ ?", API_ANSWER) if streamed else [API_ANSWER]
        replies = [self.reply(asked["model"], piece, streamed) for piece in pieces]
        body = "".join(f"data: {reply}\n\n" for reply in [*replies, "[DONE]"]) if streamed else replies[0]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream" if streamed else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def reply(self, model: Any, text: Any, streamed: Any) -> Any:
        message = {"role": "assistant", "content": text}
        kind, key = ("chat.completion.chunk", "delta") if streamed else ("chat.completion", "message")
        choice = {"index": 0, key: message, "finish_reason": None if streamed else "stop"}
        return json.dumps({"id": "1", "object": kind, "created": 0, "model": model, "choices": [choice]})

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def api() -> Iterator[Any]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def service(embedded_model: LoadedModel) -> Iterator[str]:
    with services.running(SpecPC(embedded_model)) as started:
        yield started.url


@pytest.fixture
def address(request: pytest.FixtureRequest, page: Any, api: Any) -> Iterator[Any]:
    """The base URL that a page's clients get."""
    if page != OUR_SERVER:
        yield api
        return
    engine = SpecKV(request.getfixturevalue("embedded_model"), "self")
    with serving_completions(engine, name="default") as url:
        yield url


@pytest.fixture
def application(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The names that README and home page use from the reader's application, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Settings, "_llm", SpecKVLLM("default", max_tokens=16))
    monkeypatch.setattr(Settings, "_tokenizer", Settings._tokenizer)
    monkeypatch.setattr(Api, "requests", [])
    store = InMemoryVectorStore.from_documents([Document(MILL), Document(BRIDGE)], DeterministicFakeEmbedding(size=16))
    retriever = store.as_retriever(search_kwargs={"k": 12})
    texts = [Text(text=MILL), Text(text=BRIDGE)]
    return {
        "index": VectorStoreIndex.from_documents(texts, embed_model=MockEmbedding(embed_dim=8)),
        "retriever": retriever,
        "your_retriever": retriever,
        "passages": [MILL, BRIDGE],
        "question": "In which year was the bridge opened?",
        "prompt": f"{MILL} {BRIDGE} In which year was the bridge opened? Answer:",
    }


@pytest.mark.filterwarnings("ignore:The function `loads` is in beta")  # LangChain's own
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_the_python_of_a_page(
    page: Any, application: Any, address: Any, service: str, embedded_model: LoadedModel
) -> None:
    with ExitStack() as servers:
        run_page(page, application, {API_ADDRESS: address, SERVICE_ADDRESS: service}, servers)


def run_page(page: Any, application: Any, addresses: dict[str, str], servers: ExitStack) -> None:
    names = application if page in ("README.md", "docs/index.md") else {}
    names["__name__"] = "__main__"
    for block in blocks(page, "python"):
        if PROXY_ADDRESS in block["code"] and PROXY_ADDRESS not in addresses:
            addresses[PROXY_ADDRESS] = servers.enter_context(running(names["app"]))  # as the page makes it
        code = HUB_NAME.sub('"default"', block["code"])
        for written, real in addresses.items():
            code = code.replace(written, real)
        line = PAGES[page][: block.start("code")].count("\n")
        compiled = compile("\n" * line + code, page, "exec")  # a traceback then points into the page
        if block["reason"]:
            continue
        with redirect_stdout(io.StringIO()) as out:
            exec(compiled, names)
        printed = iter(out.getvalue().splitlines())
        for promised in re.findall(r"^ *print\(.*\)  # (.+)$", code, re.M):
            assert promised in printed, f"{page}: {promised!r} was promised; printed:\n{out.getvalue()}"
    asked = [message["content"] for request in Api.requests for message in request["messages"] if message["content"]]
    assert bool(asked) == (page != OUR_SERVER and any(API_ADDRESS in block["code"] for block in blocks(page, "python")))
    assert "museum" not in " ".join(asked)  # what was dropped does not reach the server


def test_few_blocks_are_not_run() -> None:
    marked = [(page, block["reason"]) for page in PAGES for block in BLOCK.finditer(PAGES[page]) if block["reason"]]
    assert len(marked) == NOT_RUN
    assert sum(text.count("<!-- not run") for text in PAGES.values()) == NOT_RUN


def commands() -> Iterator[Any]:
    for page, text in PAGES.items():
        for block in BLOCK.finditer(text):
            if block["language"] == "bash":
                for line in block["code"].replace("\\\n", " ").splitlines():
                    for part in re.split(r"&&|\|", line):
                        words = shlex.split(part, comments=True)
                        if words:
                            yield page, words[: words.index(">")] if ">" in words else words


def test_shell_commands_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    command: Any = typer.main.get_command(app)
    seen = set()
    for page, (program, *words) in commands():
        seen.add(program)
        if program == "draftapprox" and words and words[0] in command.commands:
            command.commands[words[0]].make_context(words[0], words[1:])  # raises for an unknown option or value
        elif program == "draftapprox":
            assert words in (["--version"], ["--help"]), page
        elif program == "make":
            assert set(words) <= targets, page
        elif program == "pip":
            for extras in re.findall(r"\[([\w,-]+)\]", " ".join(words)):
                assert set(extras.split(",")) <= set(project["optional-dependencies"]), page
        elif program == "python" and words[:1] == ["-m"]:
            assert importlib.util.find_spec(words[1]), page
    assert {"draftapprox", "make", "pip"} <= seen


def test_modules_named_in_the_text_exist() -> None:
    for page, text in PAGES.items():
        for module in re.findall(r"`python -m ([\w.]+)", text):
            assert importlib.util.find_spec(module), f"{page}: {module}"
