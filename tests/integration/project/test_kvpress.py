"""SpecKV's press for NVIDIA's kvpress keeps what the package keeps; runs in kvpress' own environment.

kvpress wants an older transformers than the package, so this is skipped in the project's environment. In kvpress':

    python -m pytest -c /dev/null --noconftest -p no:cacheprovider tests/integration/project/test_kvpress.py
"""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from draftapprox_integrations.kernels.tail_scores import masked_tail_scores
from draftapprox_integrations.speckv.scores import pool_kv_scores, select_uniform

kvpress: Any = pytest.importorskip(
    "kvpress", reason="needs kvpress, whose transformers is older than the package's: see docs/guides/kvpress.md"
)
from benchmarks.peers import kvpress_peers as peers  # noqa: E402
from benchmarks.peers.rows import ratio_for, read_rows  # noqa: E402
from benchmarks.peers.speckv_press import SpecKVPress, template_tail  # noqa: E402

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden"
CASES = sorted(path.stem for path in (GOLDEN / "cases").glob("speckv_*.json"))
PROMPT = torch.randint(2, 512, (1, 120), generator=torch.Generator().manual_seed(1))
FOLLOWING = [7, 300, 41, 41, 5, 99, 260, 17]


def tiny_llama(**changes: Any) -> LlamaForCausalLM:
    """As in tests/conftest.py, which this environment cannot import."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}
    settings: dict[str, Any] = {"vocab_size": 512, "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**(sizes | heads | settings | changes))).eval()


@pytest.fixture(scope="module")
def target() -> LlamaForCausalLM:
    return tiny_llama()


@torch.no_grad()
def pressed(model: Any, ids: Any, press: Any) -> tuple[Any, Any]:
    """The cache after the press, and the prompt's last hidden states."""
    cache = DynamicCache()
    with press(model):
        hidden = model.model(input_ids=ids, past_key_values=cache).last_hidden_state
    return cache, hidden


@torch.no_grad()
def whole(model: Any, ids: Any) -> tuple[Any, Any]:
    cache = DynamicCache()
    return cache, model.model(input_ids=ids, past_key_values=cache).last_hidden_state


def kept_positions(full: Any, found: Any) -> list[list[list[int]]]:
    """Per layer and head the positions whose key and value the pressed cache holds."""
    layers = []
    for before, after in zip(full.layers, found.layers, strict=True):
        distances = torch.cdist(after.keys[0].double(), before.keys[0].double())
        positions = distances.argmin(dim=-1)
        index = positions[None, ..., None].expand(-1, -1, -1, before.keys.shape[-1])
        for name in ("keys", "values"):
            whole_ones = getattr(before, name).gather(2, index)
            torch.testing.assert_close(getattr(after, name), whole_ones, rtol=1e-4, atol=1e-5)
        layers.append(positions.tolist())
    return layers


def by_the_package(model: Any, ids: Any, following: list[int], capacity: int, settings: dict[str, Any]) -> Any:
    """The pairs that the package's own functions keep, from the queries and keys of an untouched pass.

    The package's prompt has one token more than what is pressed, fed when decoding starts: the first of `following`.
    """
    observed: dict[int, tuple[Any, Any, float]] = {}

    def observe(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        observed[module.layer_idx] = query, key, module.scaling
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)

    AttentionInterface.register("observed_for_kvpress", observe)
    view = copy.deepcopy(model)
    view.set_attn_implementation("observed_for_kvpress")
    prompt = ids.shape[1] + 1
    with torch.no_grad():
        view(torch.cat([ids, torch.tensor([following])], dim=1), use_cache=False)
    window, kept = settings["window_size"], []
    queries = torch.ones(1, window + len(following), dtype=torch.bool)
    columns = prompt - window - 1
    for layer in range(len(observed)):
        query, key, scaling = observed[layer]
        reduction = "max" if settings["reduction_type"] == "max" else "sum"
        raw = masked_tail_scores(query, key, None, queries, columns, scaling, reduction)
        padding = torch.zeros(1, columns, dtype=torch.bool)
        pooled = pool_kv_scores(raw, padding, settings["pool_type"], settings["kernel_size"])
        kept.append(select_uniform(pooled, torch.tensor([prompt]), capacity, window)[0].tolist())
    return kept


