"""Compress a benchmark's questions with LongLLMLingua's own package, in a separate environment.

    python -m benchmarks.retention --data questions.json --export asked.json
    python -m venv other && other/bin/pip install llmlingua==0.2.2 transformers==4.46.3 torch
    other/bin/python benchmarks/longllmlingua.py asked.json --model FOLDER --out kept.jsonl
    python -m benchmarks.retention --data questions.json --beside kept.jsonl

llmlingua 0.2.2 does not run with this project's version of transformers, hence the second environment; this file
imports nothing of the project. FOLDER holds the draft of the other methods: the embedded model is in
~/.cache/draftapprox. The package loads it in float32. Budgets are counted with the draft's tokenizer, because OpenAI's
needs a download. NLTK splits sentences with the data in llama-index-core's wheel (set NLTK_DATA). A second run
continues from --out.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# LongLLMLingua's settings from the package's documentation, except that passages keep their order.
LONG: dict[str, Any] = {
    "rank_method": "longllmlingua",
    "condition_in_question": "after_condition",
    "condition_compare": True,
    "reorder_context": "original",
    "concate_question": False,
}
FORMS: dict[str, dict[str, Any]] = {
    "LongLLMLingua, tokens": {"dynamic_context_compression_ratio": 0.3, "context_budget": "+100"},
    "LongLLMLingua, sentences": {
        "condition_in_question": "after",  # the condition is for tokens and fails where a passage becomes empty
        "condition_compare": False,
        "use_context_level_filter": False,
        "use_sentence_level_filter": True,
        "use_token_level_filter": False,
        "token_budget_ratio": 1.0,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("asked", type=Path, help="from benchmarks.retention --export")
    parser.add_argument("--model", required=True, help="folder or hub id of the draft")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    asked = json.loads(args.asked.read_text(encoding="utf-8"))
    done = len(args.out.read_text(encoding="utf-8").splitlines()) if args.out.exists() else 0
    compressor = load(args.model)
    for question in asked[done:]:
        begun = time.perf_counter()
        kept = {name: compress(compressor, question, form) for name, form in FORMS.items()}
        row = {"question": question["question"], "kept": kept, "seconds": time.perf_counter() - begun}
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def load(model: str) -> Any:
    """Return a PromptCompressor that counts with the draft's tokenizer and caches perplexities."""
    import torch
    from transformers import AutoConfig, PreTrainedTokenizerFast

    package: Any = import_module("llmlingua.prompt_compressor")

    def config_of(folder: str, **options: Any) -> Any:
        config = AutoConfig.from_pretrained(folder, **options)
        saved = getattr(config, "rope_parameters", None)  # transformers 5, which saved it, uses this field
        config.rope_theta = saved["rope_theta"] if saved else config.rope_theta
        return config

    package.AutoConfig = SimpleNamespace(from_pretrained=config_of)
    package.AutoTokenizer = PreTrainedTokenizerFast  # transformers 4 does not know the class that 5 saved

    class Counted:
        def encode(self, text: str) -> list[int]:
            return list(compressor.tokenizer(text, add_special_tokens=False).input_ids)

    package.tiktoken.encoding_for_model = lambda _name: Counted()
    compressor = package.PromptCompressor(model, device_map="cpu", model_config={"torch_dtype": torch.float32})
    compressor.tokenizer.clean_up_tokenization_spaces = False  # the package needs decoding to invert encoding
    compressor.get_condition_ppl = lru_cache(maxsize=4096)(compressor.get_condition_ppl)
    return compressor


def compress(compressor: Any, question: dict[str, Any], form: dict[str, Any]) -> list[str]:
    """Return the kept text of a question for each budget."""
    return [
        compressor.compress_prompt(
            question["passages"], question=question["question"], target_token=budget, **(LONG | form)
        )["compressed_prompt"]
        for budget in question["budgets"]
    ]


if __name__ == "__main__":
    main()
