"""What mergelab writes, read by the real tools: diffusers' pipelines and PEFT give every layer the same change.

Base weights play no part in a layer's change, so the models of real width (SD 1.5, FLUX.1-dev) are never filled:
memory that nobody touches costs nothing. The small SDXL has real weights, and there the pictures are compared, too.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import mergelab as ml
from mergelab import Adapter, LoraLayer

FILES = ("pokemon_diffusers", "pokemon_kohya", "catundchat_attnprocs")
RANKS, SCALINGS = (4, 2, 3, 1), (1.0, 0.5, 2.0, 0.7, 1.0)

SD15_UNET = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SDXL_UNET = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (32, 64, 64),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 3),
    "cross_attention_dim": 64,
    "attention_head_dim": (2, 4, 4),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 32,
    "norm_num_groups": 16,
}
# FLUX.1-dev but for the number of blocks, 19 and 38 there.
FLUX_DEV = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 1,
    "num_single_layers": 2,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
}


FLUX_SMALL = {
    **FLUX_DEV,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "axes_dims_rope": (4, 4, 8),
    "joint_attention_dim": 32,
    "pooled_projection_dim": 16,
}


class Complaints(logging.Handler):
    """What a library logs at level WARNING or above: diffusers and PEFT report keys that they drop only there."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """Warnings that diffusers logs during the test."""
    handler, logger = Complaints(), logging.getLogger("diffusers")
    logger.addHandler(handler)
    yield handler.messages
    logger.removeHandler(handler)


Delta = Callable[[], Tensor]


def injected(components: Mapping[str, nn.Module]) -> dict[str, Delta]:
    """The change that PEFT applies to each module of a pipeline, scaling included, by canonical name.

    Each is computed when it is asked for: all of a model of real width at once would fill gigabytes.
    """
    deltas = {}
    for component, model in components.items():
        for path, module in model.named_modules():
            if adapters := getattr(module, "active_adapters", None):
                if not hasattr(module, "get_delta_weight"):
                    continue
                # transformers 5 has no `text_model.` in CLIPTextModel; files and canonical names always do.
                flat = component.startswith("text_encoder") and not path.startswith("text_model.")
                name = f"{component}.{'text_model.' if flat else ''}{path}"
                (adapter,) = adapters
                deltas[name] = partial(module.get_delta_weight, adapter)
    return deltas


@torch.no_grad()
def assert_deltas(found: Mapping[str, Delta], adapter: Adapter) -> None:
    """The same layers, none missing and none more, with the same changes to 1e-6."""
    assert set(found) == set(adapter.layers)
    for name, layer in adapter.layers.items():
        expected = layer.delta_weight()
        error = float(torch.dist(found[name]().reshape(expected.shape), expected) / expected.norm())
        assert error <= 1e-6, (name, error)


def read_by(pipeline: StableDiffusionPipeline | FluxPipeline, path: Path) -> dict[str, Delta]:
    """The changes that a pipeline applies after `load_lora_weights`; the pipeline is left as it was."""
    names = ("unet", "transformer", "text_encoder", "text_encoder_2")
    models = {name: model for name in names if (model := getattr(pipeline, name, None)) is not None}
    try:
        pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name="merged")
        return injected(models)
    finally:
        pipeline.unload_lora_weights()


def random_layer(shape: tuple[int, ...], rank: int, scaling: float, generator: torch.Generator) -> LoraLayer:
    down = torch.randn(rank, *shape[1:], generator=generator)
    up = torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=generator)
    return LoraLayer(down * 0.1, up * 0.1, scaling)


def random_adapter(shapes: Mapping[str, tuple[int, ...]], architecture: str) -> Adapter:
    """An adapter with ranks and scalings that differ from layer to layer."""
    generator = torch.Generator().manual_seed(0)
    layers = {
        name: random_layer(shape, min(RANKS[i % 4], *shape[:2]), SCALINGS[i % 5], generator)
        for i, (name, shape) in enumerate(shapes.items())
    }
    return Adapter(layers, architecture=architecture, source="random")


def weights_of(component: str, model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Every linear and convolution layer of a model, by canonical name."""
    return {
        f"{component}.{path}": tuple(module.weight.shape)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


def text_weights(component: str, model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The layers of a CLIP encoder that LoRA trainers train, by canonical name."""
    found = {}
    for name, shape in weights_of(component, model).items():
        path = name.removeprefix(f"{component}.").removeprefix("text_model.")
        if path.startswith("encoder."):
            found[f"{component}.text_model.{path}"] = shape
    return found


def clip(kind: type[CLIPTextModel], layers: int = 3) -> nn.Module:
    config = CLIPTextConfig(
        vocab_size=16,
        hidden_size=32,
        intermediate_size=64,
        projection_dim=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    torch.manual_seed(0)
    return kind(config).eval()


def tokenizer() -> CLIPTokenizer:
    words = ["<|startoftext|>", "<|endoftext|>", *"abcde", *(f"{letter}</w>" for letter in "abcde")]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=16)


# (a) Stable Diffusion 1.5: merges of real adapters.


@pytest.fixture(scope="module")
def real(shared: Path) -> list[Adapter]:
    paths = [shared / "loras" / f"sd15_{name}.safetensors" for name in FILES]
    if not all(path.is_file() for path in paths):
        pytest.skip("the real adapters are not here")
    return [ml.load(path) for path in paths]


@pytest.fixture(scope="module")
def sd15() -> StableDiffusionPipeline:
    """A pipeline around the UNet of SD 1.5, without weights."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15_UNET)
    unet.to_empty(device="cpu")
    return StableDiffusionPipeline(
        vae=None,
        text_encoder=clip(CLIPTextModel, layers=12),
        tokenizer=tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


METHODS: dict[str, dict[str, object]] = {
    "cat": {"method": "cat"},
    "svd": {"method": "svd", "rank": 6},
    "ties": {"method": "ties", "density": 0.5},
    "ties-core": {"method": "ties", "density": 0.5, "space": "core"},
    "dare": {"method": "dare", "density": 0.5},
    "svd-budget": {"method": "svd", "rank": ml.RankBudget(mean=5)},
}


@pytest.fixture(scope="module", params=METHODS)
def merge_of_real(request: pytest.FixtureRequest, real: list[Adapter]) -> Adapter:
    return ml.merge(real, [0.7, 1.0, -0.4], progress=False, **METHODS[request.param])


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_merges_load_in_stable_diffusion(
    merge_of_real: Adapter, sd15: StableDiffusionPipeline, tmp_path: Path, complaints: list[str], format: str
) -> None:
    """A merge of trained adapters, by each kind of method, has in the pipeline exactly the changes it has here."""
    path = merge_of_real.save(tmp_path / "merged.safetensors", format=format)
    assert_deltas(read_by(sd15, path), merge_of_real)
    assert [m for m in complaints if "No LoRA keys associated to CLIPTextModel" not in m] == []


# (b) SDXL, small, every linear and convolution layer, both text encoders.


@pytest.fixture(scope="module")
def sdxl() -> StableDiffusionXLPipeline:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**SDXL_UNET).eval()
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=32,
    ).eval()
    return sdxl_pipeline(unet, vae)


@pytest.fixture(scope="module")
def sdxl_adapter(sdxl: StableDiffusionXLPipeline) -> Adapter:
    shapes = weights_of("unet", sdxl.unet)
    for component in ("text_encoder", "text_encoder_2"):
        shapes |= text_weights(component, getattr(sdxl, component))
    adapter = random_adapter(shapes, "sdxl")
    assert len(set(adapter.ranks.values())) == 4
    assert any(len(layer.shape) == 4 and layer.shape[2] == 3 for layer in adapter.layers.values())
    return adapter


def without(adapter: Adapter, *prefixes: str) -> Adapter:
    layers = {name: layer for name, layer in adapter.layers.items() if not name.startswith(prefixes)}
    return Adapter(layers, architecture=adapter.architecture, source=adapter.source)


def uniform(adapter: Adapter) -> Adapter:
    """The same layers at rank 2 throughout, which is written without `lora_adapter_metadata`."""
    generator = torch.Generator().manual_seed(1)
    layers = {name: random_layer(layer.shape, 2, layer.scaling, generator) for name, layer in adapter.layers.items()}
    return Adapter(layers, architecture=adapter.architecture, source=adapter.source)


@pytest.mark.parametrize("ranks", ["mixed", "uniform"])
@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_sdxl_with_text_encoders(
    sdxl: StableDiffusionXLPipeline,
    sdxl_adapter: Adapter,
    tmp_path: Path,
    complaints: list[str],
    format: str,
    ranks: str,
) -> None:
    """UNet with convolutions and both text encoders, at mixed and at equal ranks and scalings, in both formats."""
    adapter = sdxl_adapter if ranks == "mixed" else uniform(sdxl_adapter)
    path = adapter.save(tmp_path / "merged.safetensors", format=format)
    assert_deltas(read_by(sdxl, path), adapter)
    assert complaints == []


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_sdxl_unet_alone(
    sdxl: StableDiffusionXLPipeline, sdxl_adapter: Adapter, tmp_path: Path, complaints: list[str], format: str
) -> None:
    """The UNet's layers alone, at mixed ranks."""
    adapter = sdxl_adapter.select("unet")
    path = adapter.save(tmp_path / "merged.safetensors", format=format)
    assert_deltas(read_by(sdxl, path), adapter)
    assert [m for m in complaints if "No LoRA keys associated to CLIPTextModel" not in m] == []


# diffusers' scheduler makes a NumPy array of a tensor in a way that NumPy 2 deprecates.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
# PEFT warns of a second adapter in one model, which is what is meant here.
@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute in the model:UserWarning")
def test_strength_means_strength(sdxl: StableDiffusionXLPipeline, sdxl_adapter: Adapter, tmp_path: Path) -> None:
    """The merge at 1.0 gives the picture that diffusers gives with both inputs loaded at their weights."""
    other = uniform(sdxl_adapter).select("unet")
    adapters = {"style": sdxl_adapter, "subject": other}
    weights = [0.7, -0.4]
    for name, adapter in adapters.items():
        adapter.save(tmp_path / f"{name}.safetensors", format="kohya")
    ml.merge(list(adapters.values()), weights, method="cat", progress=False).save(tmp_path / "merged.safetensors")

    def latents() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        call = {"width": 32, "height": 32, "num_inference_steps": 2, "output_type": "latent"}
        sdxl.set_progress_bar_config(disable=True)
        return sdxl("a b c", generator=generator, **call).images

    plain = latents()
    try:
        for name in adapters:
            sdxl.load_lora_weights(tmp_path, weight_name=f"{name}.safetensors", adapter_name=name)
        sdxl.set_adapters(list(adapters), weights)
        stacked = latents()
        sdxl.unload_lora_weights()
        sdxl.load_lora_weights(tmp_path, weight_name="merged.safetensors", adapter_name="merged")
        merged = latents()
    finally:
        sdxl.unload_lora_weights()
    assert (stacked - plain).norm() > 1e-3 * plain.norm()
    assert (merged - stacked).norm() < 1e-4 * stacked.norm()


# (c) FLUX, small; for kohya's files in its real width, which diffusers' conversion takes for granted.


def sdxl_pipeline(unet: UNet2DConditionModel, vae: AutoencoderKL | None = None) -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=clip(CLIPTextModel),
        text_encoder_2=clip(CLIPTextModelWithProjection),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(),
    )


