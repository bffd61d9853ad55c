"""The link: transport block -> code blocks -> symbols -> channel -> estimation -> detection ->
decoding, round by round.

A round is a few independent slots. Each has its own channel and carries one transport block, mapped
frequency first over the whole grant; retransmissions meet the same channel a round trip later. CRC
bits are counted, segmented and sent, but their values are random and a receiver is taken to know
which blocks failed: what 24 bits miss is one block in 2^24.

Everything random comes from a hash of (seed, what it is, round): bits from the transport block,
channel and noise from the channel's state and grant. Workflows that share those meet the same
channels and noise (common random numbers), and a result depends on nothing but its Point, the seed
and the Settings.

Letters: S slots, R receive antennas, L layers, F subcarriers, G coded bits, C code blocks.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from ..memory import remember
from ..physical import LINEAR, ChannelState, Counts, Point, Settings
from ..spec import SUBCARRIERS_PER_PRB, SYMBOLS_PER_SLOT, slot_ms
from ..toolbox import is_neural
from ..transport import REDUNDANCY_VERSIONS, coded_bits
from . import esm, ldpc
from .channel import realise
from .detection import receive, transmit
from .estimation import knowledge, noise_variance, pilots_received
from .grid import DMRS_SYMBOLS, data_symbols, frequencies_hz, symbol_times_s
from .precoding import PAST_SLOTS, directions, sounded
from .qam import map_symbols


def seed_of(*what) -> int:
    """A 31-bit seed from the content of its arguments."""
    return int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=4).digest(), "big") >> 1


@dataclass(frozen=True)
class Blocks:
    """Transport blocks of a round: bits [S, K] that are counted, coded bits [S, N], and where a
    transmission takes its own from, [G].
    """

    bits: np.ndarray
    coded: np.ndarray
    places: tuple[np.ndarray, ...]


def random_bits(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """What rng.integers(0, 2, shape, np.uint8) draws, several times as fast: the top bits of the
    generator's bytes.
    """
    count = int(np.prod(shape))
    numbers = rng.bit_generator.random_raw(-(-count // 8)).astype("<u8", copy=False)
    return (numbers.view(np.uint8)[:count] >> 7).reshape(shape)


def transport_blocks(point: Point, seed: int, num_slots: int, backend: str) -> Blocks:
    """Random bits, coded."""
    rng = np.random.default_rng(seed)
    num_coded = coded_bits(point.workflow)
    if point.code == "ldpc":
        code = point.segmentation
        bits = random_bits(rng, (num_slots * code.num_blocks, code.info))
        if backend == "sionna":
            from . import sionna_stages

            coded = sionna_stages.encode_ldpc(point, bits.reshape(num_slots, code.num_blocks, -1))
            return Blocks(bits.reshape(num_slots, -1), coded, (np.arange(num_coded),))
        rows = ldpc.rows_needed(code, point.num_transmissions if point.combining == "ir" else 1)
        coded = ldpc.encode(code, bits, rows)
        versions = REDUNDANCY_VERSIONS if point.combining == "ir" else (0,) * 4
        places = tuple(
            ldpc.places(code, point.bits_per_symbol, v) for v in versions[: point.num_transmissions]
        )
        return Blocks(bits.reshape(num_slots, -1), coded.reshape(num_slots, -1), places)
    coded = rng.integers(0, 2, (num_slots, num_coded), dtype=np.uint8)
    bits = coded
    if point.code == "polar":
        from . import sionna_stages

        bits, sent = sionna_stages.polar_blocks(point, rng, num_slots)
        coded[:, : sent.shape[1]] = sent
    return Blocks(bits, coded, (np.arange(num_coded),) * point.num_transmissions)


@remember(max_bytes=384 << 20)
def surroundings(
    state: ChannelState,
    num_slots: int,
    times_s: tuple[float, ...],
    num_prb: int,
    scs_khz: int,
    seed: int,
    backend: str,
):
    """Channels [S, R, Tx, times, F] complex64."""
    if backend == "sionna":
        from .sionna_stages import realise as draw
    else:
        draw = realise
    return (draw(state, num_slots, seed, times_s, frequencies_hz(num_prb, scs_khz)),)


@remember(max_bytes=384 << 20)
def unit_noise(num_slots: int, num_rx: int, num_symbols: int, num_sc: int, seed: int):
    """Noise of unit variance [S, R, symbols, F], complex64."""
    shape = (num_slots, num_rx, num_symbols, num_sc)
    noise = (
        np.random.default_rng(seed)
        .standard_normal((*shape, 2), dtype=np.float32)
        .view(np.complex64)[..., 0]
    )
    return (noise * np.float32(np.sqrt(0.5)),)


@dataclass(frozen=True)
class Air:
    """What a round's transmissions meet: the layers' channels [S, R, L, 14, F] of each, and their
    mean powers.
    """

    channels: tuple[np.ndarray, ...]
    gains: tuple[float, ...]


def air(point: Point, seed: int, num_slots: int, backend: str) -> Air:
    """The channels of a round, precoded if the workflow says so."""
    slot_s = slot_ms(point.scs_khz) * 1e-3
    past = () if point.precoder == "none" else tuple(-slot_s * slot for slot in PAST_SLOTS)
    symbols = tuple(
        k * point.round_trip_s + t
        for k in range(point.num_transmissions)
        for t in symbol_times_s(point.scs_khz)
    )
    (h,) = surroundings(
        point.state, num_slots, (*past, *symbols), point.num_prb, point.scs_khz, seed, backend
    )
    each = np.split(h[:, :, :, len(past) :], point.num_transmissions, axis=3)
    if not past:
        return Air(tuple(map(np.ascontiguousarray, each)), (1.0,) * point.num_layers)
    beams = directions(
        sounded(h[:, :, :, : len(past)], point.snr_db, seed), point.num_layers, point.precoder
    )
    each = tuple(
        np.ascontiguousarray(np.einsum("srtaf,stl->srlaf", part, beams, optimize=True))
        for part in each
    )
    gains = tuple(
        float(f"{max(g, 1e-6):.1e}") for g in np.mean(np.abs(each[0]) ** 2, axis=(0, 1, 3, 4))
    )
    return Air(each, gains)


def modulate(
    coded: np.ndarray, place: np.ndarray, bits_per_symbol: int, backend: str
) -> np.ndarray:
    """Symbols [S, G / m] of the coded bits [S, N] at `place`."""
    if backend == "sionna":
        from . import sionna_stages

        return sionna_stages.map_symbols(coded[:, place], bits_per_symbol)
    return map_symbols(coded, place, bits_per_symbol)


def front_end(
    point: Point, h: np.ndarray, gains, x: np.ndarray, noise: np.ndarray, backend: str
) -> np.ndarray:
    """LLRs [S, G] of a transmission: symbols x [S, G / m] over channels h [S, R, L, 14, F] and
    noise [S, R, 14, F].
    """
    symbols, variance = data_symbols(point.num_dmrs), noise_variance(point, gains)
    y = transmit(h, x, noise, np.sqrt(variance), symbols)
    pilot_noise = noise[:, :, list(DMRS_SYMBOLS[point.num_dmrs])]
    if is_neural(point.detector):
        from . import deeprx

        return deeprx.llr(
            point, y, pilots_received(h, pilot_noise, np.sqrt(variance), point.num_dmrs), variance
        )
    g, known = knowledge(point, h, gains, pilot_noise)
    if point.detector in LINEAR and backend == "native":
        return receive(y, g, known, symbols, point.detector, point.bits_per_symbol)
    from . import sionna_stages

    return sionna_stages.receive(y, g, known, symbols, point.detector, point.bits_per_symbol)


def simulate_round(point: Point, seed: int, round_: int, settings: Settings) -> Counts:
    """One transport block in each of the round's slots. Blocks in error are sent again, up to
    point.num_transmissions.
    """
    num_slots, backend = point.slots_per_round, settings.backend
    if backend == "sionna" and point.code == "ldpc" and point.num_transmissions > 1:
        raise ValueError(
            "backend='sionna': Sionna's LDPC encoder has one redundancy version, so one"
            " transmission"
        )
    channel_seed = seed_of(seed, "channel", point.state, point.num_prb, point.scs_khz, round_)
    if settings.method == "esm" and esm.covers(point):
        return expected_round(point, channel_seed)
    blocks = transport_blocks(
        point, seed_of(seed, "bits", point.workflow, round_), num_slots, backend
    )
    around = air(point, channel_seed, num_slots, backend)
    num_sc = point.num_prb * SUBCARRIERS_PER_PRB
    wrong, failed = np.ones(num_slots, np.int64), []
    soft = np.zeros(blocks.coded.shape, np.int16 if point.code == "ldpc" else np.float32)
    for k in range(point.num_transmissions):
        open_ = np.flatnonzero(wrong)  # slots whose block is not delivered yet
        if len(open_):
            (noise,) = unit_noise(
                num_slots,
                point.state.num_rx,
                SYMBOLS_PER_SLOT,
                num_sc,
                seed_of(channel_seed, "noise", k),
            )
            h = around.channels[k]
            if len(open_) < num_slots:
                h, noise = np.ascontiguousarray(h[open_]), noise[open_]
            x = modulate(blocks.coded[open_], blocks.places[k], point.bits_per_symbol, backend)
            llr = front_end(point, h, around.gains, x, noise, backend)
            part = soft[open_]
            decided = decode(point, llr, part, blocks.places[k], k + 1, backend)
            soft[open_] = part
            wrong[open_] = np.count_nonzero(decided != blocks.bits[open_], axis=1)
        failed.append(int(np.count_nonzero(wrong)))
    share = wrong / blocks.bits.shape[1]
    return Counts(
        num_slots,
        blocks.bits.size,
        int(wrong.sum()),
        tuple(failed),
        float(share.sum()),
        float(np.sum(share**2)),
    )


def expected_round(point: Point, channel_seed: int) -> Counts:
    """The same channels as the link's, and what the tables expect of them (twin.chain.esm)."""
    around = air(point, channel_seed, point.slots_per_round, "native")
    shape = (
        point.slots_per_round,
        point.state.num_rx,
        point.num_dmrs,
        point.num_prb * SUBCARRIERS_PER_PRB,
    )
    noises = [
        unit_noise(*shape, seed_of(channel_seed, "pilots", k))[0]
        for k in range(point.num_transmissions)
    ]
    return esm.simulate_round(point, around.channels, around.gains, noises)


