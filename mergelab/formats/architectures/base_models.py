"""Whether adapters are for one base model."""

from __future__ import annotations

from collections.abc import Sequence

from mergelab.errors import ArchitectureError
from mergelab.formats.architectures.registry import ARCHITECTURES
from mergelab.layer import AdapterData


def check_base_models(adapters: Sequence[AdapterData], names: Sequence[str]) -> None:
    """Raises where adapters are known to be for different base models.

    Raises:
        ArchitectureError: two architectures, or a UNet and a transformer.

    Example:
        >>> import torch
        >>> from mergelab import Adapter, LoraLayer
        >>> layer = LoraLayer(torch.ones(2, 3), torch.ones(4, 2))
        >>> a, b = (Adapter({f"{part}.conv_in": layer}) for part in ("unet", "transformer"))
        >>> check_base_models([a, b], ["a", "b"])
        Traceback (most recent call last):
            ...
        mergelab.errors.ArchitectureError: adapters for different base models do not go together: a changes a UNet
        (Stable Diffusion), b changes a transformer (FLUX); use adapters of one base model
    """
    changes: dict[str, dict[str, None]] = {}
    for family in ARCHITECTURES.values():
        changes.setdefault(family.denoiser, {})[family.changes] = None
    known = {a.architecture: f"{name} is for {a.architecture}" for a, name in zip(adapters, names) if a.architecture}
    if len(known) < 2:
        known = {
            component: f"{name} changes {' or '.join(words)}"
            for component, words in changes.items()
            for adapter, name in zip(adapters, names)
            if any(layer.startswith(f"{component}.") for layer in adapter.layers)
        }
    if len(known) > 1:
        raise ArchitectureError(
            f"adapters for different base models do not go together: {', '.join(known.values())}; use adapters of one "
            "base model"
        )
