"""What a request may say of its goal: phrases of training, and others that are held out.

The keyword rule was written by someone who has read those of training.
"""

import math
from typing import NamedTuple

from experiments.network.problems import MAX_MIN, MAX_PRODUCT, SUM_RATE


class Phrases(NamedTuple):
    training: tuple[str, ...]
    held_out: tuple[str, ...]


# by alpha of a fairness, or by what powers are set for
GOALS: dict[object, Phrases] = {
    0.0: Phrases(
        (
            "get as many bits through as possible in all",
            "the sum of their rates counts, nothing else",
            "maximise the total throughput",
            "what counts is the total number of bits, however they are shared",
            "make the sum rate as large as it can be",
            "we are paid by the bit, so carry as many as possible",
            "the more bits in all the better, even if somebody gets few",
            "no fairness is asked for, only the largest total",
            "raise the overall throughput as far as it goes",
            "add up all rates: this sum shall be the largest",
        ),
        (
            "squeeze the most throughput out of the carrier",
            "efficiency before everything: the greatest total wins",
            "who gets the bits does not matter, how many there are does",
        ),
    ),
    1.0: Phrases(
        (
            "be proportionally fair",
            "the product of their rates shall be as large as possible",
            "maximise the sum of the logarithms of their rates",
            "share as a proportionally fair scheduler does",
            "a percent more for one is worth a percent less for another",
            "the geometric mean of the rates is to be large",
            "proportional fairness is what we want",
            "weigh every user by the logarithm of its rate",
            "maximise the product of what they get",
            "the usual compromise of total and fairness: proportional",
        ),
        (
            "a doubled rate is worth the same to everybody, weak or strong",
            "balance throughput and fairness the way log utilities do",
            "let the product of all rates grow as far as it can",
        ),
    ),
    2.0: Phrases(
        (
            "keep the mean time to send a file short",
            "make the sum of 1 / rate small",
            "minimise the average download time",
            "the harmonic mean of the rates is to be large",
            "everybody fetches one file: keep the total waiting time low",
            "minimise the total delay of one file each",
            "the sum of the inverse rates shall be the smallest",
            "the mean transfer time counts",
            "files of one size for all: the shorter the average wait the better",
            "a fair share by the least potential delay",
        ),
        (
            "the time that all of them need for a file each, added up, is to be small",
            "keep the average wait for a download as low as it gets",
            "we count the seconds a bit takes, summed over the users",
        ),
    ),
    math.inf: Phrases(
        (
            "make the slowest user as fast as possible",
            "nobody shall be left behind: maximise the minimum rate",
            "max-min fairness, please",
            "raise the lowest rate as far as it goes",
            "the weakest user decides: make its rate the largest",
            "serve all alike: the smallest rate is to be large",
            "lift the user with the least rate",
            "the minimum over all users is what counts",
            "help the poorest user first, then the next",
            "no user should be slower than need be: the worst rate counts",
        ),
        (
            "we are judged by whoever is worst off",
            "give the slowest one all the help there is",
            "strict fairness: the minimum of the rates should peak",
        ),
    ),
    MAX_MIN: Phrases(
        (
            "make the worst SINR as good as possible",
            "fairness first: the smallest SINR counts",
            "maximise the minimum SINR",
            "the user with the poorest SINR decides",
            "all users should have the same SINR, as high as can be",
            "raise the lowest SINR",
            "nobody should hear badly: lift the weakest SINR",
            "max-min fairness of the SINRs",
            "the cell edge counts most: make its SINR large",
            "bring up the signal of the worst user",
        ),
        (
            "a complaint from any single user is what we fear",
            "let the least SINR of all be as large as we can make it",
            "the worst-served user sets the mark",
        ),
    ),
    MAX_PRODUCT: Phrases(
        (
            "make the product of the SINRs as large as possible",
            "find a compromise: the sum of the SINRs in decibels counts",
            "maximise the geometric mean of the SINRs",
            "the SINRs multiplied shall be the largest",
            "proportional fairness among the SINRs",
            "add up the SINRs in decibels and make that large",
            "the sum of the logarithms of the SINRs is the aim",
            "a balance of strong and weak: the product of the SINRs",
            "maximise the mean SINR in decibels",
            "a SINR doubled for one is as good as doubled for another",
        ),
        (
            "every decibel counts the same, whoever gets it",
            "the average of the SINRs in decibels should be high",
            "multiply all SINRs: this number is to be large",
        ),
    ),
    SUM_RATE: Phrases(
        (
            "get the largest sum of rates",
            "only the total throughput of all cells counts",
            "maximise the sum rate",
            "carry as many bits as possible in all cells together",
            "the total number of bits counts, whoever gets them",
            "the throughput of the network is to be the largest",
            "no fairness is asked for, only the largest total rate",
            "add up the rates of all users and maximise that",
            "the more bits a second in all the better",
            "we are paid for the total traffic",
        ),
        (
            "the operator sells bits, and does not care to whom",
            "overall capacity is what matters",
            "push the aggregate rate as high as it goes",
        ),
    ),
}
# of power over parallel channels
ALL_CHANNELS = Phrases(
    (
        "get the largest sum of rates",
        "maximise the total rate",
        "the sum of the rates over all channels counts",
        "carry as many bits as possible in all",
        "put it where it brings the most bits",
        "the total throughput is to be the largest",
    ),
    ("overall capacity is what matters", "push the aggregate rate as high as it goes"),
)
# of units that users are assigned
ONE_EACH = Phrases(
    (
        "assign one to each, none twice",
        "each user takes exactly one unit, and no unit serves two",
        "one unit a user, all different",
        "match users and units one to one",
        "no unit may be used twice, and everybody gets one",
        "give everyone a unit of their own",
    ),
    ("no unit goes to two of them", "pair them up, one with one"),
)
# of services
ALL_OR_NONE = Phrases(
    (
        "each takes all it wants or none",
        "a service is served in full or not at all",
        "all or nothing for each",
        "no service takes a part of what it wants",
        "either a service gets its whole share or it gets no block",
        "a partial grant is worth nothing",
    ),
    ("half a slice is worth nothing", "serve it whole or refuse it"),
)
