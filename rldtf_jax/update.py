"""The compiled part of a step of RLDTF: what policy, critic and anchor say of the rollouts, and one
update along Eq. 9.

Dimensions in names: B rollouts, T response positions, S = prompt + T, N micro-batches.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from rldtf_jax import lora, optim
from rldtf_jax.logprob import entropy, log_prob, token_stats
from rldtf_jax.loss import expected_loss, policy_loss, regulariser, total_loss, value_loss
from rldtf_jax.sft import response_states, response_tokens


class Hyper(NamedTuple):
    """The scalars of the update: traced, so that sweeping them compiles nothing."""

    clip: jax.Array
    beta_ent: jax.Array
    beta_kl: jax.Array
    k1: jax.Array
    k2: jax.Array
    temperature: jax.Array
    policy: optim.Hyper
    critic: optim.Hyper


class Static(NamedTuple):
    """What shapes the compiled update."""

    policy_def: Any  # nnx.GraphDef
    critic_def: Any
    aggregation: str
    microbatches: int
    logit_chunk: int | None
    dual_clip: float | None = None
    value_clip: float | None = None
    with_critic: bool = True


class Frozen(NamedTuple):
    """With LoRA, the weights that no update changes; `Learner` then holds the deltas (see
    lora.py).
    """

    policy: Any = None
    critic: Any = None


class Learner(NamedTuple):
    """What an update changes."""

    policy: Any
    critic: Any
    opt_policy: Any
    opt_critic: Any
    skipped: jax.Array  # () int32, updates left out because they were not finite
    skipped_in_a_row: jax.Array  # () int32


class Rollouts(NamedTuple):
    """B prompt + response rows and what the update needs of the moment they were sampled."""

    tokens_BxS: jax.Array
    prompt_lengths_B: jax.Array
    lengths_B: jax.Array  # prompt and response
    old_logp_BxT: jax.Array  # of the behaviour policy, at the sampling temperature
    anchor_hidden_BxTxD: jax.Array  # of the KL's second distribution
    advantage_BxT: jax.Array
    return_BxT: jax.Array
    weight_BxT: jax.Array
    old_value_BxT: jax.Array  # V_old(s_t)
    # int32, tokens that might stand at t, and what each is worth; advantage = expected
    option_BxTxK: Any = None
    worth_BxTxK: Any = None
    # bool, the policy's own tokens among a conversation's; None: all are
    author_BxT: Any = None


@functools.partial(jax.jit, static_argnames=("static", "num_tokens"))
def old_states(
    static: Static, critic, anchor, tokens_BxS, prompt_lengths_B, lengths_B, num_tokens: int
):
    """(V_old(s_t) (B, T), zero without a critic; the anchor's hidden states (B, T, D)) of the
    response positions, before any update.
    """
    anchor = nnx.merge(static.policy_def, anchor)
    states = functools.partial(
        response_states, prompt_lengths_B=prompt_lengths_B, num_tokens=num_tokens
    )
    value_BxT = jnp.zeros((len(tokens_BxS), num_tokens), jnp.float32)
    if static.with_critic:
        critic = nnx.merge(static.critic_def, critic)
        value_BxT = critic.value(states(critic.hidden(tokens_BxS, lengths_B)))
    return value_BxT, states(anchor.hidden(tokens_BxS, lengths_B))


class Alternatives(NamedTuple):
    """What the policy might have written at each response position in place of the sampled
    token.
    """

    tokens_NxBxT: jax.Array  # int32, drawn from pi(. | s_t) without the sampled token
    other_BxT: jax.Array  # float32, 1 - pi(a_t | s_t)
    entropy_BxT: jax.Array  # float32, of pi(. | s_t), nats


@functools.partial(jax.jit, static_argnames=("static", "num_tokens", "num"))
def alternatives(
    static: Static,
    policy,
    tokens_BxS,
    prompt_lengths_B,
    lengths_B,
    keys_B,
    temperature,
    num_tokens: int,
    num: int,
) -> Alternatives:
    """`num` independent draws of another token for every response position; row b draws from
    keys_B[b] alone.
    """
    policy = nnx.merge(static.policy_def, policy)
    hidden_BxTxD = response_states(
        policy.hidden(tokens_BxS, lengths_B), prompt_lengths_B, num_tokens
    )
    tokens_BxT, _ = response_tokens(tokens_BxS, prompt_lengths_B, lengths_B, num_tokens)

    def row(key, hidden_TxD, tokens_T):
        logits_TxV = policy.unembed(hidden_TxD) / temperature
        p_T = jnp.exp(log_prob(logits_TxV, tokens_T))
        others_TxV = jnp.where(
            jax.nn.one_hot(tokens_T, logits_TxV.shape[-1], dtype=bool), -jnp.inf, logits_TxV
        )
        drawn_NxT = jax.random.categorical(key, others_TxV, shape=(num, num_tokens))
        return drawn_NxT.astype(jnp.int32), 1.0 - p_T, entropy(logits_TxV)

    drawn_BxNxT, *rest = jax.lax.map(lambda x: row(*x), (keys_B, hidden_BxTxD, tokens_BxT))
    return Alternatives(jnp.moveaxis(drawn_BxNxT, 0, 1), *rest)


def counted(rows: Rollouts):
    """(tokens, which of them count), (B, T) each: the policy's own, up to the response's end."""
    T = rows.old_logp_BxT.shape[1]
    tokens_BxT, mask = response_tokens(rows.tokens_BxS, rows.prompt_lengths_B, rows.lengths_B, T)
    return tokens_BxT, mask if rows.author_BxT is None else mask & rows.author_BxT


def rldtf_loss(static: Static, policy, critic, anchor, rows: Rollouts, hyper: Hyper, num_counted):
    """Eq. 9 of some rows, scaled so that the mean over equal micro-batches is Eq. 9 of the batch:
    (loss, metrics).

    num_counted: response tokens a micro-batch counts on average over the batch, the scale of every
      token mean.
    """
    policy_model, critic_model, anchor_model = (
        nnx.merge(definition, params)
        for definition, params in (
            (static.policy_def, policy),
            (static.critic_def, critic),
            (static.policy_def, anchor),
        )
    )
    T = rows.old_logp_BxT.shape[1]
    tokens_BxT, mask = counted(rows)
    states = functools.partial(
        response_states, prompt_lengths_B=rows.prompt_lengths_B, num_tokens=T
    )
    stats = token_stats(
        policy_model.unembed,
        states(policy_model.hidden(rows.tokens_BxS, rows.lengths_B)),
        tokens_BxT,
        anchor_model.unembed,
        rows.anchor_hidden_BxTxD,
        options_BxTxK=rows.option_BxTxK,
        temperature=hyper.temperature,
        chunk=static.logit_chunk,
    )
    value_BxT = (
        critic_model.value(states(critic_model.hidden(rows.tokens_BxS, rows.lengths_B)))
        if static.with_critic
        else None
    )

    token_share = jnp.sum(mask) / num_counted
    per_token = len(mask) / num_counted if static.aggregation == "token-mean" else 1.0
    L_policy = per_token * (
        policy_loss(
            stats.logp,
            rows.old_logp_BxT,
            rows.advantage_BxT,
            rows.weight_BxT,
            mask,
            hyper.clip,
            static.dual_clip,
        )
        if rows.option_BxTxK is None
        else expected_loss(stats.options, rows.worth_BxTxK, rows.weight_BxT, mask)
    )
    L_value = (
        per_token
        * value_loss(value_BxT, rows.return_BxT, mask, rows.old_value_BxT, static.value_clip)
        if static.with_critic
        else jnp.float32(0.0)
    )
    L_reg = token_share * regulariser(stats.entropy, stats.kl, mask, hyper.beta_ent, hyper.beta_kl)

    def token_mean(x_BxT):
        return jnp.sum(jnp.where(mask, x_BxT, 0.0)) / num_counted

    log_ratio = jnp.where(mask, stats.logp - rows.old_logp_BxT, 0.0)
    metrics = {
        "policy_loss": L_policy,
        "value_loss": L_value,
        "reg_loss": L_reg,
        "entropy": token_mean(stats.entropy),
        "kl": token_mean(stats.kl),
        "ratio": token_mean(jnp.exp(log_ratio)),
        # in a step's first update what sampler and trainer differ by
        "log_ratio": token_mean(jnp.abs(log_ratio)),
        "clip_fraction": token_mean(jnp.abs(jnp.expm1(log_ratio)) > hyper.clip),
    }
    return total_loss(L_policy, L_value, L_reg, hyper.k1, hyper.k2), metrics


@functools.partial(jax.jit, static_argnames=("static",), donate_argnames=("learner",))
def update(
    static: Static,
    learner: Learner,
    anchor,
    rows: Rollouts,
    hyper: Hyper,
    frozen: Frozen = Frozen(),
) -> tuple[Learner, dict]:
    """One step of AdamW on policy and critic along the gradient of Eq. 9, averaged over
    micro-batches in a scan.
    """
    N, (_, mask) = static.microbatches, counted(rows)
    num_counted = jnp.maximum(jnp.sum(mask), 1) / N

    def grads_and_metrics(part):
        def loss_fn(policy, critic):
            return rldtf_loss(
                static,
                lora.merge(frozen.policy, policy),
                lora.merge(frozen.critic, critic),
                anchor,
                part,
                hyper,
                num_counted,
            )

        (loss, metrics), grads = jax.value_and_grad(loss_fn, (0, 1), has_aux=True)(
            learner.policy, learner.critic
        )
        return grads, metrics | {"loss": loss}

    def accumulate(mean, part):
        return jax.tree.map(lambda m, x: m + x / N, mean, grads_and_metrics(part)), None

    parts = jax.tree.map(lambda x: x.reshape(N, -1, *x.shape[1:]), rows)
    shapes = jax.eval_shape(grads_and_metrics, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    ((policy_grads, critic_grads), metrics), _ = jax.lax.scan(
        accumulate, zeros, parts, unroll=N == 1
    )

    # Each watches the other's gradient: an update is taken whole or left out whole.
    policy = optim.apply(
        hyper.policy,
        learner.policy,
        learner.opt_policy,
        policy_grads,
        metrics["loss"],
        optax.global_norm(critic_grads),
    )
    critic = optim.apply(
        hyper.critic,
        learner.critic,
        learner.opt_critic,
        critic_grads,
        metrics["loss"],
        policy.grad_norm,
    )
    in_a_row = jnp.where(policy.finite, 0, learner.skipped_in_a_row + 1)
    new = Learner(
        policy.params,
        critic.params,
        policy.opt_state,
        critic.opt_state,
        learner.skipped + ~policy.finite,
        in_a_row,
    )
    return new, metrics | {
        "grad_norm": policy.grad_norm,
        "critic_grad_norm": critic.grad_norm,
        "skipped": new.skipped,
        "skipped_in_a_row": in_a_row,
    }
