"""SpecKV's settings at tight budgets: window, pooling, reduction, head budgets, length of the lookahead.

    python -m benchmarks.speckv_settings --data squad-like.json -n 40 --seed 11
    python -m benchmarks.speckv_settings --data squad-like.json -n 20 --lengths
    python -m benchmarks.speckv_settings --data squad-like.json -n 40 --capacity 32 64 --budgets

The lookahead is the target's own greedy answer or, with --draft self, what it drafts from the quarter of the prompt
that SpecPC selects, often another answer. KL is that of benchmarks.speckv_accuracy, whose 200 questions are left out
here. --lengths generates answers of 96 tokens and truncates the lookahead. --budgets compares uniform with adaptive
head budgets, by floor_alpha.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from draftapprox_integrations import LoadedModel, SpecKVConfig, load_model
from draftapprox_integrations.chat.answering import INSTRUCTION, rag_prompt
from draftapprox_integrations.models.attention import attention_view
from draftapprox_integrations.speckv.cache.ragged import decoding_model
from draftapprox_integrations.speckv.lookahead import SelfLookahead
from draftapprox_integrations.speckv.prefill import prefill

from .common import Question, machine, squad_questions, table
from .speckv_accuracy import interval, kl

SETTINGS = (
    "32,max,max,7", "8,max,max,7", "8,max,max,3", "8,max,max,1", "8,max,mean,3", "8,mean,max,3", "4,max,max,3",
    "4,max,max,1", "1,max,max,3",
)  # fmt: skip
BUDGETS = ("8,max,max,7", "8,max,max,7,0", "8,max,max,7,0.2", "8,max,max,7,0.5")
LENGTHS = (0, 8, 16, 32, 64, 96)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a JSON file in SQuAD's layout")
    parser.add_argument("--model", default="default")
    parser.add_argument("-n", type=int, default=40)
    parser.add_argument("--passages", type=int, default=4)
    parser.add_argument("--capacity", type=int, nargs="+", default=[64])
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--draft", choices=["full", "self"], default="full", help="source of the lookahead")
    parser.add_argument("--settings", nargs="+", help="window,reduction,pooling,kernel[,floor_alpha]")
    parser.add_argument("--budgets", action="store_true", help="compare settings of head_budgets")
    parser.add_argument("--lengths", action="store_true", help="vary the lookahead's length instead of the settings")
    args = parser.parse_args()
    settings = args.settings or (BUDGETS if args.budgets else SETTINGS)
    model = load_model(args.model)
    reported = {question.text for question in squad_questions(args.data, 200, args.passages, seed=3)}
    drawn = squad_questions(args.data, args.n + 200, args.passages, args.seed)
    questions = [question for question in drawn if question.text not in reported][: args.n]
    started = time.perf_counter()
    results: dict[str, list[tuple[float, bool]]] = {}
    full_right = 0
    for question in questions:
        full_right += _measure(model, question, args.capacity, args.lengths, args.draft == "self", settings, results)
    print(machine())
    print(
        f"{model.name}, {len(questions)} questions of {args.data.name}, seed {args.seed}, "
        f"{' and '.join(map(str, args.capacity))} KV pairs"
    )
    print(f"lookahead: {args.draft}")
    print(f"full cache: {full_right} answers right; {time.perf_counter() - started:.0f} s\n")
    rows = []
    for name, values in results.items():
        rows.append([name, f"{statistics.mean(k for k, _ in values):.3f}", str(sum(right for _, right in values))])
        if args.budgets:
            uniform = results[",".join(name.split(",")[:4])]
            differences = [kl_value - other for (kl_value, _), (other, _) in zip(values, uniform, strict=True)]
            rows[-1].append("" if values is uniform else interval(differences))
    header = ["lookahead" if args.lengths else "settings", "KL", "answers right"]
    print(table([*header, "KL less that of uniform budgets, paired"] if args.budgets else header, rows))


@torch.inference_mode()
def _measure(
    model: LoadedModel,
    question: Question,
    capacities: Sequence[int],
    lengths: bool,
    self_draft: bool,
    settings: Sequence[str],
    results: dict[str, Any],
) -> bool:
    tokenizer = model.require_tokenizer()
    instruction = "Use the context to answer the question, and explain in detail." if lengths else INSTRUCTION
    messages = [{"role": "user", "content": rag_prompt(question.passages, question.text, instruction)}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
    mask = torch.ones_like(ids)
    max_new_tokens = 96 if lengths else 24

    def is_right(tokens: torch.Tensor) -> bool:
        text = str(tokenizer.decode(tokens, skip_special_tokens=True)).lower()
        return any(answer.lower() in text for answer in question.answers)

    options = {"attention_mask": mask, "max_new_tokens": max_new_tokens, "do_sample": False}
    full = model.model.generate(ids, **options)[0, ids.shape[1] :]  # type: ignore[operator]
    whole = torch.cat([ids, full[None]], dim=1)
    reference = model.model(whole, logits_to_keep=len(full) + 1, use_cache=False).logits[0, :-1]
    lookahead = SelfLookahead(model).draft(ids, mask, max_new_tokens)[0] if self_draft else full
    cases: list[tuple[str, SpecKVConfig, torch.Tensor]] = []
    if lengths:
        config = SpecKVConfig(max_capacity_prompt=capacities[0])
        cases = [(f"{length} tokens", config, full[:length]) for length in LENGTHS]
    else:
        for capacity, setting in product(capacities, settings):
            window, reduction, pool, kernel, *floor = setting.split(",")
            fields: dict[str, Any] = {"reduction_type": reduction, "pool_type": pool, "kernel_size": int(kernel)}
            if floor:
                fields |= {"head_budgets": "adaptive", "floor_alpha": float(floor[0])}
            config = SpecKVConfig(max_capacity_prompt=capacity, window_size=int(window), **fields)
            cases.append((setting if len(capacities) == 1 else f"{capacity} pairs: {setting}", config, lookahead))
    for name, config, tokens in cases:
        cache, _ = prefill(attention_view(model.model), ids, mask, [tokens], config)
        decode_cache, decoder = copy.deepcopy(cache), decoding_model(model.model, cache)
        positions = torch.arange(ids.shape[1] - 1, whole.shape[1] - 1)[None]
        seen_mask = torch.ones_like(whole[:, :-1])
        answer_ids = whole[:, ids.shape[1] - 1 : -1]
        logits = decoder(answer_ids, attention_mask=seen_mask, position_ids=positions, past_key_values=cache).logits[0]
        out = full
        if not lengths:
            out = decoder.generate(  # type: ignore[operator]
                ids, attention_mask=mask, past_key_values=decode_cache, max_new_tokens=max_new_tokens, do_sample=False
            )[0, ids.shape[1] :]
        results.setdefault(name, []).append((kl(reference, logits), is_right(out)))
    return is_right(full)


if __name__ == "__main__":
    main()
