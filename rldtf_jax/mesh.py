"""One device mesh (data, fsdp, tensor) and one table from logical axes to mesh axes.

Shardings of parameters, optimiser state and activations all follow from the table. `fsdp` is
ZeRO-3: parameters and their optimiser state are split over it, and so is the batch; XLA gathers a
layer's weights when the layer runs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")

RULES: dict[str, tuple[str, ...]] = {
    # activations
    "batch": ("data", "fsdp"),
    "data_batch": ("data",),
    "time": (),
    # parameters
    "layers": (),
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
}


class DoesNotDivide(ValueError):
    """A parameter's dimension is no multiple of the devices that it should be split over."""


def make_mesh(
    data: int = 1, fsdp: int = -1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh over devices (default: all of all hosts); one size may be -1, whatever is left.

    Raises ValueError if the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = max(1, len(devices) // -math.prod(sizes))
    if min(sizes) < 1 or math.prod(sizes) != len(devices):
        raise ValueError(
            f"a mesh of data={data}, fsdp={fsdp}, tensor={tensor} does not fit {len(devices)}"
            " devices"
        )
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def partition_spec(
    axes: Sequence[str | None], rules: Mapping[str, tuple[str, ...]] = RULES
) -> PartitionSpec:
    """The PartitionSpec of an array with these logical axes (None: not split).

    Raises ValueError for a logical axis the table lacks, and if two dimensions would use the same
    mesh axis.
    """
    if unknown := [axis for axis in axes if axis is not None and axis not in rules]:
        raise ValueError(f"no rule for logical axis {unknown[0]!r}, known: {', '.join(rules)}")
    parts = [() if axis is None else rules[axis] for axis in axes]
    used = [mesh_axis for part in parts for mesh_axis in part]
    if clash := {mesh_axis for mesh_axis in used if used.count(mesh_axis) > 1}:
        raise ValueError(
            f"logical axes {tuple(axes)} use the mesh axis {', '.join(sorted(clash))} twice"
        )
    return PartitionSpec(*(part or None for part in parts))


def constrain(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """Asks for x to be laid out by its logical axes on the mesh of `jax.set_mesh`; x as it is
    without one, or on a mesh of other axes (that of arms.py).
    """
    if not set(AXES) <= set(jax.sharding.get_abstract_mesh().axis_names):
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(axes))


def shardings(mesh: Mesh, tree: Any, table: Mapping[str, Any]) -> Any:
    """A NamedSharding for each leaf of a tree of arrays or ShapeDtypeStructs.

    A leaf whose path ends in one of the table's (`qwen2.param_table`) takes that parameter's axes:
    so do the moments of an optimiser, and parameters with further leading axes (arms), which are
    not split. All others are replicated. Raises DoesNotDivide, naming the leaf, if a dimension does
    not divide by its share of the mesh.
    """

    def one(path, leaf):
        keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        names = (".".join(map(str, keys[i:])) for i in range(len(keys)))
        spec = next((table[name] for name in names if name in table), None)
        axes = (
            () if spec is None else (None,) * (len(leaf.shape) - len(spec.shape)) + tuple(spec.axes)
        )
        for size, axis in zip(leaf.shape, axes):
            pieces = math.prod(mesh.shape[mesh_axis] for mesh_axis in RULES.get(axis, ()))
            if size % pieces:
                raise DoesNotDivide(
                    f"mesh = {dict(mesh.shape)}: {'.'.join(map(str, keys))}: its {axis} axis of"
                    f" {size} does not divide into {pieces} pieces"
                )
        return NamedSharding(mesh, partition_spec(axes))

    return jax.tree_util.tree_map_with_path(one, tree)


def init_sharded(make: Callable[[], Any], mesh: Mesh, table: Mapping[str, Any]) -> Any:
    """make() with every leaf born on its own shards; nothing is ever whole on one device."""
    return jax.jit(make, out_shardings=shardings(mesh, jax.eval_shape(make), table))()