def flux_pipeline(config: Mapping[str, object]) -> FluxPipeline:
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(**config)
    transformer.to_empty(device="cpu")
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=clip(CLIPTextModel),
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
    )


@pytest.fixture(scope="module")
def flux() -> FluxPipeline:
    return flux_pipeline(FLUX_SMALL)


@pytest.fixture(scope="module")
def flux_dev() -> FluxPipeline:
    return flux_pipeline(FLUX_DEV)


# Layers that diffusers' reading of kohya's files drops for want of a prefix (measured with 0.42).
TOP_LEVEL = ("x_embedder", "context_embedder", "time_text_embed.", "norm_out.", "proj_out")


def flux_layers(flux: FluxPipeline) -> Adapter:
    """Every linear layer of the transformer, and of CLIP."""
    shapes = weights_of("transformer", flux.transformer) | text_weights("text_encoder", flux.text_encoder)
    adapter = random_adapter(shapes, "flux")
    proj_out = {adapter.ranks[name] for name in adapter.ranks if name.endswith("proj_out")}
    assert len(proj_out) > 1, "the top-level proj_out and those of the blocks must differ in rank"
    return adapter


@pytest.fixture(scope="module")
def flux_adapter(flux: FluxPipeline) -> Adapter:
    return flux_layers(flux)


