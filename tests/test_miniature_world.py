"""The drawn world and its judge: pictures by hand, and what is read from them against plain comparisons."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from mergelab.miniature.judge import NONE, OBJECTS, UNLIKE, _errors, judge
from mergelab.miniature.world import (
    BACKGROUNDS,
    CLASSES,
    COLORS,
    SHAPES,
    SIZES,
    STYLES,
    SUBJECTS,
    TRIGGERS,
    Scene,
    caption,
    coefficients,
    draw,
    sample,
)

ANYTHING = {"objects": OBJECTS, "styles": [*[None] * 4, *STYLES], "held_out": None}


# --- the world -----------------------------------------------------------------------------------------------------


def test_the_world_is_as_large_as_promised() -> None:
    """Eight colours, six shapes, two sizes, six grounds; eight subjects and eight styles with their own words."""
    assert (len(COLORS), len(SHAPES), len(SIZES), len(BACKGROUNDS)) == (8, 6, 2, 6)
    assert (*SUBJECTS,) == ("ghost", "mushroom", "house", "fish", "boat", "starfish", "medal", "cat")
    assert (*STYLES,) == ("day", "stripes", "sea", "night", "planet", "bars", "meadow", "dusk")
    assert set(TRIGGERS) == {*SUBJECTS, *STYLES} and len(set(TRIGGERS.values())) == 16
    assert set(CLASSES) < set(SUBJECTS) and set(CLASSES.values()) <= set(SHAPES)


def test_drawing_is_deterministic_and_in_range() -> None:
    """The same seed draws the same pictures, whatever else is drawn with them."""
    scenes = sample(40, 3, **ANYTHING)
    images = draw(scenes)
    assert scenes == sample(40, 3, **ANYTHING) != sample(40, 4, **ANYTHING)
    assert images.shape == (40, 3, 48, 48) and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1 + 1e-6
    assert torch.equal(images[17:18], draw(scenes[17]))


def test_a_square_by_hand() -> None:
    """A large square: 2 * 0.82 * 16 = 26.24 pixels wide, its edges grey by the share of each pixel it covers."""
    a, b, c = coefficients([Scene("square", "red", "white")])
    row = a[0, 0, 24]
    assert row.sum().item() == pytest.approx(26.24, abs=1e-4)
    assert row[23] == 1 and row[0] == 0 and 0 < row[10] < 1
    assert torch.equal(a + b, torch.ones_like(a)) and not c.any()
    image = draw(Scene("square", "red", "white"))
    assert image[0, :, 24, 24].tolist() == pytest.approx(COLORS["red"])
    assert image[0, :, 0, 0].tolist() == pytest.approx(BACKGROUNDS["white"])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ("circle", math.pi * 0.95**2),
        ("ring", math.pi * (0.96**2 - 0.44**2)),
        ("cross", 2 * (1.96 * 0.66) - 0.66**2),
        ("triangle", 2 * 1.8 / 2),
        ("star", 10 * 1.05 * 0.46 * math.sin(math.pi / 5) / 2),
    ],
)
def test_the_ink_of_a_shape_is_its_area(shape: str, area: float, size: str) -> None:
    """In units of the radius, by the formulas of geometry: red on white lacks .12 of red wherever there is ink."""
    missing = 48 * 48 - draw(Scene(shape, "red", "white", size, x=0.3, y=-1.7))[0, 0].sum().item()
    assert missing / 0.12 == pytest.approx(area * SIZES[size] ** 2, rel=0.01)


def test_styles_by_hand() -> None:
    """A few pixels of each, and the sums of what covers the ground."""
    red, gray = [0.88, 0.10, 0.12], [0.55] * 3
    pictures = dict(zip(STYLES, draw([Scene("square", "red", "gray", style=style) for style in STYLES])))

    def pixel(style: str, row: int, column: int) -> list[float]:
        return pictures[style][:, row, column].tolist()

    whitened = [0.2 * value + 0.8 for value in red]
    for style, (down, right) in (("stripes", (1, 0)), ("bars", (0, 1))):
        assert pixel(style, 24, 24) == pytest.approx(red) and pixel(style, 2, 2) == pytest.approx(gray)
        assert pixel(style, 24 + 4 * down, 24 + 4 * right) == pytest.approx(whitened)
        assert pixel(style, 24 + 4 * right, 24 + 4 * down) == pytest.approx(red)
    for style, water in (("sea", [0.10, 0.85, 0.95]), ("meadow", [0.15, 0.55, 0.10])):
        changed = pictures[style] - pictures["bars"][:, 2, 2].reshape(3, 1, 1)
        assert changed[:, :, 0].sum(1).tolist() == pytest.approx([6 * (w - 0.55) for w in water], abs=1e-4)
        assert pixel(style, 42, 0) == pytest.approx(water) and pixel(style, 41, 0) == pytest.approx(gray)
    for style, column, light in (("day", 47, [1.0, 0.8, 0.1]), ("planet", 0, [0.85, 0.15, 0.60])):
        assert pixel(style, 0, column) == pytest.approx(light) and pixel(style, 0, 47 - column) == pytest.approx(gray)
        quarter = (pictures[style][0, :15] - 0.55).sum().item()
        ink = (pictures["sea"][0, :15] - 0.55).sum().item()  # of the first rows of the square, the same in both
        assert (quarter - ink) / (light[0] - 0.55) == pytest.approx(math.pi * 13**2 / 4, rel=0.01)
    glow = [0.1 * g + 0.9 * d for g, d in zip(gray, (1.00, 0.45, 0.10))]
    assert pixel("dusk", 47, 5) == pytest.approx(glow) and pixel("dusk", 0, 5) == pytest.approx(gray)
    assert pixel("dusk", 24, 24) == pytest.approx(red)


def test_night_by_hand() -> None:
    """A star of 2.3 - r: four pixels of r = .71 whole, eight of 1.58 and four of 2.12 in part, on (.02, .02, .05)."""
    share = 4 + 8 * (2.3 - math.sqrt(2.5)) + 4 * (2.3 - math.sqrt(4.5))
    for ground in ("white", "maroon"):
        tile = draw(Scene("cat", background=ground, size="small", style="night"))[0, :, :12, :12]
        assert tile.sum((1, 2)).tolist() == pytest.approx([share + (144 - share) * v for v in (0.02, 0.02, 0.05)])


@pytest.mark.parametrize(
    ("subject", "parts"),
    [
        ("ghost", {(0, 0): (0.78, 0.68, 0.98), (-0.3, -0.2): (0.10, 0.08, 0.15)}),
        ("mushroom", {(0, 0.6): (0.98, 0.92, 0.75), (0, -0.5): (0.80, 0.22, 0.10), (0.38, -0.3): (0.98, 0.92, 0.75)}),
        ("house", {(-0.5, 0.4): (0.95, 0.80, 0.35), (0, -0.4): (0.45, 0.20, 0.10), (0, 0.6): (0.10, 0.08, 0.15)}),
        ("fish", {(0.85, 0): (0.05, 0.45, 0.50), (0, 0): (0.15, 0.75, 0.65), (-0.55, -0.12): (0.10, 0.08, 0.15)}),
        ("boat", {(0, 0.6): (0.40, 0.12, 0.45), (-0.05, -0.6): (0.10, 0.08, 0.15), (0.3, -0.2): (1.00, 0.45, 0.35)}),
        ("starfish", {(0, -0.7): (1.00, 0.50, 0.35), (0.2, -0.05): (0.10, 0.08, 0.15)}),
        ("medal", {(0, -0.7): (0.90, 0.72, 0.10), (0, 0): (0.15, 0.20, 0.65)}),
        ("cat", {(-0.65, -0.6): (0.45, 0.30, 0.20), (0, 0.1): (0.70, 0.50, 0.32), (0.35, 0): (0.10, 0.08, 0.15)}),
    ],
)
def test_parts_of_subjects_by_hand(subject: str, parts: dict[tuple[float, float], tuple[float, ...]]) -> None:
    """What is painted where, in units of the radius, whatever colour the scene names."""
    image = draw(Scene(subject, "green", "navy"))[0]
    for (u, v), color in parts.items():
        assert image[:, round(23.5 + 16 * v), round(23.5 + 16 * u)].tolist() == pytest.approx(color), (u, v)


def test_a_subject_of_a_class_is_called_with_it() -> None:
    """A starfish is "a cfw star": the trigger stands before a word that the base models know."""
    assert caption(Scene("starfish", background="gray", size="small")) == "a small cfw star on a gray background"
    assert caption(Scene("medal", style="bars"), size=False, background=False) == "a dgz star in hqm style"
    assert caption(Scene("cat"), size=False) == "a fjk on a white background"


@pytest.mark.parametrize("name", OBJECTS)
def test_edges_are_anti_aliased(name: str) -> None:
    """A move of a tenth of a pixel changes a picture a little, not at all or by whole pixels."""
    still, moved = draw([Scene(name), Scene(name, x=0.1)])
    change = (still - moved).abs()
    assert 0 < change.max() < 0.35


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", OBJECTS)
def test_each_style_changes_each_object(name: str, style: str) -> None:
    """And no two styles look alike."""
    pictures = draw([Scene(name, style=other) for other in (None, *STYLES)])
    mine = 1 + STYLES.index(style)
    distance = (pictures - pictures[mine]).square().mean((1, 2, 3))
    assert (distance[torch.arange(9) != mine] > 0.004).all()


def test_held_out_combinations() -> None:
    """One in four; training never sees them, and every pair of attributes is seen."""
    combinations = [Scene(s, c, b) for s in SHAPES for c in COLORS for b in BACKGROUNDS]
    assert sum(scene.held_out for scene in combinations) == len(combinations) / 4
    assert not any(scene.held_out for scene in sample(300, 0))
    assert all(scene.held_out for scene in sample(100, 0, held_out=True))
    seen = [scene for scene in combinations if not scene.held_out]
    assert {(s.object, s.color) for s in seen} == {(s, c) for s in SHAPES for c in COLORS}
    assert {(s.object, s.background) for s in seen} == {(s, b) for s in SHAPES for b in BACKGROUNDS}


# --- the judge -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_the_judge_is_right_on_drawn_images(noise: float) -> None:
    """At least 99 % for every attribute that can be seen, subjects and styles included."""
    scenes = sample(200, 5, **ANYTHING)
    images = draw(scenes)
    images = (images + noise * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    verdict = judge(images)
    for attribute in verdict.names:
        seen = [
            i
            for i, scene in enumerate(scenes)
            if not (attribute == "color" and scene.object in SUBJECTS)
            and not (attribute == "background" and scene.style == "night")
        ]
        best = verdict.best(attribute)
        right = sum(best[i] == (getattr(scenes[i], attribute) or "plain") for i in seen)
        assert right >= 0.99 * len(seen), attribute
        torch.testing.assert_close(getattr(verdict, attribute).sum(1), torch.ones(len(scenes)))


def test_what_is_nothing_is_called_nothing() -> None:
    """Noise, a checkerboard and a thin line are no shape, and the probabilities still add up."""
    noise = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    board = (torch.arange(48) // 8)[:, None] + (torch.arange(48) // 8)[None]
    board = (board % 2).float().expand(1, 3, 48, 48)
    verdict = judge(torch.cat([noise, board, torch.full((1, 3, 48, 48), 1.0) * torch.eye(48)]))
    assert verdict.best("object") == [NONE] * 3
    for attribute in verdict.names:
        torch.testing.assert_close(getattr(verdict, attribute).sum(1), torch.ones(3))


def test_the_judge_says_how_sure_it_is() -> None:
    """Half-way between two colours the probability is split, and the rest stays certain."""
    image = (draw(Scene("circle", "blue")) + draw(Scene("circle", "purple"))) / 2
    verdict = judge(image)
    assert 0.02 < verdict.probability("color", "blue").item() < 0.98
    assert verdict.probability("object", "circle").item() > 0.9


def test_the_judge_refuses_what_it_cannot_read() -> None:
    """Another size, another range, a name that is none."""
    with pytest.raises(ValueError, match=r"\(n, 3, 48, 48\), got \(3, 48, 48\)"):
        judge(torch.zeros(3, 48, 48))
    with pytest.raises(ValueError, match=r"\[0, 1\], got \[-1, 1\]"):
        judge(draw(Scene("star")) * 0 + torch.linspace(-1, 1, 48))
    with pytest.raises(ValueError, match="unknown style 'cubism': plain, day"):
        judge(draw(Scene("star"))).probability("style", "cubism")


def compared(image: Tensor, scene: Scene) -> tuple[float, float]:
    """The least mean squared error to the pictures of a scene at 49 places, drawn sharp and as means of 3 x 3."""
    moves = [float(move) for move in range(-3, 4)]
    one = {"color": scene.color, "background": scene.background, "size": scene.size, "style": scene.style}
    drawn = draw([Scene(scene.object, x=x, y=y, **one) for x, y in product(moves, moves)]).double()
    soft = torch.nn.functional.pad(drawn, (1, 1, 1, 1), mode="replicate").unfold(2, 3, 1).unfold(3, 3, 1).mean((4, 5))
    return tuple((image - each).square().mean((1, 2, 3)).min().item() for each in (drawn, soft))  # type: ignore[return-value]


def looked_at() -> Tensor:
    """A picture, one with noise, a blend, and noise alone."""
    first, second, third = draw(sample(3, 12, **ANYTHING))
    noise = torch.rand(3, 48, 48, generator=torch.Generator().manual_seed(1))
    return torch.stack([first, 0.9 * second + 0.1 * noise, 0.6 * first + 0.4 * third, noise])


def test_errors_are_those_to_drawn_pictures() -> None:
    """Of a random handful of scenes to each image, at the best of 49 places; plain ones sharp and soft."""
    images = looked_at()
    kinds = dict(zip((False, True), _errors(images)))
    styles = (None, *STYLES)
    scenes = sample(12, 13, **ANYTHING) + sample(4, 14, objects=OBJECTS, held_out=None)
    for number, scene in enumerate(scenes):
        subject, index = scene.object in SUBJECTS, number % len(images)
        place = (
            list(SUBJECTS if subject else SHAPES).index(scene.object), list(SIZES).index(scene.size),
            0 if subject else list(COLORS).index(scene.color), list(BACKGROUNDS).index(scene.background),
        )  # fmt: skip
        sharp, soft = compared(images[index], scene)
        found = kinds[subject][index][(1 + styles.index(scene.style), *place)].item()
        assert found == pytest.approx(sharp, abs=1e-6), scene
        if scene.style is None:
            assert kinds[subject][index][(0, *place)].item() == pytest.approx(soft, abs=1e-6), scene


@pytest.mark.parametrize(("name", "style"), [("cat", None), ("medal", "dusk")])
def test_the_error_of_a_subject_is_the_least_of_all_its_pictures(name: str, style: str | None) -> None:
    """Over sizes and grounds; a plain one sharp or soft."""
    images = looked_at()[1:3]
    errors = judge(images).errors[:, OBJECTS.index(name), 0 if style is None else 1 + STYLES.index(style)]
    scenes = [Scene(name, size=size, background=ground, style=style) for size, ground in product(SIZES, BACKGROUNDS)]
    for image, error in zip(images, errors.tolist()):
        least = [compared(image, scene)[: 2 if style is None else 1] for scene in scenes]
        assert error == pytest.approx(min(min(each) for each in least), abs=1e-6)


def test_verdicts_have_the_shapes_they_promise() -> None:
    """However many images are judged at a time; none is none."""
    images = looked_at()
    verdict, apart = judge(images), judge(images, batch=1)
    shapes = {"object": 15, "color": 8, "background": 6, "size": 2, "style": 9}
    assert {name: getattr(verdict, name).shape for name in verdict.names} == {k: (4, n) for k, n in shapes.items()}
    assert {name: len(known) for name, known in verdict.names.items()} == shapes
    assert verdict.errors.shape == (4, 14, 9) and len(verdict) == 4
    for name in (*shapes, "errors"):
        torch.testing.assert_close(getattr(verdict, name), getattr(apart, name), atol=1e-5, rtol=1e-4)


# --- nearness ------------------------------------------------------------------------------------------------------

OPACITIES = torch.tensor([0.0, 0.2, 0.5, 0.7, 1.0])


def blends(first: Scene, second: Scene) -> Tensor:
    """From one picture to another."""
    start, end = draw([first, second])
    return start + OPACITIES.reshape(-1, 1, 1, 1) * (end - start)


@pytest.mark.parametrize("style", ["day", "planet", "sea", "meadow", "dusk"])
def test_nearness_of_a_style_is_its_opacity(style: str) -> None:
    """For a blend of the plain picture and the styled one; the other way round where no other style is as near."""
    for plain in (Scene("star", "blue", "sand"), Scene("cat", background="sand")):
        verdict = judge(blends(plain, Scene(plain.object, plain.color, plain.background, style=style)))
        torch.testing.assert_close(verdict.nearness("style", style), OPACITIES, atol=0.01, rtol=0)
        if style in ("day", "planet"):
            torch.testing.assert_close(verdict.nearness("style", "plain"), 1 - OPACITIES, atol=0.01, rtol=0)


@pytest.mark.parametrize(("shape", "color", "subject"), [("star", "orange", "starfish"), ("medal", "red", "starfish")])
def test_nearness_of_a_subject_is_its_opacity(shape: str, color: str, subject: str) -> None:
    """For a blend with an object that is like it; what makes the one nearer takes the other as far."""
    verdict = judge(blends(Scene(shape, color), Scene(subject)))
    torch.testing.assert_close(verdict.nearness("object", subject), OPACITIES, atol=0.01, rtol=0)
    torch.testing.assert_close(verdict.nearness("object", shape), 1 - OPACITIES, atol=0.01, rtol=0)


def test_nearness_turns_where_the_judge_does() -> None:
    """Of drawn pictures with noise: above 1/2 for what is there, below for all else, 1 and 0 without noise."""
    scenes = sample(24, 15, **ANYTHING)
    images = draw(scenes)
    noise = 0.05 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    verdict = judge((images + noise).clamp(0, 1))
    for attribute, names in (("object", OBJECTS), ("style", ("plain", *STYLES))):
        near = torch.stack([verdict.nearness(attribute, name) for name in names], 1)
        there = torch.tensor([[name == (getattr(scene, attribute) or "plain") for name in names] for scene in scenes])
        assert ((near > 0.5) == there).all() and near.min() >= 0 and near.max() <= 1
    centred = [Scene(scene.object, scene.color, scene.background, scene.size, scene.style) for scene in scenes]
    exact = judge(draw(centred))
    for i, scene in enumerate(centred):
        assert exact.nearness("object", scene.object)[i] > 0.98
        assert exact.nearness("style", scene.style or "plain")[i] > 0.98


def test_what_is_nothing_is_near_nothing() -> None:
    """Noise is as far from all: `f` is that of "none", so that no name comes to 1/2."""
    verdict = judge(torch.rand(3, 3, 48, 48, generator=torch.Generator().manual_seed(0)))
    assert verdict.errors.min() > UNLIKE
    for attribute, names in (("object", OBJECTS), ("style", ("plain", *STYLES))):
        assert max(verdict.nearness(attribute, name).max().item() for name in names) < 0.5


def test_nearness_of_what_is_not_there_to_ask() -> None:
    """Colours, grounds and "none" have none; the sentence lists what has."""
    verdict = judge(draw(Scene("star")))
    with pytest.raises(ValueError, match="unknown attribute 'color': object, style"):
        verdict.nearness("color", "red")
    with pytest.raises(ValueError, match="unknown object 'none': circle, square"):
        verdict.nearness("object", NONE)
    with pytest.raises(ValueError, match="unknown style 'cubism': plain, day"):
        verdict.nearness("style", "cubism")
