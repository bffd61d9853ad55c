"""Weights in and out: a Hugging Face directory (config.json + safetensors) and GGUF.

One table, `NAMES`, maps our parameters to theirs. Loading streams: tensor by tensor goes from the
memory-mapped file straight to its shards, so that a model needs little more memory than its own
weights.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from rldtf_jax import hosts
from rldtf_jax.mesh import shardings
from rldtf_jax.qwen2 import ParamSpec, Qwen2, Qwen2Config, param_table

# our path -> (HF name, GGUF name). Their matrices are (out, in), ours (in, out), but for the two of
# shape (V, D).
NAMES = {
    "embed": ("model.embed_tokens.weight", "token_embd.weight"),
    "layers.attn_norm": ("model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight"),
    "layers.wq": ("model.layers.{}.self_attn.q_proj.weight", "blk.{}.attn_q.weight"),
    "layers.wk": ("model.layers.{}.self_attn.k_proj.weight", "blk.{}.attn_k.weight"),
    "layers.wv": ("model.layers.{}.self_attn.v_proj.weight", "blk.{}.attn_v.weight"),
    "layers.bq": ("model.layers.{}.self_attn.q_proj.bias", "blk.{}.attn_q.bias"),
    "layers.bk": ("model.layers.{}.self_attn.k_proj.bias", "blk.{}.attn_k.bias"),
    "layers.bv": ("model.layers.{}.self_attn.v_proj.bias", "blk.{}.attn_v.bias"),
    "layers.wo": ("model.layers.{}.self_attn.o_proj.weight", "blk.{}.attn_output.weight"),
    "layers.mlp_norm": (
        "model.layers.{}.post_attention_layernorm.weight",
        "blk.{}.ffn_norm.weight",
    ),
    "layers.w_gate": ("model.layers.{}.mlp.gate_proj.weight", "blk.{}.ffn_gate.weight"),
    "layers.w_up": ("model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight"),
    "layers.w_down": ("model.layers.{}.mlp.down_proj.weight", "blk.{}.ffn_down.weight"),
    "norm": ("model.norm.weight", "output_norm.weight"),
    "lm_head": ("lm_head.weight", "output.weight"),
}
HF, GGUF = 0, 1  # columns of NAMES
DTYPES = {"F32": np.dtype("float32"), "F16": np.dtype("float16"), "BF16": np.dtype(jnp.bfloat16)}
CONFIG_NAMES = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads"
    " num_key_value_heads head_dim rope_theta rms_norm_eps tie_word_embeddings attention_bias"
    " num_tokens"
).split()
SHARD_BYTES = 5_000_000_000


def load(
    directory: str | Path, dtype: str | None = None, mesh: Mesh | None = None, **overrides
) -> Qwen2:
    """Reads config.json and the safetensors of an HF directory, or its one GGUF file where there is
    no config.json.

    dtype: of parameters and computation; None takes the file's. mesh: parameters go straight to
      their shards on it.
    overrides: fields of Qwen2Config, say remat, or param_dtype for parameters of another type than
    what computes. num_tokens comes from tokenizer.json where there is one. Of several files the
    index says which count; stored rotary frequencies are not read, they follow from the config.
    Raises FileNotFoundError for a directory without weights or without a file that its index names,
    and ValueError, naming the tensor, for one that is missing, unknown, of another shape than the
    config says, or cut off.
    """
    directory = Path(directory)
    ggufs = sorted(file for file in directory.glob("*.gguf") if not file.name.startswith("."))
    if len(ggufs) == 1 and not (directory / "config.json").exists():
        return load_gguf(ggufs[0], dtype or "float32", mesh, **overrides)
    config = _json(directory / "config.json")
    if "num_tokens" not in config and (directory / "tokenizer.json").exists():
        overrides = {"num_tokens": _count_ids(directory / "tokenizer.json")} | overrides
    if dtype is not None:
        overrides = {"dtype": dtype, "param_dtype": dtype} | overrides
    shape = Qwen2Config.from_hf(config, **overrides)
    tensors = {
        name: tensor
        for file in _weight_files(directory)
        for name, tensor in _map_safetensors(file).items()
        if not name.endswith(".rotary_emb.inv_freq")
    }
    if shape.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)  # some writers repeat the embedding
    _check(directory, _shapes(shape, HF), {name: tensor.shape for name, tensor in tensors.items()})
    return _assemble(shape, HF, tensors.__getitem__, mesh)


def save(
    model: Qwen2,
    directory: str | Path,
    files: dict[str, str] | None = None,
    eos_id: int | None = None,
) -> None:
    """Writes config.json and safetensors that `load` and transformers read: a Qwen2ForCausalLM,
    without biases a LlamaForCausalLM.

    files: texts to lie beside them, by name: a tokenizer.json. eos_id: the token that ends a
    response. One tensor at a time is fetched from the devices. The directory appears whole or not
    at all. Raises FileExistsError if it is there already and not empty, ValueError for a model
    without an LM head and for one that transformers would not read.
    """
    directory = Path(directory)
    if model.head != "lm":
        raise ValueError("only a model with an LM head has an HF form")
    if (
        not model.config.attention_bias
        and model.config.hidden_size % model.config.num_attention_heads
    ):
        raise ValueError(
            f"hidden_size = {model.config.hidden_size}: in a LlamaForCausalLM it has to be a"
            f" multiple of num_attention_heads = {model.config.num_attention_heads}"
        )
    if hosts.told(directory.exists() and any(directory.iterdir())):
        raise FileExistsError(f"{directory} is not empty")
    if not hosts.first():
        _write_safetensors(model, None)  # the first process needs this one's shards
        hosts.wait(f"saved {directory.name}")
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        config = _hf_config(model.config) | ({} if eos_id is None else {"eos_token_id": eos_id})
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        for name, text in (files or {}).items():
            (temporary / name).write_text(text, encoding="utf-8")
        _write_safetensors(model, temporary)
        temporary.chmod(0o755)
        temporary.replace(directory)
    except BaseException:
        shutil.rmtree(temporary)
        raise
    hosts.wait(f"saved {directory.name}")


def load_gguf(
    path: str | Path, dtype: str = "float32", mesh: Mesh | None = None, **overrides
) -> Qwen2:
    """Reads a GGUF file of a llama or qwen2 architecture, dequantised; a model without any bias has
    none, of others those that lack are zero.

    In llama files the rows of Q and K are permuted for rotation of neighbours and are put back
    here. Raises ValueError for another architecture, scaled rotary positions, or a tensor that is
    missing, unknown or mis-shaped.
    """
    import gguf  # slow to import

    reader = gguf.GGUFReader(path)
    field = lambda key, default=None: (
        reader.fields[key].contents() if key in reader.fields else default
    )
    architecture = field("general.architecture")
    if architecture not in ("llama", "qwen2"):
        raise ValueError(
            f"{path}: architecture {architecture!r} is not supported, only 'llama' and 'qwen2'"
        )
    if field(f"{architecture}.rope.scaling.type", "none") != "none":
        raise ValueError(f"{path}: scaled rotary positions are not supported")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = Qwen2Config(
        **dict(
            vocab_size=int(tensors["token_embd.weight"].shape[1]),
            hidden_size=field(f"{architecture}.embedding_length"),
            intermediate_size=field(f"{architecture}.feed_forward_length"),
            num_hidden_layers=field(f"{architecture}.block_count"),
            num_attention_heads=field(f"{architecture}.attention.head_count"),
            num_key_value_heads=field(
                f"{architecture}.attention.head_count_kv",
                field(f"{architecture}.attention.head_count"),
            ),
            head_dim=field(f"{architecture}.attention.key_length"),
            rope_theta=field(f"{architecture}.rope.freq_base", 1e4),
            rms_norm_eps=field(f"{architecture}.attention.layer_norm_rms_epsilon"),
            tie_word_embeddings="output.weight" not in tensors,
            attention_bias=any(name.endswith(".bias") for name in tensors),
            num_tokens=len(reader.fields["tokenizer.ggml.tokens"].data),
            dtype=dtype,
            param_dtype=dtype,
        )
        | overrides
    )
    shapes = {
        name: tuple(int(n) for n in reversed(tensor.shape)) for name, tensor in tensors.items()
    }
    wanted = _shapes(config, GGUF)
    absent = {name for name in wanted if name.endswith(".bias") and name not in shapes}
    _check(path, {name: shape for name, shape in wanted.items() if name not in absent}, shapes)

    def read(name: str) -> np.ndarray:
        if name in absent:
            return np.zeros(wanted[name], np.float32)
        tensor = gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type).reshape(
            shapes[name]
        )
        if architecture == "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):
            pairs = tensor.reshape(-1, config.head_dim // 2, 2, tensor.shape[1])
            tensor = pairs.swapaxes(1, 2).reshape(tensor.shape)
        return tensor

    return _assemble(config, GGUF, read, mesh)


def _tensors(config: Qwen2Config, column: int) -> Iterator[tuple[str, str, ParamSpec, int | None]]:
    """(their name, our path, spec, layer or None) of every tensor of a file."""
    for path, spec in param_table(config).items():
        name = NAMES[path][column]
        if path.startswith("layers."):
            for layer in range(config.num_hidden_layers):
                yield name.format(layer), path, spec, layer
        else:
            yield name, path, spec, None


def _transposed(path: str, shape: tuple[int, ...]) -> bool:
    """Whether their matrix is the transpose of ours."""
    return path.startswith("layers.") and len(shape) == 3


def _shapes(config: Qwen2Config, column: int) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for name, path, spec, layer in _tensors(config, column):
        shape = spec.shape if layer is None else spec.shape[1:]
        shapes[name] = shape[::-1] if _transposed(path, spec.shape) else shape
    return shapes


def _check(source, wanted: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> None:
    for what, names in (
        ("missing", wanted.keys() - found.keys()),
        ("unknown", found.keys() - wanted.keys()),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(f"{source}: {what}: tensor {min(names)!r}{more}")
    for name, shape in wanted.items():
        if tuple(found[name]) != tuple(shape):
            raise ValueError(
                f"{source}: tensor {name!r} has shape {tuple(found[name])}, the config says {shape}"
            )


def _assemble(
    config: Qwen2Config, column: int, read: Callable[[str], np.ndarray], mesh: Mesh | None
) -> Qwen2:
    """A model whose parameters are filled shard by shard; read(name) gives a tensor as the file has
    it.
    """
    table = param_table(config)
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: Qwen2(config, rngs=nnx.Rngs(0))))
    if mesh is None:
        placed = jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), abstract)
    else:
        placed = shardings(mesh, abstract, table)

    def fill(keys, leaf, sharding):
        path = ".".join(key.key for key in keys if isinstance(key, jax.tree_util.DictKey))
        name = NAMES[path][column]

        def place(name: str, shape: tuple[int, ...], sharding) -> jax.Array:
            tensor = read(name)
            tensor = tensor.T if _transposed(path, leaf.shape) else tensor
            return jax.make_array_from_callback(
                shape, sharding, lambda index: np.asarray(tensor[index], leaf.dtype)
            )

        if not path.startswith("layers."):
            return place(name, leaf.shape, sharding)
        stacked = jnp.zeros(leaf.shape, leaf.dtype, device=sharding)
        for layer in range(leaf.shape[0]):
            tensor = place(name.format(layer), leaf.shape[1:], _of_one_layer(sharding))
            # or tensors pile up
            stacked = jax.block_until_ready(_set_layer(stacked, tensor, layer))
        return stacked

    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(fill, abstract, placed))


@partial(jax.jit, donate_argnums=0)
def _set_layer(stacked: jax.Array, tensor: jax.Array, layer: int) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stacked, tensor, layer, 0)


def _of_one_layer(
    sharding: NamedSharding | SingleDeviceSharding,
) -> NamedSharding | SingleDeviceSharding:
    if isinstance(sharding, SingleDeviceSharding):
        return sharding
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))


def _json(path: Path) -> dict:
    """The object of a JSON file; raises ValueError, naming it, for one that holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return content