@pytest.fixture(scope="module")
def flux_dev_adapter(flux_dev: FluxPipeline) -> Adapter:
    return flux_layers(flux_dev)


def test_flux_in_the_format_of_diffusers(
    flux: FluxPipeline, flux_adapter: Adapter, tmp_path: Path, complaints: list[str]
) -> None:
    """All kinds of layers at mixed ranks; PEFT would match "proj_out" at the end of any name, were it not anchored."""
    path = flux_adapter.save(tmp_path / "merged.safetensors")
    assert_deltas(read_by(flux, path), flux_adapter)
    assert complaints == []


def test_flux_at_one_rank(flux: FluxPipeline, flux_adapter: Adapter, tmp_path: Path, complaints: list[str]) -> None:
    """The same at one rank, with the scalings folded in and no metadata."""
    adapter = uniform(flux_adapter)
    path = adapter.save(tmp_path / "merged.safetensors")
    assert_deltas(read_by(flux, path), adapter)
    assert complaints == []


def test_flux_without_some_blocks(
    flux: FluxPipeline, flux_adapter: Adapter, tmp_path: Path, complaints: list[str]
) -> None:
    """The top-level proj_out is not taken for that of a block which the file leaves alone; PEFT warns of nothing."""
    adapter = without(flux_adapter, "transformer.single_transformer_blocks.1.")
    path = adapter.save(tmp_path / "merged.safetensors")
    assert_deltas(read_by(flux, path), adapter)
    assert complaints == []


