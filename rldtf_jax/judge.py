"""The judge's side of a step: what training asks of an environment, and Eq. 3-4 over all arms in
one call of the twin.

Dimensions in names: B rollouts of a step, P padded prompt, T response positions, M sequences.
"""

from typing import Any, NamedTuple, Protocol, Sequence

import jax
import numpy as np

from rldtf_jax.config import RLDTFConfig
from rldtf_jax.reward import NO_SERVICE
from rldtf_jax.sample import Samples, answers, behind, calls
from rldtf_jax.token_weight import (
    NO_PERTURBATIONS,
    Field,
    Perturbations,
    Sensitivity,
    perturb,
    perturb_by_policy,
    perturb_in_kind,
    sensitivity,
    signed_change,
)
from rldtf_jax.update import Alternatives

OPTIONS = 16  # tokens at most that an environment values at a position


class Verdict(NamedTuple):
    """What the twin says of M responses."""

    reward_M: np.ndarray  # float32, Eq. 2; -1 where there was nothing to run
    fulfilled_M: np.ndarray  # bool
    failure_M: list[str | None]  # why there was nothing to run, in a word
    stats: dict[str, float]  # sequences, distinct workflows, cache hits, simulated, seconds
    # of `reward.margins`, NaN where there was nothing to run; None: not known
    margin_Mx3: np.ndarray | None = None
    # (M,) each by its name in `PricesConfig`: what else a response takes; nothing where none ran
    costs: dict[str, np.ndarray] | None = None


class Policy(NamedTuple):
    """A model as `sample` takes it."""

    graphdef: Any  # nnx.GraphDef
    params: Any


class Imagined(NamedTuple):
    """What an environment's own model of its judge expects where another token stands at a position
    and the rest follows suit.
    """

    # int32, K = OPTIONS tokens that might stand at t, the sampled one among them
    tokens_BxTxK: np.ndarray
    worth_BxTxK: np.ndarray  # float32, expected R less NO_SERVICE; 0 for what is not valued
    stats: dict[str, float]  # metrics of its own


class Environment(Protocol):
    """The tasks and their judge. A response is an array of token ids; its text ends at the first
    EOS.
    """

    eos_id: int

    def batch(self, step: int, num_prompts: int) -> tuple[list[Any], np.ndarray, np.ndarray]:
        """(tasks, prompts_BxP, lengths_B) of a step, a function of the step alone; P never
        changes.
        """

    def judge(
        self, tasks: Sequence[Any], responses: Sequence[np.ndarray], policy: Policy
    ) -> Verdict:
        """Translates c = f(a), by asking `policy` once more if that is what f is; runs the twin
        once per distinct workflow, and rewards.
        """

    def fields(self, tasks: Sequence[Any], responses: Sequence[np.ndarray]) -> list[list[Field]]:
        """The values that it reads from each response, with the others that each might have; for
        `perturb` = "in-kind" and `weight_by` = "grammar".
        """

    def summary(
        self,
        tasks: Sequence[Any],
        responses: Sequence[np.ndarray],
        verdict: Verdict,
        logp: Sequence[np.ndarray],
    ) -> dict[str, float]:
        """Further metrics of the rollouts of a step; logp: of each token of the responses, when it
        was sampled.
        """

    def reply(
        self, tasks: Sequence[Any], messages: Sequence[np.ndarray]
    ) -> Sequence[np.ndarray | None]:
        """For `turns` > 1 alone: what the world says to each message, in token ids up to where the
        next message begins; None to one that asks nothing, which then is the answer.
        """

    def imagine(
        self,
        tasks: Sequence[Any],
        responses: Sequence[np.ndarray],
        num_tokens: int,
        verdict: Verdict,
    ) -> Imagined:
        """For `advantage` = "expected" alone: what the alternatives of each of T = num_tokens
        tokens are worth, without asking the judge, who has said `verdict` of the first of the
        responses.
        """