@pytest.mark.parametrize("pool_type", ["max", "mean"])
@pytest.mark.parametrize("reduction_type", ["max", "mean"])
@pytest.mark.parametrize(("capacity", "window_size", "kernel_size"), [(24, 8, 7), (60, 32, 5), (9, 8, 1), (118, 1, 13)])
def test_it_keeps_the_packages_pairs(
    target: LlamaForCausalLM, capacity: int, window_size: int, kernel_size: int, reduction_type: str, pool_type: str
) -> None:
    settings: dict[str, Any] = {
        "window_size": window_size, "kernel_size": kernel_size,
        "reduction_type": reduction_type, "pool_type": pool_type,
    }  # fmt: skip
    press = SpecKVPress(ratio_for(120, capacity), tail=FOLLOWING[:1], lookahead=FOLLOWING[1:], **settings)
    full, states = whole(target, PROMPT)
    cache, hidden = pressed(target, PROMPT, press)
    found = kept_positions(full, cache)
    assert found == by_the_package(target, PROMPT, FOLLOWING, capacity, settings)
    assert found != [[list(range(120 - capacity, 120))] * 2] * 4
    torch.testing.assert_close(hidden, states, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_it_keeps_the_references_pairs(name: str) -> None:
    """The recorded cases of the paper's implementation, which the package's prefill is tested with as well."""
    case = json.loads((GOLDEN / "cases" / f"{name}.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(GOLDEN / "models" / case["target_model"], dtype=torch.float32)
    settings = {key: case["config"][key] for key in ("window_size", "kernel_size", "pool_type", "reduction_type")}
    ids, capacity = torch.tensor([case["prompt_ids"]]), case["config"]["max_capacity_prompt"]
    tail, lookahead = case["prompt_ids"][-1:], case["expected"]["lookahead_ids"]
    press = SpecKVPress(ratio_for(len(ids[0]) - 1, capacity), tail=tail, lookahead=lookahead, **settings)
    full, _ = whole(model, ids[:, :-1])
    cache, _ = pressed(model, ids[:, :-1], press)
    found = kept_positions(full, cache)
    if case["stability"]["kept_unique"]:
        assert found == case["expected"]["kept_indices"]
    # The whole prompt pressed, its last token in the window, keeps the same pairs and that token's.
    settings["window_size"] += 1
    press = SpecKVPress(ratio_for(len(ids[0]), capacity + 1), lookahead=lookahead, **settings)
    cache, _ = pressed(model, ids, press)
    assert kept_positions(whole(model, ids)[0], cache) == [
        [[*head, len(ids[0]) - 1] for head in layer] for layer in found
    ]


def test_a_draft_continues_the_prompt(target: LlamaForCausalLM) -> None:
    draft = tiny_llama(num_hidden_layers=2)
    ids = torch.cat([PROMPT, torch.tensor([FOLLOWING[:3]])], dim=1)
    with torch.no_grad():
        drafted = draft.generate(ids, max_new_tokens=6, do_sample=False, attention_mask=torch.ones_like(ids))
    given = SpecKVPress(0.7, tail=FOLLOWING[:3], lookahead=drafted[0, ids.shape[1] :].tolist())
    made = SpecKVPress(0.7, tail=FOLLOWING[:3], draft=draft, lookahead_tokens=6)
    caches = [pressed(target, PROMPT, press)[0] for press in (given, made)]
    for one, other in zip(caches[0].layers, caches[1].layers, strict=True):
        assert torch.equal(one.keys, other.keys)
    assert "LlamaForCausalLM" not in repr(made)


def test_without_compression_nothing_changes(target: LlamaForCausalLM) -> None:
    cache, hidden = pressed(target, PROMPT, SpecKVPress(0.0, lookahead=FOLLOWING))
    full, states = whole(target, PROMPT)
    torch.testing.assert_close(hidden, states, rtol=1e-4, atol=1e-5)
    assert kept_positions(full, cache) == [[list(range(120))] * 2] * 4
    assert not target.model._forward_hooks
    assert not target.model._forward_pre_hooks
    assert all(not layer.self_attn._forward_hooks for layer in target.model.layers)


def test_generate_inside_the_block_equals_a_loop(target: LlamaForCausalLM) -> None:
    press = SpecKVPress(0.8, lookahead=FOLLOWING)
    with torch.no_grad(), press(target):
        written = target.generate(
            PROMPT, attention_mask=torch.ones_like(PROMPT), past_key_values=DynamicCache(), max_new_tokens=8,
            do_sample=False, eos_token_id=None, pad_token_id=0,
        )[0, 120:].tolist()  # fmt: skip
    cache, hidden = pressed(target, PROMPT, press)
    with torch.no_grad():
        found = [int(target.lm_head(hidden[:, -1]).argmax())]
        for position in range(120, 127):
            out = target(torch.tensor([found[-1:]]), past_key_values=cache, position_ids=torch.tensor([[position]]))
            found.append(int(out.logits[0, -1].argmax()))
    assert written == found


def test_what_it_cannot_press_is_refused(target: LlamaForCausalLM) -> None:
    cache = DynamicCache()
    for press, message in [
        (SpecKVPress(0.5), "set `draft`"),
        (SpecKVPress(0.5, draft=target), "cannot draft while it is pressed"),
    ]:
        with pytest.raises(ValueError, match=message), press(target):
            pass
    press = SpecKVPress(0.5, lookahead=FOLLOWING)
    with pytest.raises(ValueError, match="one prompt at a time"), press(target):
        target.model(input_ids=PROMPT.expand(2, -1), past_key_values=cache)
    with pytest.raises(ValueError, match="one prompt at a time"), press(target):
        target(PROMPT, attention_mask=(torch.arange(120) > 3)[None].long(), past_key_values=cache)
    with pytest.raises(ValueError, match="not a press around it"), kvpress.AdaKVPress(press)(target):
        target(PROMPT, past_key_values=cache)
    assert pressed(target, PROMPT, press)[0].get_seq_length() == 60  # it works after a failure
    for setting, message in [
        ({"kernel_size": 4}, "odd"),
        ({"pool_type": "avg"}, "'max' or 'mean'"),
        ({"window_size": 0}, "window_size must be >= 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            SpecKVPress(0.5, **setting)
    sliding = AutoModelForCausalLM.from_config(
        kvpress.presses.base_press.MistralForCausalLM.config_class(
            vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, sliding_window=16,
        )
    )  # fmt: skip
    with pytest.raises(ValueError, match="sliding window of 16"), press(sliding):
        pass


@torch.no_grad()
def test_one_prefill_keeps_what_each_press_keeps_alone(target: LlamaForCausalLM) -> None:
    presses, last = peers.make_presses(), torch.tensor([[3]])
    question = {"lookahead": FOLLOWING, "self_lookahead": FOLLOWING[::-1]}
    full, caches = peers.prefill(target, PROMPT, last, question, presses, [40, 70, 200])
    assert set(caches) == {(name, budget) for name in presses for budget in (40, 70)}
    for mine, untouched in zip(full.layers, whole(target, PROMPT)[0].layers, strict=True):
        torch.testing.assert_close(mine.keys, untouched.keys, rtol=1e-4, atol=1e-5)
    for (name, budget), cache in caches.items():
        press = peers.make_presses()[name]
        press.compression_ratio = ratio_for(120, budget)
        if name in peers.LOOKAHEADS:
            press.tail, press.lookahead = [3], question[peers.LOOKAHEADS[name]]
        target.set_attn_implementation("eager" if name == "ObservedAttention" else "sdpa")
        alone, _ = pressed(target, PROMPT, press)
        target.set_attn_implementation("sdpa")
        assert cache.get_seq_length() == budget
        found, expected = (
            [[sorted(head) for head in layer] for layer in kept_positions(full, one)] for one in (cache, alone)
        )
        assert found == expected, name


@torch.no_grad()
def test_the_reader_equals_one_pass_where_nothing_is_dropped(target: LlamaForCausalLM) -> None:
    full, _ = whole(target, PROMPT[:, :-1])
    cache, fed = peers.stack([full, full]), torch.cat([PROMPT[:, -1:], torch.tensor([FOLLOWING])], dim=1)
    logits = peers.feed(target, cache, fed.expand(2, -1), 119)
    expected = target(torch.cat([PROMPT, torch.tensor([FOLLOWING])], dim=1)).logits[:, 119:]
    torch.testing.assert_close(logits, expected.expand(2, -1, -1), rtol=1e-3, atol=1e-4)
    cache.crop(120)
    written = target.generate(PROMPT, attention_mask=torch.ones_like(PROMPT), max_new_tokens=9, do_sample=False)
    tokens = written[0, 120:].tolist()
    tokens = tokens[: tokens.index(1)] if 1 in tokens else tokens
    assert peers.generate(target, cache, logits[:, 0].argmax(-1), 120, 9) == [tokens, tokens]


FOLDERS = sorted((Path.home() / ".cache" / "draftapprox").glob("SmolLM2*/tokenizer.json"))  # the embedded default's


needs_tokenizer = pytest.mark.skipif(
    not FOLDERS, reason="needs the tokenizer of the embedded model: load_model('default') makes it"
)


def save_tiny(folder: Path) -> None:
    known = AutoTokenizer.from_pretrained(FOLDERS[0].parent)
    known.save_pretrained(folder)
    tiny_llama(vocab_size=len(known)).save_pretrained(folder)


@needs_tokenizer
def test_the_python_of_the_guide(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    save_tiny(tmp_path)
    page = (ROOT / "docs" / "guides" / "kvpress.md").read_text()
    code = "".join(re.findall(r"^```python\n(.*?)^```", page, re.M | re.S))
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "peers")
    names: dict[str, Any] = {}
    exec(re.sub(r'"Qwen/[\w.-]+"', repr(str(tmp_path)), code), names)
    assert capsys.readouterr().out.strip()
    tokens = names["prompt"]["input_ids"].shape[1]
    assert names["cache"].get_seq_length() == int(tokens * (1 - 0.9))
    tokenizer, pipe, press = names["tokenizer"], names["pipe"], names["press"]
    fed = pipe.preprocess("Some context.", ["Why?"], "So:", 10_000)["questions_ids"][0]
    assert template_tail(tokenizer, "Why?", "So:") == fed[0].tolist()
    # What the pipeline answers is what the target writes after the pressed context and the tail.
    context = pipe.preprocess(names["context"], [""], "", 10_000)["context_ids"]
    target, tail = names["target"], torch.tensor([press.tail])
    with torch.no_grad():
        cache, _ = pressed(target, context, press)
        logits = peers.feed(target, cache, tail, context.shape[1])
        written = peers.generate(target, cache, logits[:, -1].argmax(-1), context.shape[1] + tail.shape[1], 8)
    answer = pipe(names["context"], press=press, max_new_tokens=8)["answer"]
    assert tokenizer.decode(written[0]) == answer


@needs_tokenizer
def test_the_rows_of_a_run(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    questions, out = tmp_path / "questions.jsonl", tmp_path / "rows.jsonl"
    prompts = ["The mill was built by Ann, and the bridge by Bob. " * 4 + "Who built the mill?", "Who?"]
    asked = [
        {"id": str(n), "prompt": prompt, "answer": " Ann did", "lookahead": FOLLOWING, "self_lookahead": FOLLOWING[:4]}
        for n, prompt in enumerate(prompts)
    ]
    questions.write_text("".join(json.dumps(one) + "\n" for one in asked))
    run = ["--questions", str(questions), "--model", str(tmp_path), "--out", str(out), "--budgets", "32", "20"]
    peers.main([*run, "--presses", "SpecKV", "TOVA", "--max-new-tokens", "0"])
    rows = read_rows(out)
    keys = [("0", "full", None), *(("0", name, size) for size in (32, 20) for name in ("TOVA", "SpecKV"))]
    assert [(row["id"], row["press"], row["budget"]) for row in rows] == [*keys, ("1", "full", None)]  # "Who?" fits
    assert all(row["pairs"] == (row["budget"] or row["tokens"] - 1) and row["answer"] is None for row in rows)
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    for row, prompt in ((rows[0], prompts[0]), (rows[-1], prompts[1])):
        ids, gold = (tokenizer(text, return_tensors="pt")["input_ids"] for text in (prompt, " Ann did"))
        with torch.no_grad():
            logits = model(torch.cat([ids, gold], dim=1)).logits[0, ids.shape[1] - 1 : -1].log_softmax(-1)
        assert row["likelihood"] == pytest.approx(float(logits.gather(1, gold[0, :, None]).mean()), abs=1e-4)
        assert row["kl"] == 0
    assert all(row["kl"] > 0 for row in rows[1:-1])
    assert len({row["likelihood"] for row in rows}) == len(rows)

    peers.main([*run, "--presses", "SpecKV", "SnapKV", "--max-new-tokens", "3"])  # goes on from the rows
    more = read_rows(out)
    assert more[: len(rows)] == rows
    assert [(row["press"], row["budget"]) for row in more[len(rows) :]] == [("SnapKV", 32), ("SnapKV", 20)]
    assert all(row["answer"] for row in more[len(rows) :])
