"""Fuzz: damaged and odd files are refused with a `MergelabError` or work; nothing else, in bounded time and memory.

MERGELAB_FUZZ_EXAMPLES=10000 runs more examples of each property, with another seed every time
(`--hypothesis-seed=` chooses one).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as to_bytes

import mergelab as ml
from mergelab.formats.tools import TOOLS

resource = pytest.importorskip("resource")

EXAMPLES = os.environ.get("MERGELAB_FUZZ_EXAMPLES")
# Most that one example may add to the peak memory of the process, and processor time that it may take (which, unlike
# time on the clock, does not depend on what else the machine does). The files are a few kilobytes.
MEMORY_BOUND = 200 * 2**20
SECONDS_BOUND = 2.0
FORMATS = ("diffusers", "kohya", "comfy", "same", "peft")


def fuzz(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Settings of one property: the same examples every time, unless more are asked for."""
    return settings(
        max_examples=int(EXAMPLES) if EXAMPLES else examples,
        derandomize=EXAMPLES is None,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )


# What every file goes through.


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Fail if the peak memory of the process grows by more than the bound, or it takes more time than the bound."""
    unit = 1 if sys.platform == "darwin" else 1024
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    seconds = time.process_time() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit
    assert grown < MEMORY_BOUND, f"peak memory grew by {grown >> 20} MiB"
    assert seconds < SECONDS_BOUND, f"took {seconds:.1f} s"


def attempt(action: Callable[[], Any]) -> Any:
    """What the action returns; None where it is refused. Any other exception is a failure of the test."""
    try:
        return action()
    except ml.MergelabError as error:
        assert str(error).strip(), "an error without a sentence"
        return None


def exercise(source: Path, base: dict[str, torch.Tensor] | None = None) -> None:
    """Load a file and, if it loads, do everything with it that a user would."""
    with bounded(), tempfile.TemporaryDirectory() as name:
        adapter = attempt(lambda: ml.load(source, base=base))
        diagnosis = attempt(lambda: ml.doctor(source)) if base is None else None
        assert diagnosis is None or (str(diagnosis) and bool(diagnosis.refusal) == (adapter is None))
        if adapter is None:
            return
        folder = Path(name)
        assert str(adapter)
        assert str(adapter.report)
        norm = attempt(adapter.norm)
        for method in ("svd", "ties", "dare"):
            attempt(lambda method=method: ml.merge([adapter, adapter], [0.5, -2.0], method).report.lines())
        attempt(lambda: ml.merge([adapter, adapter], method="linear", space="factors").norm())
        attempt(lambda: str(ml.compare([adapter, adapter])))
        attempt(lambda: adapter.resize(1))
        attempt(lambda: (0.5 * adapter + adapter).norm())
        merged = attempt(lambda: ml.merge([adapter, adapter], method="cat"))
        for format in FORMATS:
            attempt(lambda format=format: adapter.state_dict(format, "float16"))
            for i, written in enumerate((adapter, merged)):
                if written is not None:
                    round_trip(written, folder / f"{format}{i}.safetensors", format)
        for tool in TOOLS:
            attempt(lambda tool=tool: adapter.state_dict(for_=tool))
        if norm is not None:
            assert math.isfinite(norm)


def round_trip(adapter: ml.Adapter, path: Path, format: str) -> None:
    """What is written can be read, and holds the same change; what is refused leaves no file."""
    if attempt(lambda: adapter.save(path, format=format)) is None:
        assert not list(path.parent.glob(f"*{path.name}*")), "a refused write left a file"
        return
    again = ml.load(path)
    for name, layer in adapter.layers.items():
        change = layer.delta_weight().flatten(1)
        found = again.layers.get(name) or again.layers.get(f"model.{name.partition('.')[2]}")
        # A layer of a fused module that is zero throughout has nothing to be written.
        delta = torch.zeros_like(change) if found is None else found.delta_weight().flatten(1)
        if change.isfinite().all():
            torch.testing.assert_close(delta, change, rtol=1e-4, atol=1e-5 * float(change.abs().max()))


# Small valid files.


def matrix(*shape: int) -> torch.Tensor:
    """Numbers of order one that depend on the shape alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(math.prod(shape)))


