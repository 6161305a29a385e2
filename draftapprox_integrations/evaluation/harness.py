"""The engine as the model "draftapprox" of lm-evaluation-harness, which then measures every method as any model.

import lm_eval
import draftapprox_integrations.evaluation.harness

lm_eval.simple_evaluate("draftapprox", "target=Qwen/Qwen2.5-7B-Instruct,method=snapkv,max_capacity_prompt=256",
tasks=["longbench_trec"])
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ..engine.engine import SpecKV
from ..errors import InvalidInputError, MissingDependencyError
from ..models.loading import ModelSpec, load_model
from ..results import Generation
from ..specpc.compressor import SpecPC
from .methods import method_config, needs_draft
from .prompts import shorten

try:
    from lm_eval import simple_evaluate as simple_evaluate
    from lm_eval.__main__ import cli_evaluate as cli_evaluate
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise MissingDependencyError(
        'Evaluation needs lm-evaluation-harness: pip install "draftapprox-integrations[eval]"'
    ) from error

from tqdm import tqdm

_DEFAULT_ANSWER = 256  # tokens, where a task says nothing; lm-evaluation-harness' own default


@register_model("draftapprox")
class DraftApproxLM(TemplateLM):
    """A target model behind one method.

    Args:
        target, draft: What `load_model` takes; `draft` is loaded only by methods that run one.
        method: One of `evaluation.methods.METHODS`.
        batch_size: Most rows of the engine's running batch; "auto": 8.
        max_length: Most prompt tokens; a longer prompt loses its beginning, as in lm-evaluation-harness' own models.
            None: the target's window; for methods that shorten the prompt, the draft's.
        max_batch_size: Not used; the harness passes it to every model.
        device, dtype, attn_implementation, trust_remote_code: As for `load_model`.
        **settings: Fields of the method's config, such as `max_capacity_prompt`.

    Raises:
        InvalidInputError: there is no such method or setting, or a draft is missing.
        ModelLoadError: a model cannot be loaded.
    """

    def __init__(
        self,
        target: ModelSpec = "default",
        draft: ModelSpec | None = "default",
        method: str = "full",
        batch_size: int | str = 8,
        max_length: int | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        dtype: str = "auto",
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        **settings: Any,
    ):
        super().__init__()
        load = partial(
            load_model,
            device=device or "auto",
            dtype=dtype,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
        )
        self.target_model = load(target)
        self.method = method
        window = self.target_model.context_window
        self.config = method_config(method, settings, window)
        self.draft_model = None
        if needs_draft(method, self.config):
            if draft is None:
                raise InvalidInputError(f"{method} needs a draft: draft=...")
            self.draft_model = self.target_model if draft == target else load(draft)
        rows = 8 if isinstance(batch_size, str) and not batch_size.isdigit() else int(batch_size)
        in_engine = None if method == "specpc-text" else self.draft_model
        self.engine = SpecKV(self.target_model, in_engine, self.config, max_batch_size=rows)
        self._compressor = self._text_budget = None
        if method == "specpc-text":
            assert self.draft_model is not None
            self._compressor = SpecPC(self.draft_model, tokenizer=self.target_model.require_tokenizer())
            self._text_budget = int(settings.get("max_capacity_prompt", 1024))
        shortens = method in ("specpc", "speckvpc")
        read = self.draft_model.context_window if shortens and self.draft_model is not None else window
        self.max_length = int(max_length) if max_length is not None else read
        self._cuts_answer = not shortens
        self.tokenizer = self.target_model.require_tokenizer()
        self.truncated = 0
        self.generations: list[Generation] = []

    # ------------------------------------------------------------------ what lm-evaluation-harness asks for

    @property
    def eot_token_id(self) -> int:
        """Id of the end of a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """Id that stands before a text without a prompt."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer, for the harness' own cache."""
        return self.target_model.name.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; by default without a second BOS where a chat template has written one."""
        if add_special_tokens is None:
            bos = self.tokenizer.bos_token
            add_special_tokens = not (bos and string.startswith(bos))
        return list(self.tokenizer(string, add_special_tokens=add_special_tokens)["input_ids"])

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt of a conversation; with "specpc-text" its last user message is shortened."""
        messages = [dict(message) for message in chat_history]
        users = [message for message in messages if message["role"] == "user"]
        if users:
            users[-1]["content"] = self._shortened(users[-1]["content"])
        return str(
            self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """The answers; all requests share the engine's running batch."""
        answers: list[str] = []
        streams = []
        for request in requests:
            prompt, options = request.args
            options = normalize_gen_kwargs(dict(options), _DEFAULT_ANSWER)
            tokens = int(options.pop("max_gen_toks"))
            stop = [text for text in options.pop("until") if text]
            sampled = bool(options.pop("do_sample", False))
            temperature = float(options.pop("temperature", 1.0) or 0.0) if sampled else 0.0
            chosen = {name: options[name] for name in ("top_p", "top_k") if sampled and name in options}
            ids = self._cut(self.tok_encode(self._plain(prompt)), tokens if self._cuts_answer else 0)
            streams += self.engine.submit(
                [ids], max_new_tokens=tokens, stop=stop, temperature=temperature, seed=0 if sampled else None, **chosen
            )
        for request, stream in zip(tqdm(requests, desc=self.method, disable=disable_tqdm), streams, strict=True):
            result = stream.result()
            self.generations.append(result)
            answers.append(result.text)
            self.cache_hook.add_partial("generate_until", request.args, result.text)
        return answers

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        found = []
        for pair, prompt, answer in tqdm(requests, desc=self.method, disable=disable_tqdm):
            ids = self._cut(prompt, len(answer) if self._cuts_answer else 0)
            result = self.engine.log_likelihood(ids, answer, max_new_tokens=len(answer))
            found.append((result.total, result.is_greedy))
            if pair is not None:
                self.cache_hook.add_partial("loglikelihood", pair, found[-1])
        return found

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts; without a prompt there is nothing to drop, so only for "full".

        Raises:
            InvalidInputError: for any other method.
        """
        if self.method != "full":
            raise InvalidInputError(
                f"{self.method} shortens a prompt, and this task scores whole texts without one: use method=full"
            )
        found = []
        for request in requests:
            (text,) = request.args
            windows = get_rolling_token_windows(
                self.tok_encode(text, add_special_tokens=False), self.prefix_token_id, self.max_length - 1, 1
            )
            pairs = [(None, *make_disjoint_window(window)) for window in windows]
            scores = self._loglikelihood_tokens(pairs, disable_tqdm=disable_tqdm)
            found.append(sum(score for score, _ in scores))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), found[-1])
        return found

    def get_model_info(self) -> dict[str, Any]:
        """For the harness' report."""
        return {
            "target": self.target_model.name,
            "draft": None if self.draft_model is None else self.draft_model.name,
            "method": self.method,
            "config": str(self.config),
            "max_length": self.max_length,
        }

    # ------------------------------------------------------------------ inside

    def _plain(self, prompt: str) -> str:
        """A prompt without a chat template, shortened; one with a template has been shortened before."""
        template = getattr(self.tokenizer, "chat_template", None)
        marks = [token for token in self.tokenizer.all_special_tokens if token] if template else []
        return prompt if any(mark in prompt for mark in marks) else self._shortened(prompt)

    def _shortened(self, prompt: str) -> str:
        if self._compressor is None or self._text_budget is None:
            return prompt
        return shorten(self._compressor, prompt, self._text_budget)

    def _cut(self, ids: list[int], room: int) -> list[int]:
        """The last tokens of a prompt that is too long."""
        most = max(1, self.max_length - room)
        self.truncated += len(ids) > most
        return ids[-most:]