def _weight_files(directory: Path) -> list[Path]:
    """The safetensors that transformers would read: model.safetensors, or those of the index, or
    all that are no hidden files.
    """
    if (single := directory / "model.safetensors").exists():
        return [single]
    if (index := directory / "model.safetensors.index.json").exists():
        names = _json(index).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise ValueError(f"{index}: weight_map: expected an object of tensors' files")
        files = sorted({directory / Path(name).name for name in names.values()})
        if absent := [file for file in files if not file.exists()]:
            raise FileNotFoundError(f"{absent[0]}: no such file; {index.name} names it")
        return files
    files = sorted(
        file for file in directory.glob("*.safetensors") if not file.name.startswith(".")
    )
    if not files:
        raise FileNotFoundError(f"{directory} holds no *.safetensors")
    return files


def _map_safetensors(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a file as views of its memory map (8 bytes header size, JSON header, data)."""
    size = file.stat().st_size
    with open(file, "rb") as f:
        start = 8 + int.from_bytes(f.read(8), "little")
        if size < 8 or start > size:
            raise ValueError(f"{file}: the header is cut off")
        try:
            header = json.loads(f.read(start - 8))
        except ValueError:
            raise ValueError(f"{file}: the header is no JSON; expected safetensors") from None
    data = np.memmap(file, np.uint8, "r")[start:]
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in DTYPES:
            raise ValueError(
                f"{file}: tensor {name!r} has dtype {entry['dtype']}, not one of"
                f" {', '.join(DTYPES)}"
            )
        begin, end = entry["data_offsets"]
        if end > data.size:
            raise ValueError(
                f"{file}: tensor {name!r} is cut off, {end - data.size} bytes are missing"
            )
        tensors[name] = data[begin:end].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def _write_safetensors(model: Qwen2, directory: Path | None) -> None:
    """The tensors in files of at most SHARD_BYTES, and an index if they are several; without a
    directory nothing but this process's part in fetching them.
    """
    dtype = np.dtype(model.config.param_dtype)
    kind = next(name for name, known in DTYPES.items() if known == dtype)
    shapes = _shapes(model.config, HF)
    files, size = [[]], 0
    for tensor in _tensors(model.config, HF):
        nbytes = int(np.prod(shapes[tensor[0]])) * dtype.itemsize
        if files[-1] and size + nbytes > SHARD_BYTES:
            files.append([])
            size = 0
        files[-1].append((*tensor, nbytes))
        size += nbytes

    weight_map, total = {}, 0
    for number, tensors in enumerate(files, 1):
        file = (
            "model.safetensors"
            if len(files) == 1
            else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        )
        header, offset = {"__metadata__": {"format": "pt"}}, 0
        for name, *_, nbytes in tensors:
            header[name] = {
                "dtype": kind,
                "shape": shapes[name],
                "data_offsets": [offset, offset + nbytes],
            }
            weight_map[name] = file
            offset += nbytes
        total += offset
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(directory / file if directory else os.devnull, "wb") as f:
            f.write(len(text).to_bytes(8, "little") + text)
            for _, path, spec, layer, _ in tensors:
                param = _param(model, path)
                array = np.asarray(hosts.fetched(param if layer is None else param[layer]), dtype)
                f.write(
                    np.ascontiguousarray(
                        array.T if _transposed(path, spec.shape) else array
                    ).tobytes()
                )
    if directory and len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _param(model: Qwen2, path: str) -> jax.Array:
    layer_name = path.removeprefix("layers.")
    return (getattr(model, path) if layer_name == path else model.layers[layer_name])[...]


def _hf_config(config: Qwen2Config) -> dict:
    kind = (
        {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": False}
        if config.attention_bias
        else {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "mlp_bias": False}
    )
    return (
        kind
        | {"hidden_act": "silu", "torch_dtype": config.param_dtype}
        | {name: getattr(config, name) for name in CONFIG_NAMES}
    )


def _count_ids(tokenizer_json: Path) -> int:
    tokenizer = json.loads(tokenizer_json.read_text(encoding="utf-8"))
    ids = [
        *tokenizer["model"]["vocab"].values(),
        *(token["id"] for token in tokenizer.get("added_tokens", [])),
    ]
    return max(ids) + 1