class Arm(NamedTuple):
    """One of the trainings that take a step together: its hyper-parameters, its seed, and its tasks
    in the order that this seed gives them.
    """

    config: RLDTFConfig
    seed: int
    env: Environment


class Prompts(NamedTuple):
    """The prompts of a step, each as often as it is sampled, and the keys that the responses are
    drawn with.
    """

    tasks: list[Any]
    tokens_BxP: np.ndarray
    lengths_B: np.ndarray
    keys_B: jax.Array
    each: int = 1  # neighbours that are of one prompt
    room_B: np.ndarray | None = None  # int32, a row's most tokens; None: as many as a response has


class Judged(NamedTuple):
    """What the twin says of a step's responses."""

    verdict: Verdict  # of the first `judge_first` rollouts, or of all
    reward_B: np.ndarray  # R less what its costs are priced at; NaN where the twin was not asked
    S: Sensitivity  # Eq. 4
    change_BxT: np.ndarray  # R(y) less the mean reward over the perturbations of token t
    # bool, tokens of values that the judge reads; all False where the config has no use for them
    read_BxT: np.ndarray
    imagined: Imagined | None = None  # where the config has a use for it
    # (B,) each by its name in `PricesConfig`, of the rollouts that the twin was asked about
    costs: dict[str, np.ndarray] | None = None


def perturbations(
    arm: Arm,
    prompts: Prompts,
    samples: Samples,
    alternatives: Alternatives | None,
    completed: Perturbations | None,
    fields: Sequence[Sequence[Field]],
    step: int,
) -> Perturbations:
    """Eq. 3 of the rollouts that have their EOS (of all, where the policy writes on), in the kind
    that the config names; none where nothing asks for them. Of a conversation its answer alone,
    which positions are counted in: what the policy asked before has had its result.
    """
    config, seed = arm.config, hash_seed(arm.seed, step)
    samples, start_B = answers(samples), samples.answer_B
    lengths_B = samples.lengths_B * samples.ended_B
    if not config.perturbs:
        return NO_PERTURBATIONS
    if completed is not None:
        return completed
    if config.perturb == "policy":
        others_NxBxT, other_BxT = np.asarray(alternatives.tokens_NxBxT), alternatives.other_BxT
        if start_B is not None:
            others_NxBxT = np.stack([behind(one, start_B) for one in others_NxBxT])
            other_BxT = behind(other_BxT, start_B)
        return perturb_by_policy(
            samples.tokens_BxR, lengths_B, others_NxBxT, np.asarray(other_BxT) > config.ask_above
        )
    if config.perturb == "in-kind":
        return perturb_in_kind(fields, config.num_perturb, seed)
    return perturb(samples.tokens_BxR, lengths_B, config.num_perturb, seed, config.delete_prob)