def test_flux_in_the_format_of_kohya(
    flux_dev: FluxPipeline, flux_dev_adapter: Adapter, tmp_path: Path, complaints: list[str]
) -> None:
    """Fused qkv and linear1 of parts with ranks and scalings of their own: diffusers' conversion splits them again."""
    adapter = without(flux_dev_adapter, *(f"transformer.{path}" for path in TOP_LEVEL))
    path = adapter.save(tmp_path / "merged.safetensors", format="kohya")
    assert_deltas(read_by(flux_dev, path), adapter)
    assert complaints == []


def test_flux_with_t5_loads(flux_dev: FluxPipeline, flux_dev_adapter: Adapter, tmp_path: Path) -> None:
    """Layers of T5, which diffusers does not use, do not disturb the others in either format."""
    generator = torch.Generator().manual_seed(2)
    own = {
        name: layer
        for name, layer in flux_dev_adapter.layers.items()
        if re.search(r"^text_|attn\.(to|add)_[qkv]|proj_mlp", name)
    }
    base = Adapter(own, architecture="flux", source="random")
    t5 = {"text_encoder_2.encoder.block.0.layer.0.SelfAttention.q": random_layer((64, 64), 3, 0.5, generator)}
    adapter = Adapter({**base.layers, **t5}, architecture="flux", source="random")
    for format in ("diffusers", "kohya"):
        path = adapter.save(tmp_path / "merged.safetensors", format=format)
        assert_deltas(read_by(flux_dev, path), base)


# (d) PEFT's own folders.


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k = nn.Linear(12, 10, bias=False), nn.Linear(12, 10)
        self.proj_out = nn.Linear(10, 12)


