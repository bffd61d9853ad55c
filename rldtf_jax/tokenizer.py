"""Tokenizers behind one small interface: the domain BPE trained here, or any HF tokenizer.json.

Byte-level BPE: every text round-trips, whatever the vocabulary. The chat template is that of Qwen.
"""

from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

# The first special token gets id 0. It pads, and nothing else: the end of a response is a token of its own, so that no
# mask made of token ids can swallow it.
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

# Qwen's pre-tokenisation, with the digits per token left open; grouped digits take a space before them along.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s\p{N}{1,%d}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Tokenizer:
    """Text to ids and back. `pad_id` is `<|endoftext|>`, `eos_id` is `<|im_end|>`, which ends a turn."""

    def __init__(self, backend: tokenizers.Tokenizer, system: str | None = None):
        self.backend = backend
        self.system = system  # the system turn of the chat template, if any
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        self.pad_id, _, self.eos_id = (self.token_id(token) for token in SPECIAL_TOKENS)

    def token_id(self, token: str) -> int:
        """The id of one token; raises ValueError if the vocabulary lacks it."""
        token_id = self.backend.token_to_id(token)
        if token_id is None:
            raise ValueError(f"the vocabulary has no token {token!r}")
        return token_id

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Ids of a text. special=False reads a special token's name as plain characters, as text from users must be."""
        self.backend.encode_special_tokens = not special
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, special tokens included. Bytes that are no UTF-8 come out as U+FFFD."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def apply_chat(self, user_text: str) -> list[int]:
        """Ids of a conversation with one user turn, up to where the assistant's answer begins.

        The user's text is encoded as plain text: a special token's name in it does not end the turn.
        """
        system = f"<|im_start|>system\n{self.system}<|im_end|>\n" if self.system else ""
        head = self.encode(f"{system}<|im_start|>user\n")
        return head + self.encode(user_text, special=False) + self.encode("<|im_end|>\n<|im_start|>assistant\n")

    def save(self, path: str | Path) -> None:
        """Writes an HF tokenizer.json."""
        self.backend.save(str(path))


def load(path: str | Path) -> Tokenizer:
    """Reads an HF tokenizer.json; raises ValueError for a file that is none or that lacks the chat tokens."""
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path}: {error}") from error
    return Tokenizer(backend)


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    special_tokens: tuple[str, ...] = SPECIAL_TOKENS,
    digits: int = 3,
) -> Tokenizer:
    """Trains a byte-level BPE of at most vocab_size tokens on texts.

    special_tokens take the first ids. digits: the most digits one token may hold (Qwen: 1); with 3, frequent small
    numbers are single tokens. Raises ValueError if the vocabulary has no room for all bytes.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + len(special_tokens):
        raise ValueError(f"vocab_size must be at least {len(alphabet) + len(special_tokens)}, got {vocab_size}")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = byte_level(digits), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend)


def byte_level(digits: int) -> pre_tokenizers.PreTokenizer:
    """Qwen's split into words, then bytes as printable characters."""
    split = pre_tokenizers.Split(Regex(PATTERN % (" ?" if digits > 1 else "", digits)), behavior="isolated", invert=False)
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
