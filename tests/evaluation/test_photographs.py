"""Reference photographs: read as they are seen, compared by CLIP and DINO, scored again when one changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_pil_image

import mergelab as ml
from mergelab import miniature
from mergelab.evaluation.metrics import registry
from mergelab.evaluation.metrics.clip import ClipImage
from mergelab.evaluation.metrics.dino import dino_encoder
from mergelab.evaluation.metrics.encoders import ImageSimilarity
from mergelab.evaluation.metrics.metric import Asked, Picture
from mergelab.evaluation.names import display_name, label_of, photos
from mergelab.evaluation.photographs import photographs
from mergelab.evaluation.store import Store
from mergelab.miniature.world import Scene, draw
from tests.evaluation.small import PROMPTS, SMALL

ONE = SMALL | {"seeds": 1, "prompts": PROMPTS[:1], "merges": [], "generation": {"steps": 2}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two drawn fish as photographs, and what is none."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name, color in (("b.png", "red"), ("A.JPG", "blue")):
        to_pil_image(draw([Scene("fish", color, "gray")])[0].clamp(0, 1)).save(folder / name)
    (folder / "notes.txt").write_text("of fish")
    (folder / "._b.png").write_bytes(b"what macOS leaves")
    return folder


def test_they_are_read_as_they_are_seen(tmp_path: Path) -> None:
    """Turned as a camera says, in RGB whatever the file has, in [0, 1]; in the order of the file names."""
    colours = np.zeros((2, 3, 3), dtype=np.uint8)
    colours[0, 0] = (255, 0, 51)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by a quarter, clockwise
    Image.fromarray(colours).save(tmp_path / "turned.png", exif=turned)
    Image.fromarray(colours).convert("RGBA").save(tmp_path / "alpha.webp", lossless=True)
    Image.fromarray(colours[..., 0]).save(tmp_path / "gray.png")
    alpha, gray, sideways = photographs(tmp_path, "fish")
    plain = torch.from_numpy(colours).permute(2, 0, 1) / 255
    assert torch.equal(alpha.pixels, plain)
    assert torch.equal(gray.pixels, plain[:1].expand(3, -1, -1))
    assert torch.equal(sideways.pixels, plain.rot90(-1, (1, 2)))
    assert len({alpha.key, gray.key, sideways.key}) == 3


def test_what_is_wrong_is_named(tmp_path: Path, folder: Path) -> None:
    """No folder, no image in it, an image that is none, one that is cut short."""
    assert [photograph.path.name for photograph in photographs(folder, "fish")] == ["A.JPG", "b.png"]
    with pytest.raises(ml.SourceError, match=r"loras: fish: references: .*nowhere: expected a folder of photographs"):
        photographs(tmp_path / "nowhere", "fish")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ml.SourceError, match=r"loras: fish: references: .*empty: has no image; expected .*\.webp"):
        photographs(tmp_path / "empty", "fish")
    whole = (folder / "A.JPG").read_bytes()
    for content in (b"no image", b"", whole[: len(whole) // 2], b"\x89PNG\r\n\x1a\n" + b"0" * 99):
        (folder / "c.png").write_bytes(content)
        with pytest.raises(ml.SourceError, match=r"references: .*c\.png: cannot be read as an image"):
            photographs(folder, "fish")


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DINOv2 of the real classes with random weights."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    size = {"height": 28, "width": 28}
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return folder


def test_dino_is_transformers(dino: Path) -> None:
    """The cosine of the class tokens that transformers gives by hand, to 1e-5; 1 for the image itself."""
    from transformers import AutoImageProcessor, Dinov2Model

    images = [(image.clamp(0, 1) * 255).round() / 255 for image in draw([Scene("star"), Scene("ring", "blue")])]
    processor, model = AutoImageProcessor.from_pretrained(dino), Dinov2Model.from_pretrained(dino).eval()
    with torch.no_grad():
        inputs = processor(images=[to_pil_image(image) for image in images], return_tensors="pt")
        first, second = model(**inputs).last_hidden_state[:, 0]
    a, b = (Picture(str(i), image) for i, image in enumerate(images))
    config = ml.evaluation.read(SMALL | {"metrics": ["dino"], "dino": str(dino)})
    (metric,) = registry.open_metrics(config)
    scores = metric.score(a, Asked("", {"stack": b, "base": a}, photos={"fish": (a, b), "none": ()}))
    by_hand = torch.nn.functional.cosine_similarity(first, second, dim=0).item()
    assert scores == {
        "stack": pytest.approx(by_hand, abs=1e-5),
        "base": pytest.approx(1),
        "photos:fish": pytest.approx((1 + by_hand) / 2, abs=1e-5),
    }
    assert abs(by_hand) < 0.999 and metric.settings["weights"]
    with pytest.raises(ml.OptionError, match=r"dino: transformers cannot load .*nowhere"):
        dino_encoder(str(dino / "nowhere"), "cpu")


def test_each_is_encoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many images are compared with it; and what CLIP says of it is open_clip's, to 1e-5."""
    import open_clip

    model, preprocess = open_clip.create_model_from_pretrained(miniature.clip())
    images = [preprocess(Image.open(folder / name)) for name in ("A.JPG", "b.png")]
    with torch.no_grad():
        jpg, png = model.eval().encode_image(torch.stack(images), normalize=True)
    (metric,) = registry.open_metrics(ml.evaluation.read(SMALL | {"metrics": ["clip_image"]}))
    assert isinstance(metric, ClipImage)
    shown, read = photographs(folder, "fish"), []
    monkeypatch.setattr(
        metric.encoder, "_encode", lambda image, own=metric.encoder._encode: read.append(1) or own(image)
    )
    for _ in range(2):
        scores = metric.score(Picture("png", shown[1].pixels), Asked("", photos={"fish": shown}))
    assert scores == {"photos:fish": pytest.approx((1 + (jpg @ png).item()) / 2, abs=1e-5)}
    assert len(read) == 3