class Small(nn.Module):
    """Linear and convolution layers, whose names end alike at different depths."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.proj_out = nn.Linear(12, 5)


def peft_deltas(model: PeftModel, component: str) -> dict[str, Delta]:
    return injected({component: model.base_model.model})


@pytest.mark.parametrize("build", [Small, lambda: UNet2DConditionModel(**SDXL_UNET)], ids=["module", "unet"])
def test_folders_load_in_peft(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    """A folder with mixed ranks and alphas has in `PeftModel.from_pretrained` the same changes."""
    model = build()
    component = "unet" if isinstance(model, UNet2DConditionModel) else "model"
    adapter = random_adapter(weights_of(component, model), "sdxl" if component == "unet" else "")
    adapter.save(tmp_path / "folder", format="peft")
    loaded = PeftModel.from_pretrained(model, str(tmp_path / "folder"))
    assert_deltas(peft_deltas(loaded, component), adapter)
    again = ml.load(tmp_path / "folder")
    assert_deltas({name: layer.delta_weight for name, layer in again.layers.items()}, adapter)


def test_folder_names_no_other_modules(tmp_path: Path) -> None:
    """A folder with the outermost `proj_out` alone does not reach those of the blocks, whose names end alike."""
    model = Small()
    shapes = {name: shape for name, shape in weights_of("model", model).items() if "blocks" not in name}
    adapter = random_adapter(shapes, "")
    adapter.save(tmp_path / "folder", format="peft")
    loaded = PeftModel.from_pretrained(model, str(tmp_path / "folder"))
    assert_deltas(peft_deltas(loaded, "model"), adapter)


# PEFT asks transformers 5 for a property under its old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_folder_of_each_component(sdxl_adapter: Adapter, tmp_path: Path) -> None:
    """An adapter of several components is one folder for each, and every one of them loads in PEFT."""
    sdxl_adapter.save(tmp_path / "folder", format="peft")
    models = {
        "unet": UNet2DConditionModel(**SDXL_UNET),
        "text_encoder_2": clip(CLIPTextModelWithProjection),
    }
    for component, model in models.items():
        loaded = PeftModel.from_pretrained(model, str(tmp_path / "folder" / component))
        part = sdxl_adapter.select(component)
        assert_deltas(peft_deltas(loaded, component), part)


CONFIGS: dict[str, dict[str, object]] = {
    "plain": {"r": 4, "lora_alpha": 2},
    "rslora": {"r": 4, "lora_alpha": 2, "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 6,
        "rank_pattern": {"^proj_out": 2, "blocks.1.to_q": 3},
        "alpha_pattern": {"^proj_out": 5, r"blocks\.[12]\.to_k": 0.5},
    },
    "rslora-patterns": {
        "r": 4,
        "lora_alpha": 6,
        "use_rslora": True,
        "rank_pattern": {"proj_out": 2},
        "alpha_pattern": {"blocks.0.proj_out": 5, "to_q": 0.5},
    },
}


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_folders_of_peft_load(options: dict[str, object], tmp_path: Path) -> None:
    """A folder that PEFT itself wrote is read with the scaling that PEFT gives each layer."""
    torch.manual_seed(0)
    targets = ["to_q", "to_k", "proj_out", "conv"]
    model = get_peft_model(Small(), LoraConfig(target_modules=targets, init_lora_weights=False, **options))
    model.save_pretrained(str(tmp_path))
    adapter = ml.load(tmp_path)
    assert_deltas(peft_deltas(model, "model"), adapter)
    adapter.save(tmp_path / "again", format="peft")
    loaded = PeftModel.from_pretrained(Small(), str(tmp_path / "again"))
    assert_deltas(peft_deltas(loaded, "model"), adapter)


# PEFT takes the bias of its own `lora_bias` for a matrix that lost a dimension.
@pytest.mark.filterwarnings("ignore:Adapter 'default'. 3 LoRA tensor.s. have invalid shape")
def test_biases_of_peft(tmp_path: Path) -> None:
    """`lora_bias`: biases are extras, and another folder written from them gives PEFT the same biases back."""
    torch.manual_seed(0)
    options = {"target_modules": ["to_k"], "init_lora_weights": False, "lora_bias": True, "r": 4, "lora_alpha": 2}
    model = get_peft_model(Small(), LoraConfig(**options))
    model.save_pretrained(str(tmp_path))
    adapter = ml.load(tmp_path)
    assert len(adapter.extras) == 3
    adapter.save(tmp_path / "again", format="peft")
    loaded = PeftModel.from_pretrained(Small(), str(tmp_path / "again"))

    def biases(peft_model: PeftModel) -> dict[str, Tensor]:
        return {
            path: module.lora_B["default"].bias.detach() * module.scaling["default"]
            for path, module in peft_model.named_modules()
            if getattr(module, "lora_B", None) is not None and "default" in module.lora_B
        }

    before, after = biases(model), biases(loaded)
    assert set(before) == set(after)
    for path, bias in before.items():
        torch.testing.assert_close(after[path], bias)


def test_one_alpha_in_the_file_of_kohya(sdxl_adapter: Adapter, tmp_path: Path) -> None:
    """diffusers (0.42) loses the alphas of attention and text encoder layers that differ from the most frequent one.

    So a file for a UNet has the same alpha in all its modules, whatever their ranks and scalings.
    """
    path = sdxl_adapter.save(tmp_path / "merged.safetensors", format="kohya")
    with safe_open(path, "pt") as content:
        alphas = {float(content.get_tensor(key)) for key in content.keys() if key.endswith(".alpha")}  # noqa: SIM118
    assert len(alphas) == 1
    assert_deltas({name: layer.delta_weight for name, layer in ml.load(path).layers.items()}, sdxl_adapter)


def test_metadata_is_what_diffusers_asks_for(sdxl_adapter: Adapter, tmp_path: Path) -> None:
    """At mixed ranks the header names rank and alpha of every layer, equal, and no `.alpha` tensor stands beside it."""
    sdxl_adapter.save(tmp_path / "merged.safetensors")
    with safe_open(tmp_path / "merged.safetensors", "pt") as content:
        keys = list(content.keys())
        fields = json.loads(content.metadata()["lora_adapter_metadata"])
    assert not [key for key in keys if key.endswith(".alpha")]
    for component in ("unet", "text_encoder", "text_encoder_2"):
        assert fields[f"{component}.rank_pattern"] == fields[f"{component}.alpha_pattern"]
        assert fields[f"{component}.r"] == fields[f"{component}.lora_alpha"]