def decode(
    point: Point,
    llr: np.ndarray,
    soft: np.ndarray,
    place: np.ndarray,
    num_transmissions: int,
    backend: str,
) -> np.ndarray:
    """Decided bits [S, K] after another transmission's LLRs [S, G], which are added to what earlier
    ones left in soft [S, N].
    """
    if point.code == "none":
        soft += llr
        return soft < 0
    if point.code == "polar":
        from . import sionna_stages

        soft += llr
        return sionna_stages.decode_polar(point, soft)
    code = point.segmentation
    if backend == "sionna":
        from . import sionna_stages

        return sionna_stages.decode_ldpc(point, llr)
    ldpc.recover(llr, place, soft)
    rows = ldpc.rows_needed(code, num_transmissions if point.combining == "ir" else 1)
    return ldpc.decode(
        code, soft.reshape(-1, code.mother_length), point.decoder_iterations, rows
    ).reshape(len(llr), -1)


def simulate(point: Point, seed: int, settings: Settings) -> Counts:
    """The point's rounds; without any, rounds until the counts are enough (see Settings)."""
    counts = Counts()
    if point.rounds is not None:
        for round_ in range(*point.rounds):
            counts += simulate_round(point, seed, round_, settings)
        return counts
    while not counts.enough(settings):
        counts += simulate_round(point, seed, counts.num_blocks // point.slots_per_round, settings)
    return counts
