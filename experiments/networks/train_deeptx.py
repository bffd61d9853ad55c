"""python -m experiments.networks.train_deeptx --run-dir DIR: train the channel predictor of the
deeptx precoder, in a few minutes.

Histories of channels of random profile, Doppler, delay spread and antennas; the loss is the squared
error of the predicted channel relative to its power, on average over links. Judged on held-out
profiles against the latest estimate as it is.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from experiments.files import whole

TRAINED = ("tdl-a", "tdl-c", "tdl-e", "cdl-a")
HELD_OUT = ("tdl-b", "tdl-d", "cdl-c")
CONFIG = dict(
    links=4000,
    held_out_links=200,
    slots=8,
    steps=30000,
    batch=128,
    learning_rate=2e-3,
    max_doppler_hz=600,
    snr_db=(-5.0, 30.0),
    num_prb=(1, 2, 4, 8, 16),
    seed=0,
)


def link(
    rng: np.random.Generator, channels: tuple[str, ...], num_slots: int, snr_db: float | None = None
):
    """Estimates [rx, tx, S, P, F] and the channel to predict [rx, tx, S, F] of one random link, and
    its Doppler per slot.

    snr_db: of the link; drawn if it is not given
    """
    from twin.chain.channel import realise
    from twin.chain.grid import frequencies_hz
    from twin.chain.precoding import PAST_SLOTS, SOUNDING_COMB, sounded
    from twin.physical import ChannelState
    from twin.spec import slot_ms

    scs_khz, doppler_hz = (
        int(rng.choice((15, 30, 60))),
        round(CONFIG["max_doppler_hz"] * rng.random() ** 2, 1),
    )
    num_prb = int(rng.choice(CONFIG["num_prb"]))
    state = ChannelState(
        str(rng.choice(channels)),
        int(rng.integers(1, 5)),
        int(rng.integers(2, 5)),
        round(10 ** rng.uniform(1, 3), 1),
        doppler_hz,
    )
    drawn_db, seed, slot_s = (
        rng.uniform(*CONFIG["snr_db"]),
        int(rng.integers(1 << 31)),
        slot_ms(scs_khz) * 1e-3,
    )
    times_s = (*(-slot_s * slot for slot in PAST_SLOTS), slot_s / 2)
    h = realise(state, num_slots, seed, times_s, frequencies_hz(num_prb, scs_khz))
    past = sounded(h[:, :, :, :-1], drawn_db if snr_db is None else snr_db, seed)
    return (
        past,
        h[:, :, :, -1, SOUNDING_COMB // 2 :: SOUNDING_COMB].transpose(1, 2, 0, 3),
        doppler_hz * slot_s,
    )


def quadratic(past: np.ndarray, target: np.ndarray):
    """The error of weights w is quadratic in them: (x, A [S, P, P], b [S, P], c [S]) with error = w
    A w* - 2 Re(w b) + c, relative.
    """
    from twin.chain.precoding import autocorrelation

    power = np.mean(np.abs(target) ** 2)
    a = np.einsum("rispf,risqf->spq", past, past.conj(), optimize=True)
    b = np.einsum("rispf,risf->sp", past, target.conj(), optimize=True)
    scale = power * past[:, :, 0, 0].size
    return (
        autocorrelation(past),
        a / scale,
        b / scale,
        np.sum(np.abs(target) ** 2, axis=(0, 1, 3)) / scale,
    )


def data(channels: tuple[str, ...], number: int, seed: int):
    """`quadratic` of so many links, and every slot's Doppler shift times the slot's length."""
    from tqdm import tqdm

    rng, parts = np.random.default_rng([CONFIG["seed"], seed]), []
    for _ in tqdm(range(number), desc="links"):
        past, target, doppler = link(rng, channels, CONFIG["slots"])
        parts.append((*quadratic(past, target), np.full(CONFIG["slots"], doppler)))
    return [np.concatenate(arrays) for arrays in zip(*parts)]


def error(w, a, b, c):
    """Relative squared error [S] of prediction weights [S, P] complex, in numpy."""
    return np.real(np.einsum("sp,spq,sq->s", w, a, w.conj()) - 2 * np.einsum("sp,sp->s", w, b)) + c


def train(run_dir: Path) -> None:
    import keras
    import tensorflow as tf
    from safetensors.numpy import save
    from tqdm import tqdm

    from twin.chain.precoding import CSI_SLOTS, HIDDEN, weights

    run_dir.mkdir(parents=True, exist_ok=True)
    x, a, b, c, _ = data(TRAINED, CONFIG["links"], 0)
    held_out = data(HELD_OUT, CONFIG["held_out_links"], 1)
    rng = np.random.default_rng(CONFIG["seed"])
    sizes = (x.shape[1], HIDDEN, HIDDEN, 2 * CSI_SLOTS)
    params = {}
    for layer in range(3):
        scale = np.sqrt(2 / sizes[layer]) * (layer < 2)
        params[f"dense{layer}.w"] = tf.Variable(
            (rng.standard_normal(sizes[layer : layer + 2]) * scale).astype(np.float32)
        )
        params[f"dense{layer}.b"] = tf.Variable(np.zeros(sizes[layer + 1], np.float32))
    params["dense2.b"][CSI_SLOTS - 1].assign(1.0)  # to begin with, the latest estimate
    optimizer = keras.optimizers.Adam(
        keras.optimizers.schedules.CosineDecay(CONFIG["learning_rate"], CONFIG["steps"])
    )
    a_real, a_imag, b_real, b_imag = (
        np.ascontiguousarray(v, np.float32) for v in (a.real, a.imag, b.real, b.imag)
    )
    arrays = [tf.constant(v) for v in (x, a_real, a_imag, b_real, b_imag, c.astype(np.float32))]

    @tf.function(autograph=False)
    def update(rows):
        x, ar, ai, br, bi, c = (tf.gather(v, rows) for v in arrays)
        with tf.GradientTape() as tape:
            w = weights(params, x)
            u, v = w[:, :CSI_SLOTS], w[:, CSI_SLOTS:]
            # w A w^H with w = u + j v and A Hermitian: u Ar u + v Ar v + 2 u Ai v
            squared = (
                tf.einsum("sp,spq,sq->s", u, ar, u)
                + tf.einsum("sp,spq,sq->s", v, ar, v)
                + 2 * tf.einsum("sp,spq,sq->s", u, ai, v)
            )
            loss = tf.reduce_mean(squared - 2 * tf.reduce_sum(u * br - v * bi, axis=1) + c)
        optimizer.apply_gradients(zip(tape.gradient(loss, list(params.values())), params.values()))
        return loss

    losses = [
        float(update(tf.constant(rng.integers(len(x), size=CONFIG["batch"]))))
        for _ in tqdm(range(CONFIG["steps"]), desc="deeptx")
    ]
    result = evaluate({k: v.numpy() for k, v in params.items()}, held_out) | {
        "train": float(np.mean(losses[-500:]))
    }
    config = CONFIG | dict(trained=TRAINED, held_out=HELD_OUT)
    with whole(run_dir / "weights.safetensors", "wb") as file:
        file.write(
            save({k: v.numpy() for k, v in params.items()}, metadata={"config": json.dumps(config)})
        )
    text = json.dumps(
        {
            "config": config,
            "relative squared error": result,
            "loss": [float(np.mean(losses[i : i + 100])) for i in range(0, len(losses), 100)],
        },
        indent=1,
    )
    with whole(run_dir / "result.json") as file:
        file.write(text + "\n")
    print(json.dumps(result, indent=1))


def evaluate(params: dict, held_out) -> dict:
    """Mean relative squared error on the held-out profiles by Doppler shift x slot length: of the
    prediction and of the latest estimate.
    """
    from twin.chain.precoding import CSI_SLOTS, weights

    x, a, b, c, doppler = held_out
    w, latest = weights(params, x), np.zeros((len(x), CSI_SLOTS))
    latest[:, -1] = 1
    predicted, outdated = (
        error(w[:, :CSI_SLOTS] + 1j * w[:, CSI_SLOTS:], a, b, c),
        error(latest, a, b, c),
    )
    bins = (0, 0.01, 0.03, 0.06, 0.1, 0.2, 1)
    return {
        f"{low} .. {high}": {
            "deeptx": float(predicted[at].mean()),
            "outdated": float(outdated[at].mean()),
            "slots": int(at.sum()),
        }
        for low, high in zip(bins, bins[1:])
        if (at := (doppler >= low) & (doppler < high)).any()
    }


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(
        description="Train the channel predictor of the deeptx precoder."
    )
    parser.add_argument("--run-dir", type=Path, required=True)
    train(parser.parse_args(argv).run_dir)


if __name__ == "__main__":
    main()
