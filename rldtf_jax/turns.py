"""Conversations: the policy asks the world something before it answers.

A message of the policy ends with its EOS. `Environment.reply` says what the world answers, and the
policy goes on behind that, `turns` messages at most; the last one is its answer, which the judge
reads. What the policy wrote and what the world said is known by who wrote it, never by what the
text looks like (`Samples.author_BxR`).

Dimensions in names: B rollouts, P padded prompt, R response positions, the world's among them.
"""

from typing import Any, Callable, Iterator, Sequence

import jax
import numpy as np

from rldtf_jax.judge import Prompts
from rldtf_jax.sample import (
    Samples,
    answers,
    bucket,
    calls,
    join,
    pad_prompts,
    row_keys,
    sample_on_host,
)

# folded into a row's key, with the number of the turn; beyond any response's positions
TURNS = 1 << 22
Reply = Callable[[Sequence[Any], Sequence[np.ndarray]], Sequence[np.ndarray | None]]


def converse(
    draw: Callable[[Sequence[Prompts]], Sequence[Samples]],
    replies: Sequence[Reply],
    prompts: Sequence[Prompts],
    turns: int,
) -> list[Samples]:
    """The conversations of several arms, one `Prompts` each.

    draw: samples a message behind each prompt, at most `room_B` tokens; asked `turns` times at
      most, always with one shape but for the first time.
    replies: `Environment.reply` of each arm.
    """
    talks = [begun(samples) for samples in draw(prompts)]
    for turn in range(1, turns):
        said = [answered(reply, asked, talk) for reply, asked, talk in zip(replies, prompts, talks)]
        if not any(words is not None for rows in said for words in rows):
            break
        heard = [told(talk, rows) for talk, rows in zip(talks, said)]
        onward = [
            continued(asked, talk, rows, turn) for asked, talk, rows in zip(prompts, heard, said)
        ]
        talks = [resumed(talk, more, rows) for talk, more, rows in zip(heard, draw(onward), said)]
    return talks


def begun(samples: Samples) -> Samples:
    """A first message as a conversation."""
    tokens_BxR, lengths_B, logp_BxR, ended_B = (np.array(x) for x in samples[:4])
    start_B = np.zeros(len(lengths_B), np.int32)
    return Samples(
        tokens_BxR, lengths_B, logp_BxR, ended_B, np.ones(tokens_BxR.shape, bool), start_B
    )


def answered(reply: Reply, prompts: Prompts, talk: Samples) -> list[np.ndarray | None]:
    """What the world says to each row's last message: nothing where that has no EOS or where no
    room is left for a token behind the world's.
    """
    R = talk.tokens_BxR.shape[1]
    asks = np.flatnonzero(talk.ended_B)
    messages = [talk.tokens_BxR[b, talk.answer_B[b] : talk.lengths_B[b]] for b in asks]
    said: list[np.ndarray | None] = [None] * len(talk.lengths_B)
    for b, words in zip(asks, reply([prompts.tasks[b] for b in asks], messages)):
        if words is not None and talk.lengths_B[b] + len(words) < R:
            said[b] = np.asarray(words, np.int32)
    return said


def told(talk: Samples, said: Sequence[np.ndarray | None]) -> Samples:
    """With the world's words, where there are any, behind the rows' last messages."""
    talk = jax.tree.map(np.copy, talk)
    for b, words in enumerate(said):
        if words is not None:
            start, stop = talk.lengths_B[b], talk.lengths_B[b] + len(words)
            talk.tokens_BxR[b, start:stop] = words
            talk.author_BxR[b, start:stop] = False
            talk.lengths_B[b] = talk.answer_B[b] = stop
            talk.ended_B[b] = False
    return talk


def continued(
    prompts: Prompts, talk: Samples, said: Sequence[np.ndarray | None], turn: int
) -> Prompts:
    """What is to be read before the next message: prompt and conversation. Rows that have answered
    keep their place.
    """
    going_B = np.array([words is not None for words in said])
    tokens_BxS, lengths_B = join(
        *prompts[1:3], talk.tokens_BxR, np.where(going_B, talk.lengths_B, 0)
    )
    keys_B = jax.vmap(jax.random.fold_in, (0, None))(prompts.keys_B, TURNS + turn)
    room_B = np.where(going_B, talk.tokens_BxR.shape[1] - talk.lengths_B, 0)
    return Prompts(prompts.tasks, tokens_BxS, lengths_B, keys_B, 1, room_B.astype(np.int32))


def resumed(talk: Samples, more: Samples, said: Sequence[np.ndarray | None]) -> Samples:
    """With the next message behind what the world has said."""
    talk = jax.tree.map(np.copy, talk)
    for b in (b for b, words in enumerate(said) if words is not None):
        start, n = talk.lengths_B[b], int(more.lengths_B[b])
        talk.tokens_BxR[b, start : start + n] = more.tokens_BxR[b, :n]
        talk.logp_BxR[b, start : start + n] = more.logp_BxR[b, :n]
        talk.lengths_B[b] += n
        talk.ended_B[b] = more.ended_B[b]
    return talk


def converse_batches(
    graphdef,
    params,
    reply: Reply,
    tasks: Sequence[Any],
    prompts: Sequence[Sequence[int]],
    key: jax.Array,
    *,
    turns: int,
    batch_size: int,
    width: int | None = None,
    **options,
) -> Iterator[tuple[np.ndarray, bool, int]]:
    """(ids of the answer, whether it has its EOS, how often the world has spoken before it) of one
    conversation about each prompt, as `sample_batches`.
    """
    width = width or bucket(max(map(len, prompts), default=1))

    def draw(asked: Sequence[Prompts]) -> list[Samples]:
        return [
            sample_on_host(graphdef, params, *p[1:4], p.room_B, **options)  # type: ignore[misc]
            for p in asked
        ]

    for start in range(0, len(prompts), batch_size):
        rows, spare = list(prompts[start : start + batch_size]), batch_size
        spare -= len(rows)
        asked = Prompts(
            [*tasks[start : start + batch_size], *tasks[start : start + 1] * spare],
            *pad_prompts(rows + rows[:1] * spare, width),
            row_keys(key, start + np.arange(batch_size)),
        )
        (talk,) = converse(draw, [reply], [asked], turns)
        read = answers(talk)
        for i in range(len(rows)):
            yield (
                read.tokens_BxR[i, : read.lengths_B[i]],
                bool(read.ended_B[i]),
                int(calls(talk)[i]),
            )
