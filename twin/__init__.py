"""A network digital twin: link-level simulation with Sionna, served in batches by worker processes.

Importing it imports neither TensorFlow nor numba: the workers do.
"""

from .delay import breakdown
from .physical import Settings, physical
from .pool import TwinError
from .program import parse, render
from .spec import QoS, Scenario, Workflow, WorkflowError, check
from .toolbox import COMPUTE_TIERS_GFLOPS, TOOLS, describe
from .twin import Decision, Stats, Target, Twin

__all__ = [
    "COMPUTE_TIERS_GFLOPS",
    "Decision",
    "QoS",
    "Scenario",
    "Settings",
    "Stats",
    "TOOLS",
    "Target",
    "Twin",
    "TwinError",
    "Workflow",
    "WorkflowError",
    "breakdown",
    "check",
    "describe",
    "parse",
    "physical",
    "render",
]
