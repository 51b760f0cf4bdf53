"""Tokenizers with a small vocabulary: one token for each word of the world, characters for everything else."""

from __future__ import annotations

import string

from transformers import CLIPTokenizer, T5Tokenizer

from mergelab.miniature.world import BACKGROUNDS, COLORS, SHAPES, SIZES, TRIGGERS

LENGTH = 16
"""Tokens of a prompt, padding included, for every text encoder."""

SPARE = ["lpt", "mzb", "nxd", "pfq"]
"""Words that call nothing, left for adapters of one's own."""
RARE = [*TRIGGERS.values(), *SPARE]
"""Words that the base models never see."""

WORDS = [
    *COLORS, *BACKGROUNDS, *SHAPES, *SIZES, *RARE,
    *"a an on in of and the with background style picture photo drawing".split(),
]  # fmt: skip


def clip_tokenizer() -> CLIPTokenizer:
    """Each word is built from its characters by merges of its own, so a known word is one token."""
    letters = [*string.ascii_lowercase, *string.digits, *",.-'!?:()"]
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    # Earlier merges come first, so the order matters: a merge of "gray" must not split "background".
    for word in sorted(set(WORDS), key=lambda word: (word != "small", -len(word), word)):
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            pieces[:2] = ["".join(pair)]
            if pair not in merges:
                merges.append(pair)
            if pieces[0] not in vocabulary:
                vocabulary.append(pieces[0])
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(vocabulary)}, merges=merges, model_max_length=LENGTH
    )


def t5_tokenizer() -> T5Tokenizer:
    """A unigram vocabulary in which a whole word always beats its characters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    pieces += [(f"▁{word}", -1.0) for word in dict.fromkeys([*WORDS, "A", "An"])]
    known = {piece for piece, _ in pieces}
    pieces += [
        (letter, -10.0) for letter in string.ascii_lowercase + string.digits + ",.-'!?:()" if letter not in known
    ]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=LENGTH)
