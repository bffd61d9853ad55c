"""Tokenizers behind one small interface: the domain BPE trained here, Qwen2.5's, SmolLM2's, or any
HF tokenizer.json.

Byte-level BPE: every text round-trips, whatever the vocabulary. The chat template is that of Qwen.
"""

import base64
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
from jinja2.exceptions import TemplateError
from jinja2.sandbox import SandboxedEnvironment
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

# The first special token gets id 0. It pads, and nothing else: the end of a response is a token of
# its own, so that no mask made of token ids can swallow it.
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

QWEN25_SPECIAL_TOKENS = SPECIAL_TOKENS + tuple(
    "<|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> <|quad_start|> <|quad_end|>"
    " <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|> <tool_call>"
    " </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|>"
    " <|file_sep|>".split()
)
QWEN25_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

# Qwen's pre-tokenisation, with the digits per token left open; grouped digits take a space before
# them along.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s\p{N}{1,%d}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Tokenizer:
    """Text to ids and back. `pad_id` is `<|endoftext|>`, `eos_id` is `<|im_end|>`, which ends a
    turn.
    """

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
        """Ids of a text. special=False reads a special token's name as plain characters, as text
        from users must be.
        """
        self.backend.encode_special_tokens = not special
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str], special: bool = True) -> list[list[int]]:
        """Ids of each text, as `encode` has them, on all cores."""
        self.backend.encode_special_tokens = not special
        return [
            found.ids for found in self.backend.encode_batch(list(texts), add_special_tokens=False)
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, special tokens included. Bytes that are no UTF-8 come out as U+FFFD."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def apply_chat(self, user_text: str) -> list[int]:
        """Ids of a conversation with one user turn, up to where the assistant's answer begins.

        The user's text is encoded as plain text: a special token's name in it does not end the
        turn.
        """
        system = f"<|im_start|>system\n{self.system}<|im_end|>\n" if self.system else ""
        return self._user_turn(system, user_text)

    def next_turn(self, user_text: str) -> list[int]:
        """Ids of a further user turn, behind the assistant's EOS, up to where its next answer
        begins.
        """
        return self._user_turn("\n", user_text)

    def _user_turn(self, before: str, user_text: str) -> list[int]:
        return (
            self.encode(f"{before}<|im_start|>user\n")
            + self.encode(user_text, special=False)
            + self.encode("<|im_end|>\n<|im_start|>assistant\n")
        )

    def files(self) -> dict[str, str]:
        """What lies beside a model in an HF directory, by name, so that transformers and
        `load_directory` read this tokenizer and chat.
        """
        system = json.dumps(
            f"<|im_start|>system\n{self.system}<|im_end|>\n" if self.system else "",
            ensure_ascii=False,
        )
        template = (
            "{%- if messages[0]['role'] != 'system' %}{{- "
            + system
            + " }}{%- endif %}{%- for message in messages %}{{- '<|im_start|>' + message['role'] +"
            " '\\n' + message['content'] + '<|im_end|>\\n' }}{%- endfor %}{%- if"
            " add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
        )
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": SPECIAL_TOKENS[2],
            "pad_token": SPECIAL_TOKENS[0],
            "clean_up_tokenization_spaces": False,
            "chat_template": template,
        }
        return {
            "tokenizer.json": self.backend.to_str(pretty=True),
            "tokenizer_config.json": json.dumps(config, indent=1) + "\n",
        }

    def save(self, path: str | Path) -> None:
        """Writes an HF tokenizer.json."""
        self.backend.save(str(path))


def load(path: str | Path, system: str | None = None) -> Tokenizer:
    """Reads an HF tokenizer.json; raises ValueError for a file that is none or that lacks the chat
    tokens.

    Two things that some files say are not followed: a length to cut or pad all texts to, and that a
    chat token is an ordinary one, whose name in a user's text would end the turn.
    """
    text = Path(path).read_text(encoding="utf-8")
    try:
        saved = json.loads(text)
        saved |= {"truncation": None, "padding": None}
        for token in saved.get("added_tokens") or ():
            if token["content"] in SPECIAL_TOKENS:
                token |= {"special": True, "normalized": False}
        backend = tokenizers.Tokenizer.from_str(json.dumps(saved))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path}: {error}") from error
    return Tokenizer(backend, system)


def load_directory(directory: str | Path) -> Tokenizer:
    """Reads the tokenizer.json of an HF directory, and from its chat template the system turn that
    a conversation begins with.

    Raises ValueError as `load` does, and for a chat template that renders a user's turn otherwise
    than `Tokenizer.apply_chat`.
    """
    return load(Path(directory, "tokenizer.json"), system_turn(directory))