@pytest.fixture
def registered() -> Iterator[None]:
    """What a test registers is gone after it."""
    yield
    registry._REGISTERED.clear()


def test_in_a_run(
    pipeline: Any, folder: Path, dino: Path, tmp_path: Path, registered: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Likeness to the photographs by CLIP and DINO alone; a photograph that changes is compared anew, nothing else."""

    @ml.register_metric("mine", compares_with="images")
    def mine(image: torch.Tensor, prompt: str, references: dict[str, torch.Tensor]) -> dict[str, float]:
        return {name: float((image - other).abs().mean()) for name, other in references.items()}

    loras = [{"path": "miniature/sdxl/fish", "references": str(folder)}, "miniature/sdxl/stripes"]
    metrics = ["judge", "clip_image", "dino", "lpips", "mine"]
    config = ONE | {"metrics": metrics, "dino": str(dino), "loras": loras}
    without = ml.evaluate(config | {"loras": ONE["loras"]}, tmp_path / "run", pipeline=pipeline)
    assert "photos:fish" not in set(without.scores.reference)
    scored: list[str] = []
    own = ImageSimilarity.score
    monkeypatch.setattr(
        ImageSimilarity, "score", lambda self, *given: scored.append(self.description.name) or own(self, *given)
    )
    kept: list[str] = []
    keep = Store.keep
    monkeypatch.setattr(Store, "keep", lambda self, key, value: kept.append(key) or keep(self, key, value))
    result = ml.evaluate(config, tmp_path / "run", pipeline=pipeline)
    assert scored == ["clip_image", "dino"] * 4 and len(kept) == len(scored), "judge, lpips and mine are as they were"
    rows = result.scores[result.scores.reference == photos("fish")]
    assert sorted(set(rows.metric)) == ["clip_image", "dino"] and len(rows) == 8
    likeness = rows[rows.metric == "clip_image"].set_index("variant").value
    metric = ClipImage.open(registry.Setup(result.config, "cpu"))
    store = Store(tmp_path / "run")
    key = rows[rows.variant == "single:fish"].image.iloc[0].removesuffix(".png")
    asked = Asked("", photos={"fish": photographs(folder, "fish")})
    assert likeness["single:fish"] == metric.score(Picture(key, store.load_image(key)), asked)["photos:fish"]
    assert not (scored.clear() or ml.evaluate(config, tmp_path / "run", pipeline=pipeline).failures) and not scored
    (folder / "b.png").write_bytes((folder / "A.JPG").read_bytes())
    again = ml.evaluate(config, tmp_path / "run", pipeline=pipeline).scores
    assert len(scored) == 8 and not again.equals(result.scores)
    assert (label_of("photos:ghost"), display_name("photos:ghost")) == ("ghost", "photographs of ghost")
    with pytest.raises(ml.SourceError, match="loras: fish: references: nowhere: expected a folder"):
        ml.evaluate(
            ONE | {"loras": [{"path": "miniature/sdxl/fish", "references": "nowhere"}]}, tmp_path / "new",
            pipeline=pipeline,
        )  # fmt: skip
    assert not (tmp_path / "new").exists()
