"""Adapters combined while an image is made, instead of merged before: what no single adapter can hold.

    switch       one adapter at a time, in turn (LoRA Switch)
    composite    the mean of what the model says with each adapter (LoRA Composite)
    klora        in every layer and step the one of two whose change is larger there (K-LoRA)
    schedule     weights that change over the steps

Each is a frozen dataclass of its hyper-parameters in a file of its own; `combination` has what they share.
"""