def system_turn(directory: str | Path) -> str | None:
    """What an HF directory's chat template puts into a system turn where the user gives none; None
    without a turn or a template.
    """
    template, path = None, Path(directory, "tokenizer_config.json")
    if Path(directory, "chat_template.jinja").exists():
        path = Path(directory, "chat_template.jinja")
        template = path.read_text(encoding="utf-8")
    elif path.exists():
        try:
            template = json.loads(path.read_text(encoding="utf-8")).get("chat_template")
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if isinstance(template, list):  # several by name
            template = next(
                (one["template"] for one in template if one.get("name") == "default"), None
            )
    if template is None:
        return None
    messages = [{"role": "user", "content": "What the user says"}]
    try:
        rendered = (
            SandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
            .from_string(template)
            .render(messages=messages, add_generation_prompt=True)
        )
    except TemplateError as error:
        raise ValueError(f"{path}: chat_template: {error}") from error
    found = re.fullmatch(
        r"(?:<\|im_start\|>system\n(.*)<\|im_end\|>\n)?<\|im_start\|>user\nWhat the user"
        r" says<\|im_end\|>\n<\|im_start\|>assistant\n",
        rendered,
        re.DOTALL,
    )
    if found is None:
        raise ValueError(
            f"{path}: chat_template: expected turns between <|im_start|> and <|im_end|> as Qwen2.5"
            f" has them, got {rendered[:80]!r}"
        )
    return found[1]


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    special_tokens: tuple[str, ...] = SPECIAL_TOKENS,
    digits: int = 3,
) -> Tokenizer:
    """Trains a byte-level BPE of at most vocab_size tokens on texts.

    special_tokens take the first ids. digits: the most digits one token may hold (Qwen: 1); with 3,
    frequent small numbers are single tokens. Raises ValueError if the vocabulary has no room for
    all bytes.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + len(special_tokens):
        raise ValueError(
            f"vocab_size must be at least {len(alphabet) + len(special_tokens)}, got {vocab_size}"
        )
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
    split = pre_tokenizers.Split(
        Regex(PATTERN % (" ?" if digits > 1 else "", digits)), behavior="isolated", invert=False
    )
    return pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def from_ranks(
    path: str | Path,
    special_tokens: tuple[str, ...] = QWEN25_SPECIAL_TOKENS,
    digits: int = 1,
    system: str | None = QWEN25_SYSTEM,
) -> Tokenizer:
    """Reads a file of tiktoken ranks (a base64 token and its rank per line) and puts the special
    tokens behind them.

    The defaults make it Qwen2.5's, which brings text to the Unicode form NFC first.
    `rldtf_jax.fetch` has its ranks.
    """
    lines = (line.split() for line in Path(path).read_bytes().splitlines() if line)
    rank_of = {base64.b64decode(token): int(rank) for token, rank in lines}
    merges = [
        _halves(token, rank_of) for token in sorted(rank_of, key=rank_of.get) if len(token) > 1
    ]
    printable = _printable_bytes()
    text = lambda token: "".join(printable[byte] for byte in token)
    vocabulary = {text(token): rank for token, rank in rank_of.items()}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [(text(a), text(b)) for a, b in merges]))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer, backend.decoder = byte_level(digits), decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special_tokens]
    )
    return Tokenizer(backend, system)


def _halves(token: bytes, rank_of: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens whose merge makes this one: its byte pairs merged in rank order, until two are
    left.
    """
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        i = min(
            range(len(parts) - 1), key=lambda i: rank_of.get(parts[i] + parts[i + 1], len(rank_of))
        )
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts[0], parts[1]


def _printable_bytes() -> list[str]:
    """The character each byte has in byte-level BPE (GPT-2): itself if it is printable, else one
    from U+0100 on.
    """
    kept = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("\xa1"), ord("\xac") + 1),
        *range(ord("\xae"), ord("\xff") + 1),
    }
    moved = iter(range(256, 512))
    return [chr(byte) if byte in kept else chr(next(moved)) for byte in range(256)]


def from_gguf(path: str | Path, system: str | None = SMOLLM2_SYSTEM) -> Tokenizer:
    """Reads SmolLM2's tokenizer out of its GGUF file; raises ValueError for one of another kind."""
    import gguf  # slow to import

    fields = gguf.GGUFReader(path).fields
    kind = fields["tokenizer.ggml.pre"].contents()
    if kind != "smollm":
        raise ValueError(f"{path}: pre-tokeniser {kind!r} is not supported, only 'smollm'")
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    control = [
        t
        for t, k in zip(tokens, fields["tokenizer.ggml.token_type"].contents())
        if k == gguf.TokenType.CONTROL
    ]
    backend = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in control]
    )
    return Tokenizer(backend, system)
