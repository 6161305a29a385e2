"""What LongLLMLingua keeps of a benchmark's questions, by its own package, in an environment of its own.

    python -m benchmarks.retention --data questions.json --export asked.json
    python -m venv other && other/bin/pip install llmlingua==0.2.2 transformers==4.46.3 torch
    other/bin/python benchmarks/longllmlingua.py asked.json --model FOLDER --out kept.jsonl
    python -m benchmarks.retention --data questions.json --beside kept.jsonl

llmlingua 0.2.2 does not run on the transformers that this project needs, hence the second environment; nothing of the
project is imported here. FOLDER holds the same draft as the other methods': the embedded model lies in
~/.cache/draftapprox; the package reads it in float32. Budgets are counted with the draft's tokenizer, because OpenAI's
needs a download; sentences are found by NLTK with the data inside llama-index-core's wheel (set NLTK_DATA). A second
run goes on from --out.
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

# As the package's documentation asks for LongLLMLingua, but for the order of passages, which stays.
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
        "condition_in_question": "after",  # the condition is for tokens, and fails where a passage loses everything
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
    """A PromptCompressor that counts with the draft's tokenizer and asks the model the same thing once."""
    import torch
    from transformers import AutoConfig, PreTrainedTokenizerFast

    package: Any = import_module("llmlingua.prompt_compressor")

    def config_of(folder: str, **options: Any) -> Any:
        config = AutoConfig.from_pretrained(folder, **options)
        saved = getattr(config, "rope_parameters", None)  # where transformers 5, which saved it, puts it
        config.rope_theta = saved["rope_theta"] if saved else config.rope_theta
        return config

    package.AutoConfig = SimpleNamespace(from_pretrained=config_of)
    package.AutoTokenizer = PreTrainedTokenizerFast  # the name that transformers 5 saved is not known to 4

    class Counted:
        def encode(self, text: str) -> list[int]:
            return list(compressor.tokenizer(text, add_special_tokens=False).input_ids)

    package.tiktoken.encoding_for_model = lambda _name: Counted()
    compressor = package.PromptCompressor(model, device_map="cpu", model_config={"torch_dtype": torch.float32})
    compressor.tokenizer.clean_up_tokenization_spaces = False  # the package expects to decode what it encoded
    compressor.get_condition_ppl = lru_cache(maxsize=4096)(compressor.get_condition_ppl)
    return compressor


def compress(compressor: Any, question: dict[str, Any], form: dict[str, Any]) -> list[str]:
    """For each budget of a question the text that is kept."""
    return [
        compressor.compress_prompt(
            question["passages"], question=question["question"], target_token=budget, **(LONG | form)
        )["compressed_prompt"]
        for budget in question["budgets"]
    ]


if __name__ == "__main__":
    main()
