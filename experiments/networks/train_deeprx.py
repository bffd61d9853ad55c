"""python -m experiments.networks.train_deeprx --run-dir DIR [--size deeprx-small] [--steps N]:
train the neural receiver on the twin's own chain.

Slots with mixed modulations, SNR, receive antennas, pilots, numerologies, delay spreads and speeds,
drawn anew in every step from the channel profiles TRAINED; judged on slots of HELD_OUT. Grants of
NUM_PRB, for speed: the network is convolutional and serves any width, and the edge of so narrow a
grant is seen often. The loss is the binary cross-entropy of the coded bits. Everything random
follows from the step's number, so that a run that was killed goes on as if it had not been: on one
thread to the last bit, while several sum in no fixed order. Writes the weights that the twin loads
(twin/weights), the configuration and the loss curve.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

import numpy as np

from experiments.files import whole

TRAINED = ("tdl-a", "tdl-c", "tdl-e", "cdl-a", "rayleigh")
HELD_OUT = ("tdl-b", "tdl-d", "cdl-c")
# where coded transmission at medium rates works, by bits per symbol
CENTRE_DB = {2: 1.0, 4: 8.0, 6: 14.0, 8: 20.0}
SPAN_DB = (-6.0, 12.0)
NUM_PRB = 4
MAX_DOPPLER = 0.3  # of a slot
STEPS = {"deeprx-small": 6000, "deeprx": 4500}  # of the shipped weights
HELD_OUT_BATCHES = 8
CONFIG = dict(
    groups=4,
    slots_per_group=16,
    learning_rate=2e-3,
    warmup_steps=100,
    weight_decay=1e-4,
    clip_norm=1.0,
    early_weight=0.3,
    ema=0.998,
    seed=0,
)


def draw(rng: np.random.Generator, channels: tuple[str, ...], num_slots: int, num_rx: int):
    """Slots of one random link: what the network observes, and the data symbols' bits [S, T - D, F,
    MAX_BITS], of which the first bits_per_symbol are sent.
    """
    from twin import Scenario, Workflow
    from twin.chain import deeprx
    from twin.chain.channel import realise
    from twin.chain.detection import transmit
    from twin.chain.estimation import noise_variance, pilots_received
    from twin.chain.grid import DMRS_SYMBOLS, data_symbols, frequencies_hz, symbol_times_s
    from twin.chain.qam import constellation
    from twin.physical import SPEED_OF_LIGHT_MPS, physical
    from twin.spec import SUBCARRIERS_PER_PRB, slot_ms

    m, num_dmrs, scs_khz = (
        int(rng.choice((2, 4, 6, 8))),
        int(rng.integers(1, 3)),
        int(rng.choice((15, 30, 60))),
    )
    doppler_hz = round(rng.uniform(0, MAX_DOPPLER) / slot_ms(scs_khz) * 1e3, 1)
    scenario = Scenario(
        channel=str(rng.choice(channels)),
        num_tx_ant=1,
        num_rx_ant=num_rx,
        delay_spread_ns=round(10 ** rng.uniform(1, 3), 1),
        speed_mps=doppler_hz * SPEED_OF_LIGHT_MPS / 3.5e9,
        carrier_ghz=3.5,
        snr_db=CENTRE_DB[m] + rng.uniform(*SPAN_DB) - 10 * np.log10(num_rx),
    )
    point = physical(
        scenario,
        Workflow(
            num_prb=NUM_PRB,
            scs_khz=scs_khz,
            bits_per_symbol=m,
            num_dmrs=num_dmrs,
            detector="deeprx",
        ),
    )
    variance, symbols, num_sc = (
        noise_variance(point, (1.0,)),
        data_symbols(num_dmrs),
        NUM_PRB * SUBCARRIERS_PER_PRB,
    )
    h = realise(
        point.state,
        num_slots,
        int(rng.integers(1 << 31)),
        symbol_times_s(scs_khz),
        frequencies_hz(NUM_PRB, scs_khz),
    )
    bits = rng.integers(0, 2, (num_slots, len(symbols), num_sc, deeprx.MAX_BITS), dtype=np.int8)
    sent = constellation(m)[bits[..., :m] @ (1 << np.arange(m)[::-1])].reshape(num_slots, -1)
    noise = rng.standard_normal((num_slots, num_rx, h.shape[3], num_sc, 2), dtype=np.float32).view(
        np.complex64
    )[..., 0]
    noise *= np.float32(np.sqrt(0.5))
    y = transmit(h, sent, noise, np.sqrt(variance), symbols)
    pilots = pilots_received(
        h, noise[:, :, list(DMRS_SYMBOLS[num_dmrs])], np.sqrt(variance), num_dmrs
    )
    return deeprx.observe(y, pilots, variance, m), bits, m


def batch(rng: np.random.Generator, channels: tuple[str, ...], groups: int, slots_per_group: int):
    """What the network observes, the bits [B, T, F, 8] and which of them were sent as data, [B, T,
    F, 8] float32.
    """
    num_rx, parts = int(rng.choice((1, 2, 2, 4))), []
    for _ in range(groups):
        observed, sent_bits, m = draw(rng, channels, slots_per_group, num_rx)
        data = observed[3]
        bits = np.zeros((*data.shape, sent_bits.shape[-1]), np.float32)
        bits[data > 0] = sent_bits.reshape(-1, sent_bits.shape[-1])
        parts.append(
            (*observed, bits, data[..., None] * (np.arange(bits.shape[-1]) < m).astype(np.float32))
        )
    *observed, bits, sent = (np.concatenate(arrays) for arrays in zip(*parts))
    return tuple(observed), bits, sent


def train(size: str, num_steps: int, run_dir: Path, validate_every: int = 250) -> None:
    """Train, from the run directory's last state if there is one; leaves weights.safetensors,
    config.json and curve.csv there.

    A state is saved at every validation. Raises ValueError: a number below 1, or a directory of a
    run of another configuration.
    """
    for name, value in (("steps", num_steps), ("validate_every", validate_every)):
        if value < 1:
            raise ValueError(f"{name}={value}: expected an integer >= 1")
    run_dir.mkdir(parents=True, exist_ok=True)
    config = configuration(size, num_steps)
    claim(run_dir / "config.json", config)
    import keras
    import tensorflow as tf
    from safetensors.numpy import load_file, save
    from tqdm import tqdm

    from twin.chain import deeprx

    rate = keras.optimizers.schedules.CosineDecay(
        0.0, num_steps, warmup_target=CONFIG["learning_rate"], warmup_steps=CONFIG["warmup_steps"]
    )
    optimizer = keras.optimizers.AdamW(
        rate, weight_decay=CONFIG["weight_decay"], clipnorm=CONFIG["clip_norm"]
    )
    params = {
        name: tf.Variable(value, name=name)
        for name, value in deeprx.initial(size, CONFIG["seed"]).items()
    }
    average = {name: tf.Variable(value) for name, value in params.items()}
    optimizer.build(list(params.values()))
    state = {f"params/{k}": v for k, v in params.items()} | {
        f"average/{k}": v for k, v in average.items()
    }
    state |= {f"optimizer/{i}": v for i, v in enumerate(optimizer.variables)}
    first, rows = 0, []
    if (saved := run_dir / "state.safetensors").exists():
        arrays = load_file(saved)
        for name, variable in state.items():
            variable.assign(arrays[name])
        first = int(arrays["step"][0])
        rows = [
            row for row in csv.DictReader(open(run_dir / "curve.csv")) if int(row["step"]) <= first
        ]

    @tf.function(autograph=False)
    def losses(weights, observed, bits, sent):
        """Of every stage."""
        stages = deeprx.network(weights, observed, size)
        return [
            tf.reduce_sum(sent * tf.nn.sigmoid_cross_entropy_with_logits(bits, x))
            / tf.reduce_sum(sent)
            for x in stages
        ]

    @tf.function(autograph=False)
    def update(observed, bits, sent):
        with tf.GradientTape() as tape:
            *early, last = losses(params, observed, bits, sent)
            value = last + CONFIG["early_weight"] * tf.add_n(early)
        optimizer.apply_gradients(zip(tape.gradient(value, list(params.values())), params.values()))
        for name, variable in average.items():
            variable.assign(CONFIG["ema"] * variable + (1 - CONFIG["ema"]) * params[name])
        return last

    shape = dict(groups=CONFIG["groups"], slots_per_group=CONFIG["slots_per_group"])
    held_out = [
        batch(np.random.default_rng([CONFIG["seed"], 1, i]), HELD_OUT, **shape)
        for i in range(HELD_OUT_BATCHES)
    ]
    seen = []
    for step in tqdm(range(first + 1, num_steps + 1), initial=first, total=num_steps, desc=size):
        seen.append(
            float(
                update(*batch(np.random.default_rng([CONFIG["seed"], 0, step]), TRAINED, **shape))
            )
        )
        if step % validate_every == 0 or step == num_steps:
            rows.append(
                {
                    "step": step,
                    "train": float(np.mean(seen)),
                    "held_out": float(np.mean([losses(average, *b)[-1] for b in held_out])),
                }
            )
            seen = []
            # replaced last: a curve may know a step more than its state, never one less
            with whole(saved, "wb") as state_file:
                state_file.write(
                    save({k: np.asarray(v) for k, v in state.items()} | {"step": np.array([step])})
                )
                with whole(run_dir / "curve.csv") as file:
                    file.write(
                        "step,train,held_out\n"
                        + "".join("{step},{train},{held_out}\n".format(**r) for r in rows)
                    )
    with whole(run_dir / "weights.safetensors", "wb") as file:
        file.write(
            save(
                {k: np.asarray(v) for k, v in average.items()},
                metadata={"config": json.dumps(config)},
            )
        )


def configuration(size: str, num_steps: int) -> dict:
    """All that the weights depend on, as config.json holds it."""
    config = CONFIG | dict(
        size=size,
        steps=num_steps,
        trained=TRAINED,
        held_out=HELD_OUT,
        span_db=SPAN_DB,
        max_doppler=MAX_DOPPLER,
        num_prb=NUM_PRB,
    )
    return json.loads(json.dumps(config))


def claim(path: Path, config: dict) -> None:
    """Write the configuration; raises ValueError where the file holds another one."""
    if path.exists():
        there = json.loads(path.read_text(encoding="utf-8"))
        for name in sorted(config.keys() | there.keys()):
            if config.get(name) != there.get(name):
                raise ValueError(
                    f"{path.parent}: holds a run with {name}={there.get(name)!r}, expected"
                    f" {config.get(name)!r}: name another directory"
                )
    with whole(path) as file:
        file.write(json.dumps(config, indent=1) + "\n")


def main(argv=None) -> None:
    from twin.delay import DEEPRX

    parser = argparse.ArgumentParser(
        description="Train the neural receiver on the twin's own chain."
    )
    parser.add_argument("--size", choices=sorted(DEEPRX), default="deeprx-small")
    parser.add_argument(
        "--steps",
        type=int,
        help="default: " + ", ".join(f"{steps} of {size}" for size, steps in STEPS.items()),
    )
    parser.add_argument(
        "--validate-every",
        type=int,
        default=250,
        help="steps between validations, each of which saves the state",
    )
    parser.add_argument("--run-dir", type=Path, required=True)
    arguments = parser.parse_args(argv)
    steps = STEPS[arguments.size] if arguments.steps is None else arguments.steps
    try:
        train(arguments.size, steps, arguments.run_dir, arguments.validate_every)
    except (OSError, ValueError) as error:
        sys.exit(f"train_deeprx: {error}")


if __name__ == "__main__":
    main()