def judge(
    arms: Sequence[Arm],
    prompts: Sequence[Prompts],
    samples: Sequence[Samples],
    alternatives: Sequence[Alternatives | None],
    step: int,
    policy: Policy | None = None,
    completed: Sequence[Perturbations | None] | None = None,
) -> list[Judged]:
    """The responses of all arms and their perturbations in one call of the twin, whose stats all
    verdicts share.

    A sequence without an EOS is incomplete, R = -1, and costs no simulation: a rollout cut off at
    its budget (none of its tokens is replaced) as well as a perturbed response that lost its EOS.
    """
    tasks, sequences, perturbed, fields, responses = [], [], [], [], []
    for arm, asked, sampled, others, written in zip(
        arms, prompts, samples, alternatives, completed or [None] * len(arms)
    ):
        read = answers(sampled)
        rollouts = [
            tokens[:n] if end else tokens[:0] for tokens, n, end in zip(*read[:2], read.ended_B)
        ]
        responses.append(rollouts)
        fields.append(arm.env.fields(asked.tasks, rollouts) if arm.config.reads_fields else [])
        changed = perturbations(arm, asked, sampled, others, written, fields[-1], step)
        first = rollouts[: arm.config.judge_first]
        sequences += [
            *first,
            *(ids if arm.env.eos_id in ids else ids[:0] for ids in changed.tokens),
        ]
        tasks += [*asked.tasks[: len(first)], *(asked.tasks[b] for b in changed.row)]
        perturbed.append(changed)
    verdict = arms[0].env.judge(tasks, sequences, policy)
    whole_M = np.array([len(ids) > 0 for ids in sequences], bool)
    R_M = np.where(whole_M, verdict.reward_M, NO_SERVICE).astype(np.float32)
    unreadable_M = ~whole_M | np.array([reason is not None for reason in verdict.failure_M], bool)
    paid_M = {name: np.asarray(x, np.float32) for name, x in (verdict.costs or {}).items()}
    judged, start = [], 0
    for arm, asked, sampled, rollouts, changed, found in zip(
        arms, prompts, samples, responses, perturbed, fields
    ):
        B, T = sampled.tokens_BxR.shape
        start_B = np.zeros(B, int) if sampled.answer_B is None else sampled.answer_B
        changed = changed._replace(position=changed.position + start_B[changed.row])
        n = len(rollouts[: arm.config.judge_first])
        own, others = slice(start, start + n), slice(start + n, start + n + len(changed.row))
        failure_M = [
            reason if end else "truncated"
            for reason, end in zip(verdict.failure_M[own], sampled.ended_B)
        ]
        written = costs_of_writing(sampled)
        prices = vars(arm.config.prices)
        less_M = R_M - priced(paid_M, prices, len(R_M))
        less_B = priced(written, prices, B)
        reward_B = np.pad(less_M[own] - less_B[:n], (0, B - n), constant_values=np.nan)
        perturbed_M = less_M[others] - less_B[changed.row]
        read_BxT = np.zeros((B, T), bool)
        for b, row in enumerate(found):
            for field in row:
                read_BxT[b, start_B[b] + field.start : start_B[b] + field.stop] = True
        margin_Mx3 = None if verdict.margin_Mx3 is None else verdict.margin_Mx3[own]
        own_verdict = Verdict(
            R_M[own],
            verdict.fulfilled_M[own] & sampled.ended_B[:n],
            failure_M,
            verdict.stats,
            margin_Mx3,
        )
        judged.append(
            Judged(
                own_verdict,
                reward_B,
                sensitivity(reward_B, perturbed_M, changed, T, unreadable_M[others]),
                signed_change(reward_B, perturbed_M, changed, T),
                read_BxT,
                (
                    arm.env.imagine(asked.tasks, rollouts, T, own_verdict)
                    if arm.config.advantage == "expected"
                    else None
                ),
                {name: x[own] for name, x in paid_M.items()}
                | {name: x[:n] for name, x in written.items()},
            )
        )
        start = others.stop
    return judged


def costs_of_writing(samples: Samples) -> dict[str, np.ndarray]:
    """(B,) each: what the policy itself has taken."""
    return {
        "calls": calls(samples).astype(np.float32),
        "tokens": samples.own_BxR.sum(-1, dtype=np.float32) / 100,
    }


def priced(costs: dict[str, np.ndarray], prices: dict[str, float], number: int) -> np.ndarray:
    """The sum of costs times their prices: (number,) float32."""
    total = np.zeros(number, np.float32)
    for name, x in costs.items():
        total += np.float32(prices[name]) * x
    return total


def unjudged(samples: Samples) -> Judged:
    B, T = samples.tokens_BxR.shape
    nothing = np.zeros((B, T), np.float32)
    reward_B = np.full(B, NO_SERVICE, np.float32)
    return Judged(
        Verdict(reward_B, np.zeros(B, bool), [None] * B, {}),
        reward_B,
        Sensitivity(nothing, nothing),
        nothing,
        np.zeros((B, T), bool),
    )


def hash_seed(*numbers: int) -> int:
    """One 32-bit seed from several numbers, the same in every process."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
