"""Pre-training (III.A): next tokens of a corpus of the domain and a share of general text, which
keeps what the model knew.

    python -m experiments.corpus directory=runs/corpus
    python -m experiments.stages.pretrain preset=smollm2-135m model.hf_dir=DIR pretrain.corpus=runs/corpus

Leaves `<run_dir>/pretrain/model`, which phase 1 starts from, and the perplexity of documents that
were held out, before and after, in perplexity.json.
"""  # noqa: E501

import json
import os
from typing import Iterator

from experiments.config import ExperimentConfig, command
from experiments.files import exists, json_lines, whole
from experiments.stages.run import (
    Run,
    fresh_model,
    keep_model,
    opened,
    reading_model,
    say,
    stage_model,
)
from rldtf_jax import hf, pretrain
from rldtf_jax.config import ConfigError
from rldtf_jax.qwen2 import Qwen2, Qwen2Config
from rldtf_jax.tokenizer import Tokenizer

SHARES = ("domain", "general")
TEXTS = 64  # that are encoded at once


def first_model(run: Run) -> Qwen2:
    """The model that a run starts from: an HF directory's, or a random one."""
    config = run.config.model
    if config.hf_dir:
        with reading_model(run.config):
            return hf.load(config.directory, mesh=run.mesh, **config.options)
    shape = Qwen2Config.preset(config.preset, vocab_size=run.tokenizer.vocab_size, **config.options)
    return fresh_model(shape, "lm", run.config.seed, run.mesh)


def encoded(tok: Tokenizer, texts: list[str]) -> Iterator[list[int]]:
    """Ids of each text, with <|endoftext|> behind it, as Qwen2.5 and SmolLM2 were pre-trained."""
    for start in range(0, len(texts), TEXTS):
        for ids in tok.encode_batch(texts[start : start + TEXTS], special=False):
            yield [*ids, tok.pad_id]


def rows(run: Run, split: str, wanted: dict[str, int]) -> dict[str, pretrain.Packed]:
    """So many rows of each share of a split of the corpus.

    Raises:
      ConfigError: there are not so many.
    """
    path = os.path.join(run.config.pretrain.corpus, f"{split}.jsonl")
    lines, found = json_lines(path), {}
    for share, count in wanted.items():
        if count:
            texts = [line["text"] for line in lines if line["share"] == share]
            found[share] = pretrain.pack(
                encoded(run.tokenizer, texts), run.config.pretrain.width, count
            )
            if len(found[share].tokens) < count:
                raise ConfigError(
                    f"{path}: {len(found[share].tokens)} rows of {share} text: expected {count};"
                    " train fewer steps, or build a larger corpus"
                )
    return found


def perplexities(run: Run, model: Qwen2, held_out: dict[str, pretrain.Packed]) -> dict[str, float]:
    return {
        share: pretrain.perplexity(model, some, run.config.pretrain.sft.batch_size)
        for share, some in held_out.items()
    }


def pretrained(run: Run) -> Qwen2:
    """The model that phase 1 starts from: `first_model`, pre-trained where a corpus is given."""
    config = run.config.pretrain
    if config.corpus is None:
        return first_model(run)
    done = stage_model(run, "pretrain")
    if done is not None:
        return done
    total = config.sft.steps * config.sft.batch_size
    general = round(config.general * total)
    train = rows(run, "train", {"domain": total - general, "general": general})
    held_out = rows(run, "held_out", dict.fromkeys(SHARES, config.held_out))
    model = first_model(run)
    path = run.path("pretrain", "perplexity.json")
    told = {"tokens": {share: int(some.tokens.size) for share, some in train.items()}}
    if exists(path):
        with open(path, encoding="utf-8") as file:
            told = json.load(file)
    else:
        told["before"] = perplexities(run, model, held_out)
        os.makedirs(run.path("pretrain"), exist_ok=True)
        with whole(path) as file:
            json.dump(told, file, indent=1)
    model = pretrain.train(
        model,
        pretrain.joined(list(train.values())),
        config.sft,
        seed=run.config.seed,
        directory=run.path("pretrain"),
        **run.config.loop_options,
    )
    told["after"] = perplexities(run, model, held_out)
    with whole(path) as file:
        json.dump(told, file, indent=1)
    for share in SHARES:
        say(
            f"held-out perplexity, {share}: {told['before'][share]:.2f} before,"
            f" {told['after'][share]:.2f} after"
        )
    keep_model(run, model, "pretrain")
    return model


def main(config: ExperimentConfig) -> None:
    if config.pretrain.corpus is None:
        raise ConfigError(
            "pretrain.corpus = None: expected a directory that python -m experiments.corpus has"
            " filled"
        )
    with opened(config, start_twin=False) as run:
        pretrained(run)


if __name__ == "__main__":
    command(main)