def kohya() -> bytes:
    """Stable Diffusion 1.5: a linear layer, a convolution, a layer of the text encoder."""
    query = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    text = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    conv = "lora_unet_mid_block_resnets_0_conv1"
    tensors = {
        f"{query}.lora_down.weight": matrix(2, 4),
        f"{query}.lora_up.weight": matrix(6, 2),
        f"{query}.alpha": torch.tensor(1.0),
        f"{text}.lora_down.weight": matrix(1, 3).half(),
        f"{text}.lora_up.weight": matrix(5, 1).half(),
        f"{text}.alpha": torch.tensor(2.0),
        f"{conv}.lora_down.weight": matrix(2, 3, 3, 3),
        f"{conv}.lora_up.weight": matrix(4, 2, 1, 1),
        f"{conv}.alpha": torch.tensor(2.0),
    }
    return to_bytes(tensors, {"ss_network_dim": "2", "ss_base_model_version": "sd_v1", "ss_tag_frequency": "{}"})


def diffusers() -> bytes:
    """Split FLUX layers, a bias, a norm and a text encoder; alphas in the header."""
    block = "transformer.single_transformer_blocks.3"
    tensors = {
        f"{block}.attn.to_q.lora_A.weight": matrix(2, 4),
        f"{block}.attn.to_q.lora_B.weight": matrix(4, 2),
        f"{block}.attn.to_q.lora_B.bias": matrix(4),
        f"{block}.attn.to_k.lora_A.weight": matrix(3, 4),
        f"{block}.attn.to_k.lora_B.weight": matrix(4, 3),
        f"{block}.attn.norm_q.weight": matrix(2),
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight": matrix(1, 4),
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_B.weight": matrix(4, 1),
    }
    config = {"transformer.lora_alpha": 4, "transformer.r": 2, "transformer.alpha_pattern": {"attn.to_k": 1.5}}
    return to_bytes(tensors, {"format": "pt", "lora_adapter_metadata": json.dumps(config)})


def flux() -> bytes:
    """FLUX with fused qkv and linear1, and the layer whose halves are swapped."""
    double, single = "lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_single_blocks_1_linear1"
    final = "lora_unet_final_layer_adaLN_modulation_1"
    tensors = {
        f"{double}.lora_down.weight": matrix(2, 4),
        f"{double}.lora_up.weight": matrix(12, 2),
        f"{double}.alpha": torch.tensor(1.0),
        f"{double}.diff_b": matrix(12),
        f"{single}.lora_down.weight": matrix(2, 4),
        f"{single}.lora_up.weight": matrix(28, 2),
        f"{final}.lora_down.weight": matrix(2, 4),
        f"{final}.lora_up.weight": matrix(8, 2),
    }
    return to_bytes(tensors, {"modelspec.architecture": "flux-1-dev/lora"})


def peft() -> bytes:
    """The weights of a PEFT folder, with a module that was saved whole."""
    tensors = {
        "base_model.model.layers.0.q_proj.lora_A.weight": matrix(2, 4),
        "base_model.model.layers.0.q_proj.lora_B.weight": matrix(6, 2),
        "base_model.model.layers.0.v_proj.lora_A.weight": matrix(3, 4),
        "base_model.model.layers.0.v_proj.lora_B.weight": matrix(6, 3),
        "base_model.model.score.weight": matrix(2, 3),
    }
    return to_bytes(tensors, {"format": "pt"})


def wan() -> bytes:
    """Wan 14B in its original names: attention, a feed-forward layer, a layer beside the blocks."""
    tensors: dict[str, torch.Tensor] = {}
    for module, rows in (("blocks.1.cross_attn.k_img", 4), ("blocks.39.ffn.0", 6), ("time_embedding.0", 4)):
        tensors[f"diffusion_model.{module}.lora_down.weight"] = matrix(2, 4)
        tensors[f"diffusion_model.{module}.lora_up.weight"] = matrix(rows, 2)
        tensors[f"diffusion_model.{module}.diff_b"] = matrix(rows)
    return to_bytes(tensors, {"modelspec.architecture": "wan-2_1-text2video-14b/lora"})


CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "rank_pattern": {"v_proj": 3},
    "alpha_pattern": {"v_proj": 3},
    "use_rslora": False,
    "use_dora": False,
    "target_modules": ["q_proj", "v_proj"],
}
FILES = {"kohya": kohya(), "diffusers": diffusers(), "flux": flux(), "wan": wan(), "peft": peft()}


@dataclass
class File:
    """A safetensors file in parts that can be changed one by one."""

    header: dict[str, Any]
    data: bytes

    @classmethod
    def of(cls, raw: bytes) -> File:
        (length,) = struct.unpack("<Q", raw[:8])
        return cls(json.loads(raw[8 : 8 + length]), raw[8 + length :])

    def raw(self) -> bytes:
        text = json.dumps(self.header).encode("utf-8", "surrogatepass")
        return struct.pack("<Q", len(text)) + text + self.data


def loadable(header: dict[str, Any]) -> bytes:
    """A file in which every tensor has as many bytes as its shape and dtype need: the container is valid."""
    entries, data, offset = {"__metadata__": header.get("__metadata__", {})}, [], 0
    noise = torch.randint(0, 256, (4096,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        bits = DTYPES[entry["dtype"]] * math.prod(entry["shape"])
        size, fill = -(-bits // 8), entry.get("fill")
        if entry["dtype"] == "F64":
            block = torch.full((size // 8,), 1e300, dtype=torch.float64).numpy().tobytes()
        elif entry["dtype"] == "F32":
            block = (matrix(size // 4) if fill is None else torch.full((size // 4,), fill)).numpy().tobytes()
        elif entry["dtype"] == "F16":
            block = matrix(size // 2).half().numpy().tobytes()
        else:
            block = bytes(noise.repeat(size // 4096 + 1)[:size].tolist())
        entries[key] = {"dtype": entry["dtype"], "shape": entry["shape"], "data_offsets": [offset, offset + size]}
        data.append(block)
        offset += size
    return File(entries, b"".join(data)).raw()


def write(folder: str, raw: bytes, config: str | None = None) -> Path:
    """The file; with a config the PEFT folder that holds it."""
    if config is None:
        path = Path(folder) / "file.safetensors"
        path.write_bytes(raw)
        return path
    (Path(folder) / "adapter_model.safetensors").write_bytes(raw)
    (Path(folder) / "adapter_config.json").write_text(config, encoding="utf-8", errors="surrogatepass")
    return Path(folder)


def check(raw: bytes, config: str | None = None) -> None:
    """The property: a file, or a PEFT folder, is refused with one sentence or works."""
    with tempfile.TemporaryDirectory() as folder:
        exercise(write(folder, raw, config))


# What is done to them. Bits per number of every dtype that a safetensors file can name.
DTYPES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"), 8),
    "F4": 4,
}
LEAVES = (
    *(".lora_A.weight", ".lora_B.weight", ".lora_A.default.weight", ".lora_B.bias", ".lora_down.weight"),
    *(
        ".lora_up.weight",
        ".lora_mid.weight",
        ".alpha",
        ".diff_b",
        ".lora.down.weight",
        ".lora.up.weight",
        "_lora.alpha",
    ),
    *(".dora_scale", ".hada_w1_a", ".lokr_w1", ".diff", ".weight", ".scale.set_weight", "", "\n"),
    *(".hada_w2_b", ".hada_t1", ".lokr_w1_b", ".lokr_w2_a", ".lokr_t2", ".oft_blocks", ".rescale", ".a1.weight"),
    *(".b2.weight", ".on_input", ".oft_R.weight", ".boft_R", ".boft_s", ".ia3_l", ".lora_magnitude_vector"),
    *(".scalar", ".w_norm", ".b_norm", ".oft_R.default.weight", ".lora_magnitude_vector.default.weight"),
)
MODULES = (
    *("lora_unet_conv_in", "lora_unet_foo_bar", "lora_unet_single_blocks_1_linear1", "lora_te_foo", "lora_te3_"),
    *("lora_unet_input_blocks_4_1_proj_in", "lora_unet_input_blocks_0_0_op", "lora_unet_output_blocks_2_1_conv"),
    *(
        "unet.conv_in",
        "unet",
        "unet.",
        "",
        ".",
        "transformer.proj_out",
        "transformer.single_transformer_blocks.3.attn.to_v",
    ),
    *("transformer.single_transformer_blocks.3.proj_mlp", "transformer.transformer_blocks.0.attn.to_q"),
    *("transformer.norm_out.linear", "double_blocks.0.img_attn.qkv", "diffusion_model.double_blocks.0.txt_attn.qkv"),
    *("double_blocks.0.processor.qkv_lora1.down.weight", "single_blocks.0.processor.qkv_lora.up.weight"),
    *("base_model.model.single_blocks.7.norm.query_norm", "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q"),
    *("transformer._orig_mod.module.transformer.proj_out", "lora_te_0_transformer_module_text_model", "module." * 60),
    *("lora_unet_" + "module_" * 60, "lora_unet_" + "transformer_" * 30 + "blocks_0", "model.unet.__orig_mod_conv_in"),
    *("diffusion_model.layers.0.attention.qkv", "lora_unet_layers_1_feed_forward_w1", "blocks.0.self_attn.q"),
    *("diffusion_model.double_blocks.0.img_attn.qkv.1", "diffusion_model.single_blocks.0.linear1.9", "pipe.dit.x"),
    *("transformer.transformer_blocks.0.attn.to_qkv", "transformer_blocks.1.img_mlp.net.0.proj", "lora_unet__blocks_0"),
    *(
        "joint_blocks.3.x_block.attn.qkv",
        "diffusion_model.txtfusion.layerwise_blocks.0.attn.wq",
        "t5.encoder.block.0.x",
    ),
    *("clip_l.text_model.encoder.layers.0.mlp.fc1", "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.x"),
    *("bundle_emb.x", "<s1>", "emb_params", "up_blocks.0.resnets.0.conv1", "text_encoder.x", "model.x", "lycoris_x"),
    *(f"unet.input_blocks.{'9' * 5000}.1.proj_in", f"unet.down_blocks.0.transformer_blocks.{'9' * 5000}.attn1.to_q"),
    *("diffusion_model." * 1500 + "x", "lora_unet_" + "conv_in_" * 2000, "lora_unet_single_blocks_2_linear2"),
    *("unet.up_blocks.9.attentions.9.transformer_blocks.9.attn2.to_k", "mid_block.attentions.0.to_out"),
)
KEYS = st.builds(str.__add__, st.sampled_from(MODULES), st.sampled_from(LEAVES))
SIZES = st.sampled_from([0, 1, 2, 3, 4, 8, 12])
SHAPES = st.lists(SIZES, max_size=5).filter(lambda shape: math.prod(shape) <= 2000)
ODD_NUMBERS = st.sampled_from([-1, 0, 2**31, 2**32, 2**62, 2**63, 2**64, 10**30, 1.5, True, None, "4", [], {}])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(),
    st.sampled_from(
        [10**30, 10**400, -(10**400), 1e300, 1e-300, 3e38, 1e39, "", "x", "1", "(", "a{99999999999}", "\ud800"]
    ),
    st.text(max_size=6),
)
PATTERNS = st.sampled_from(
    ["", "(", ".*", "to_q", "v_proj", "^to_k", "a{99999999999}", "(?i)x", "[[a]", "\\", "*", "\n"]
)
JSON_VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PATTERNS | st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
PATTERN_VALUES = st.dictionaries(
    PATTERNS, st.sampled_from([0, 1, 2.5, -1, 10**400, None, "x", True, 1e300]), max_size=3
)
FIELDS = st.sampled_from([*CONFIG, "bias", "modules_to_save", "fan_in_fan_out", "layers_to_transform", ""])
ODD_TEXT = st.sampled_from(
    [
        "",
        "{",
        "null",
        "[]",
        "1",
        '"x"',
        "NaN",
        "[" * 100_000,
        "{}" * 2,
        '{"": {}}',
        '{"a": ' * 5000,
        "\ufeff{}",
        "\0",
        "9" * 5000,
    ]
)
CONFIG_TEXTS = st.one_of(
    st.dictionaries(FIELDS, JSON_VALUES | PATTERN_VALUES, max_size=4).map(lambda odd: json.dumps({**CONFIG, **odd})),
    JSON_VALUES.map(json.dumps),
    ODD_TEXT,
)
HEADER_TEXTS = st.one_of(
    st.dictionaries(
        st.builds(
            "{}{}".format, st.sampled_from(["transformer.", "unet.", "text_encoder.", "model.", ".", ""]), FIELDS
        ),
        JSON_VALUES | PATTERN_VALUES,
        max_size=5,
    ).map(json.dumps),
    JSON_VALUES.map(json.dumps),
    ODD_TEXT,
)

METADATA_KEYS = (
    *("modelspec.architecture", "modelspec.title", "modelspec.trigger_phrase", "ss_base_model_version"),
    *("ss_network_dim", "mergelab.component", "mergelab", "format", "x"),
)


def tensor_names(header: dict[str, Any]) -> list[str]:
    """The keys of a header that are tensors."""
    return [key for key in header if key != "__metadata__"]


def module_of(key: str) -> str:
    """The key without its leaf."""
    return key.split(".lora_")[0].removesuffix(".alpha").removesuffix(".diff_b")


def renamed(draw: st.DrawFn, key: str) -> str:
    """Another key: a new one, or one with another module or another leaf."""
    module, dot, leaf = key.rpartition(draw(st.sampled_from([".", "."])))
    return draw(
        st.one_of(
            KEYS,
            st.sampled_from(LEAVES).map(lambda new: key.split(".lora_")[0] + new),
            st.sampled_from(MODULES).map(lambda new: f"{new}.lora_{key.rpartition('.lora_')[2]}"),
            st.text(max_size=8).map(lambda new: new + dot + leaf),
            st.sampled_from(["\n", "\0", "é", " ", "9" * 5000]).map(lambda new: module + new + dot + leaf),
        )
    )


def change_entry(draw: st.DrawFn, header: dict[str, Any]) -> None:
    """Change the name, the shape or the dtype of one tensor, copy it or leave it out; the container stays valid."""
    names = tensor_names(header)
    if not names:
        return
    key = draw(st.sampled_from(names))
    kinds = ["rename", "copy", "delete", "shape", "shapes", "dtype", "dtypes", "fill", "module", "module", "rank"]
    kind = draw(st.sampled_from(kinds))
    if kind in ("rename", "copy"):
        entry = header[key] if kind == "copy" else header.pop(key)
        header[renamed(draw, key)] = dict(entry)
    elif kind == "delete":
        del header[key]
    elif kind == "module":
        # All tensors of one module get another name: they stay a layer.
        module, new = module_of(key), draw(st.sampled_from(MODULES))
        for name in names:
            if module_of(name) == module:
                header[new + name.removeprefix(module)] = header.pop(name)
    elif kind == "rank":
        # Both factors of one module get another rank.
        module, rank = module_of(key), draw(st.sampled_from([1, 2, 5, 16]))
        for name in names:
            if module_of(name) == module and len(header[name]["shape"]) > 1:
                header[name]["shape"][int(name.endswith(("lora_up.weight", "lora_B.weight")))] = rank
    elif kind == "fill":
        header[key]["fill"] = draw(st.sampled_from([0.0, -1.0, 1e30, 3e38, 1e-40, math.nan, math.inf]))
    elif kind == "shape":
        header[key]["shape"] = draw(SHAPES)
    elif kind == "shapes":
        # One size everywhere where it stands: factors stay together, other parts of a fused layer do not.
        old, new = draw(st.sampled_from([2, 3, 4, 6, 12, 28])), draw(SIZES)
        for name in names:
            if draw(st.booleans()):
                header[name]["shape"] = [new if size == old else size for size in header[name]["shape"]]
    else:
        dtype = draw(st.sampled_from(list(DTYPES)))
        for name in names if kind == "dtypes" else [key]:
            header[name]["dtype"] = dtype


def change_header(draw: st.DrawFn, header: dict[str, Any]) -> None:
    """Change one entry to what no writer would write."""
    key = draw(st.sampled_from(tensor_names(header) or ["x"]))
    entry = header.get(key)
    if not isinstance(entry, dict):
        entry = header[key] = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    kind = draw(st.sampled_from(["shape", "offsets", "dtype", "entry", "metadata", "field"]))
    if kind == "shape":
        entry["shape"] = draw(st.lists(SIZES | ODD_NUMBERS, max_size=4) | ODD_NUMBERS)
    elif kind == "offsets":
        entry["data_offsets"] = draw(st.lists(st.integers(0, 400) | ODD_NUMBERS, max_size=3) | ODD_NUMBERS)
    elif kind == "dtype":
        entry["dtype"] = draw(st.sampled_from([*DTYPES, "f32", "F33", "", "F128", None, 4]))
    elif kind == "entry":
        header[key] = draw(JSON_VALUES)
    elif kind == "metadata":
        header["__metadata__"] = draw(JSON_VALUES)
    else:
        entry[draw(st.sampled_from(["dtype", "shape", "data_offsets", "more"]))] = draw(JSON_VALUES)


def change_bytes(draw: st.DrawFn, raw: bytearray) -> bytearray:
    """Change the length of the header, some bytes, or the length of the file."""
    kind = draw(st.sampled_from(["length", "bytes", "truncate", "append", "insert"]))
    position = draw(st.integers(0, max(0, len(raw) - 1)))
    if kind == "length":
        raw[:8] = struct.pack("<Q", draw(st.sampled_from([0, 1, 7, len(raw), 10**8, 2**31, 2**63, 2**64 - 1])))
    elif kind == "bytes":
        noise = draw(st.binary(min_size=1, max_size=4))
        raw[position : position + len(noise)] = noise
    elif kind == "truncate":
        raw = raw[:position]
    elif kind == "append":
        raw += draw(st.binary(min_size=1, max_size=64))
    else:
        raw[position:position] = draw(st.binary(min_size=1, max_size=16))
    return raw


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, bytes]:
    """A file whose container is damaged, and the dialect that it had."""
    dialect = draw(st.sampled_from(list(FILES)))
    file = File.of(FILES[dialect])
    for _ in range(draw(st.integers(0, 2))):
        change_header(draw, file.header)
    raw = bytearray(file.raw())
    for _ in range(draw(st.integers(0, 2))):
        raw = change_bytes(draw, raw)
    return dialect, bytes(raw)


@st.composite
def odd(draw: st.DrawFn) -> tuple[str, bytes]:
    """A valid container with tensors that do not fit together, and the dialect that it had."""
    dialect = draw(st.sampled_from(list(FILES)))
    header = File.of(FILES[dialect]).header
    for _ in range(draw(st.integers(1, 4))):
        change_entry(draw, header)
    return dialect, loadable(header)


@pytest.fixture(scope="module", autouse=True)
def valid_files() -> Iterator[None]:
    """The valid files themselves load and go through everything; what is allocated and imported once is not counted."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        ml.load(write(folder, FILES["flux"])).save(Path(folder) / "out.safetensors")
        str(ml.compare([ml.load(write(folder, FILES["flux"]))] * 2))
        str(ml.doctor(write(folder, FILES["flux"])))
    for dialect, raw in FILES.items():
        with tempfile.TemporaryDirectory() as folder:
            path = write(folder, raw, json.dumps(CONFIG) if dialect == "peft" else None)
            assert ml.load(path).layers
            exercise(path)
    yield
    torch.set_num_threads(threads)


@fuzz(250)
@given(damaged())
def test_damaged_containers(example: tuple[str, bytes]) -> None:
    """Whatever the bytes are, a file is refused with one sentence or works."""
    dialect, raw = example
    check(raw, json.dumps(CONFIG) if dialect == "peft" else None)


@fuzz(250)
@given(odd())
def test_odd_tensors(example: tuple[str, bytes]) -> None:
    """Keys, shapes and dtypes that do not fit together are refused with one sentence, or work and can be written."""
    dialect, raw = example
    check(raw, json.dumps(CONFIG) if dialect == "peft" else None)


@fuzz(150)
@given(CONFIG_TEXTS)
def test_odd_peft_config(config: str) -> None:
    """Whatever `adapter_config.json` holds, the folder is refused with one sentence or works."""
    check(FILES["peft"], config)


@fuzz(100)
@given(HEADER_TEXTS)
def test_odd_header_config(text: str) -> None:
    """Whatever `lora_adapter_metadata` holds, the file is refused with one sentence or works."""
    file = File.of(FILES["diffusers"])
    file.header["__metadata__"]["lora_adapter_metadata"] = text
    check(file.raw())


@fuzz(40)
@given(
    st.sampled_from(list(FILES)),
    st.dictionaries(st.sampled_from(METADATA_KEYS), st.text(max_size=12), min_size=1, max_size=3),
)
def test_odd_metadata(dialect: str, metadata: dict[str, str]) -> None:
    """The other strings of the header are refused with one sentence or do no harm."""
    file = File.of(FILES[dialect])
    file.header["__metadata__"].update(metadata)
    check(file.raw(), json.dumps(CONFIG) if dialect == "peft" else None)


# What was found, by these properties or by reading, and has to stay mended.


def layer(
    module: str, down: Sequence[int] = (2, 4), up: Sequence[int] = (4, 2), dtype: str = "F32", fill: float | None = None
) -> dict[str, Any]:
    """The header's entries of one layer."""
    fields = {"dtype": dtype, "fill": fill}
    return {
        f"{module}.lora_A.weight": {**fields, "shape": list(down)},
        f"{module}.lora_B.weight": {**fields, "shape": list(up)},
    }


def one(key: str, *shape: int, dtype: str = "F32", fill: float | None = None) -> dict[str, Any]:
    """The header's entry of one tensor."""
    return {key: {"dtype": dtype, "shape": list(shape), "fill": fill}}


def kohya_mid(down: Sequence[int], mid: Sequence[int]) -> dict[str, Any]:
    """A convolution with a Tucker core."""
    module = "lora_unet_mid_block_resnets_0_conv1"
    return {
        **one(f"{module}.lora_down.weight", *down),
        **one(f"{module}.lora_up.weight", 4, 2, 1, 1),
        **one(f"{module}.lora_mid.weight", *mid),
    }


BLOCK = "transformer.single_transformer_blocks.3"
CONV = "unet.conv_in"
REGRESSIONS: dict[str, dict[str, Any]] = {
    "rank 0 with an alpha": {
        **layer(CONV, (0, 4), (4, 0)),
        "__metadata__": {"lora_adapter_metadata": '{"unet.lora_alpha": 1}'},
    },
    "Tucker core of rank 0": kohya_mid((0, 4, 1, 1), (2, 0, 3, 3)),
    "Tucker core with a scalar": kohya_mid((), (2, 2, 3, 3)),
    "long number in an sgm name": layer(f"unet.input_blocks.{'9' * 5000}.1.proj_in"),
    "long number in a block": layer(f"unet.down_blocks.0.transformer_blocks.{'9' * 5000}.attn1.to_q"),
    "prefix again and again": layer("diffusion_model." * 2000 + "x"),
    "float8 in a fused layer": layer("diffusion_model.single_blocks.1.linear1", up=(28, 2), dtype="F8_E4M3"),
    "float8 beside float32": {**layer(f"{BLOCK}.attn.to_q"), **layer(f"{BLOCK}.attn.to_k", dtype="F8_E4M3")},
    "float8 in an extra": {**layer(CONV), **one("emb_params", 4, dtype="F8_E5M2")},
    "float8 without mantissa": layer(CONV, dtype="F8_E8M0"),
    "float4": layer(CONV, dtype="F4"),
    "float4 in an extra": {**layer(CONV), **one("emb_params", 4, dtype="F4")},
    "float4 in a norm": {**layer(f"{BLOCK}.attn.to_q"), **one(f"{BLOCK}.attn.norm_q.weight", 4, dtype="F4")},
    "float4 in an alpha": {**layer(CONV), **one(f"{CONV}.alpha", 4, dtype="F4")},
    "complex in an extra": {**layer(CONV), **one("emb_params", 4, dtype="C64")},
    "alpha too large for float32": {**layer(CONV), **one(f"{CONV}.alpha", dtype="F64")},
    "bias of another length": {**layer(CONV), **one(f"{CONV}.lora_B.bias", 3)},
    "bias of one part": {
        **layer(f"{BLOCK}.attn.to_k"),
        **layer(f"{BLOCK}.proj_mlp", up=(12, 2)),
        **one(f"{BLOCK}.proj_mlp.lora_B.bias", 12),
    },
    "bias of another part": {**layer(f"{BLOCK}.attn.to_q"), **one(f"{BLOCK}.proj_mlp.lora_B.bias", 12)},
    "bias alone of a fused layer": {**layer(CONV), **one("diffusion_model.single_blocks.1.linear1.diff_b", 28)},
    "parts of two widths": {**layer(f"{BLOCK}.attn.to_q"), **layer(f"{BLOCK}.attn.to_k", (2, 5))},
    "part of other height": {**layer(f"{BLOCK}.attn.to_q"), **layer(f"{BLOCK}.attn.to_k", up=(5, 2))},
    "part with a kernel": {**layer(f"{BLOCK}.attn.to_q"), **layer(f"{BLOCK}.attn.to_k", (2, 4, 1, 1), (4, 2, 1, 1))},
    "BFL layer with a kernel": layer("transformer.proj_out", (2, 3, 3, 3), (4, 2, 1, 1)),
    "odd half": layer("transformer.norm_out.linear", up=(5, 2)),
    "T5 with CLIP's names": {
        **layer("text_encoder_2.encoder.block.0.layer.0.SelfAttention.q"),
        **layer("text_encoder_2.layers.0.v_proj"),
    },
    "product above float32": layer(CONV, fill=1e30),
    "factor near the end of float32": layer(CONV, fill=3e38),
    "factor near zero": layer(CONV, fill=1e-40),
    "factors at both ends of float32": {
        **one(f"{CONV}.lora_A.weight", 2, 4, fill=3e38),
        **one(f"{CONV}.lora_B.weight", 4, 2, fill=1e-40),
    },
}


@pytest.mark.parametrize("name", REGRESSIONS)
def test_found_before(name: str) -> None:
    """Tensors that once came out as another exception, or as another change."""
    check(loadable(REGRESSIONS[name]))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"lora_alpha": 1' + "0" * 400 + "}", '{"alpha_pattern": [1]}'])
def test_found_before_in_peft_config(text: str) -> None:
    """Configs that once came out as another exception."""
    check(FILES["peft"], text)


@pytest.mark.parametrize("pattern", ["a{99999999999}", "(" * 3000 + ")" * 3000, "[[a]", "(", "*", "\\"])
def test_found_before_in_patterns(pattern: str) -> None:
    """Patterns that are no regular expressions, or make Python warn."""
    check(FILES["peft"], json.dumps({"lora_alpha": 4, "alpha_pattern": {pattern: 1}}))


def test_layers_of_no_known_model_in_a_folder() -> None:
    """Layers of an unknown model beside those of a known one are read again from a PEFT folder."""
    check(loadable({**layer("base_model.model.layers.0.q_proj"), **layer("transformer.proj_out")}), json.dumps(CONFIG))
