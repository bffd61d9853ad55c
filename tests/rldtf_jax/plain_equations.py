"""Eq. 2-9 of the paper read plainly: Python floats, lists and loops, one function an equation,
nothing from JAX.

The second opinion that the tests compare the package with. Nested lists `x[b][t]` hold a batch;
`length[b]` says how many tokens of response b there are, and nothing behind them is ever looked at.
"""

import math


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def margins(measured, required, config):
    """How much better than asked, in the order (delay, throughput, BER)."""
    (delay, throughput, ber), (max_delay, min_throughput, max_ber) = measured, required
    if config.margin == "absolute":
        return [max_delay - delay, throughput - min_throughput, max_ber - ber]
    free = [
        (max_delay - delay) / max_delay,
        share_above(throughput, min_throughput),
        math.log10(max_ber) - math.log10(ber),
    ]
    return [min(max(m, -cap), cap) for m, cap in zip(free, config.margin_cap)]


def share_above(measured, required):
    """Where nothing is required, anything is infinitely more and nothing exactly enough."""
    if required == 0:
        return math.inf if measured > 0 else 0.0
    return (measured - required) / required


def reward(measured, required, config):
    """Eq. 2 of one response."""
    m = margins(measured, required, config)
    (delay, throughput, ber), (max_delay, min_throughput, max_ber) = measured, required
    if delay <= max_delay and throughput >= min_throughput and ber <= max_ber:
        return config.base_satisfied - sum(w * x for w, x in zip(config.weight_satisfied, m))
    return config.base_violated + sum(
        w * (1.0 if x == 0 else sigmoid(1 / abs(x))) for w, x in zip(config.weight_violated, m)
    )


def is_perturbation(original, changed, t):
    """Eq. 3: whether `changed` is `original` with token t alone removed, or replaced by another one
    of the response.
    """
    removed = original[:t] + original[t + 1 :]
    replaced = [
        original[:t] + [token] + original[t + 1 :] for token in original if token != original[t]
    ]
    return changed == removed or changed in replaced


def sensitivity(R_0, perturbed_rewards):
    """Eq. 4 of one token: R_0 of the response and the N rewards of its perturbations."""
    return sum(abs(R_0 - R) for R in perturbed_rewards) / len(perturbed_rewards)


def token_weights(S, alpha, threshold, lam):
    """Eq. 5 of one response, applied to the tokens whose sensitivity exceeds the threshold."""
    return [1 + alpha * s / (max(S) + lam) if s > threshold else 1.0 for s in S]


def policy_loss(logp, old_logp, advantage, weight, length, clip):
    """Eq. 6."""
    total = 0.0
    for b, T in enumerate(length):
        for t in range(T):
            ratio = math.exp(logp[b][t] - old_logp[b][t])
            clipped = min(max(ratio, 1 - clip), 1 + clip)
            total += weight[b][t] * min(ratio * advantage[b][t], clipped * advantage[b][t])
    return -total / len(length)


def value_loss(value, R, length):
    """Eq. 7."""
    return sum((R[b] - value[b][t]) ** 2 for b, T in enumerate(length) for t in range(T)) / len(
        length
    )


def softmax(logits):
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    return [w / sum(weights) for w in weights]


def entropy(logits):
    """H of softmax(logits), nats."""
    return -sum(p * math.log(p) for p in softmax(logits) if p > 0)


def kl_divergence(logits, anchor_logits):
    """KL(softmax(logits) || softmax(anchor_logits)), nats."""
    return sum(
        p * math.log(p / q) for p, q in zip(softmax(logits), softmax(anchor_logits)) if p > 0
    )


def regulariser(H, kl, length, beta_ent, beta_kl):
    """Eq. 8, the expectation being over the tokens of the batch."""
    counted = [(b, t) for b, T in enumerate(length) for t in range(T)]
    return sum(-beta_ent * H[b][t] + beta_kl * kl[b][t] for b, t in counted) / len(counted)


def total_loss(policy, value, reg, k1, k2):
    """Eq. 9."""
    return policy + k1 * value + k2 * reg


def gae(R, value, length, gamma, lam):
    """Generalised advantage estimation, its sum written out: A_t = sum_k (gamma lam)^k
    delta_{t+k}.
    """
    out = []
    for b, T in enumerate(length):
        after = [*value[b][1:T], 0.0]
        delta = [(R[b] if t == T - 1 else 0.0) + gamma * after[t] - value[b][t] for t in range(T)]
        out.append([sum((gamma * lam) ** k * delta[t + k] for k in range(T - t)) for t in range(T)])
    return out


def adamw(param, grad, m, v, count, lr, b1, b2, weight_decay, eps=1e-8):
    """One step on one number: (param, m, v); `count` counts from 1."""
    m, v = b1 * m + (1 - b1) * grad, b2 * v + (1 - b2) * grad**2
    step = (m / (1 - b1**count)) / (math.sqrt(v / (1 - b2**count)) + eps)
    return param - lr * (step + weight_decay * param), m, v
