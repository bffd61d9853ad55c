"""Qwen2.5 in Flax NNX: config, stacked and scanned layers, KV cache, LM head or value head.

Dimensions in names: B batch, T time, P prompt length, D model width, F MLP width, H query heads, K
key/value heads, G = H // K, C head width, V vocabulary rows, S cache slots, N = B * T. `x_BxT` has
shape (B, T). A layer's parameters carry a leading axis over the layers.

The architecture is that of Qwen2.5 (arXiv:2412.15115): pre-norm decoder, grouped-query attention
with biases on q, k and v, rotary positions, RMSNorm, SwiGLU.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rldtf_jax.mesh import constrain

ATTENTIONS = ("dot", "xla", "cudnn")  # cudnn: fused, 16-bit, on a GPU alone
MASKED = -1e9  # a logit no token is sampled at; finite, so that p * log p stays 0 in an entropy


@dataclasses.dataclass(frozen=True)
class Qwen2Config:
    """Shape and numerics of a model; the first block has the names of an HF config.json."""

    vocab_size: int  # rows of the embedding
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int | None = None  # None: hidden_size // num_attention_heads
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    attention_bias: bool = True  # on q, k and v

    # ids of the tokenizer; logits of the rows beyond are MASKED. None: all rows are ids
    num_tokens: int | None = None
    dtype: str = "float32"  # of the computation; norms, softmax and logits are float32
    param_dtype: str = "float32"
    # recompute each layer in the backward pass; a name in jax.checkpoint_policies saves some
    remat: bool | str = False
    unroll: int = 1  # layers per step of the scan
    # over whole sequences: `attend`, or an implementation of jax.nn.dot_product_attention
    attention: str = "dot"

    def __post_init__(self):
        if self.head_dim is None:
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if self.num_tokens is None:
            object.__setattr__(self, "num_tokens", self.vocab_size)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"{self.num_attention_heads} query heads are no multiple of"
                f" {self.num_key_value_heads} key/value heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions, got {self.head_dim}")
        if self.attention not in ATTENTIONS:
            raise ValueError(
                f"attention must be one of {', '.join(ATTENTIONS)}, got {self.attention!r}"
            )
        if not 0 < self.num_tokens <= self.vocab_size:
            raise ValueError(f"num_tokens must be in 1..{self.vocab_size}, got {self.num_tokens}")

    @classmethod
    def from_hf(cls, config: dict[str, Any], **overrides) -> "Qwen2Config":
        """Reads an HF config.json given as a dict.

        A llama is a qwen2 without biases. Raises ValueError, naming it, for another model type, for
        a feature the model does not have (sliding-window attention, scaled rotary positions, a
        llama's biases, an activation other than SiLU), and for a value of another type.
        """
        model_type = config.get("model_type")
        if model_type not in ("qwen2", "llama"):
            raise ValueError(
                f"model_type {model_type!r} is not supported, only 'qwen2' and 'llama'"
            )
        if model_type == "llama":
            if biased := next(
                (name for name in ("attention_bias", "mlp_bias") if config.get(name)), None
            ):
                raise ValueError(
                    f"{biased} = {config[biased]!r} is not supported in a llama, only False"
                )
            config = config | {"attention_bias": False}
        if config.get("hidden_act", "silu") != "silu":
            raise ValueError(f"hidden_act {config['hidden_act']!r} is not supported, only 'silu'")
        layer_types = set(config.get("layer_types") or ["full_attention"])
        if config.get("use_sliding_window") or layer_types != {"full_attention"}:
            raise ValueError(
                f"sliding-window attention is not supported (layer types {sorted(layer_types)})"
            )
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if (rope_type := rope.get("rope_type", rope.get("type", "default"))) != "default":
            raise ValueError(f"rope scaling of type {rope_type!r} is not supported, only 'default'")

        fields = {f.name for f in dataclasses.fields(cls)} - {"dtype"}
        known = {
            name: value for name, value in config.items() if name in fields and value is not None
        }
        for field in dataclasses.fields(cls):
            kinds = {int: int, int | None: int, float: (int, float), bool: bool}.get(field.type)
            value = known.get(field.name)
            if (
                kinds
                and value is not None
                and (not isinstance(value, kinds) or isinstance(value, bool) != (kinds is bool))
            ):
                raise ValueError(
                    f"{field.name} = {value!r}: expected a value of type"
                    f" {getattr(field.type, '__name__', field.type)}"
                )
        known["rope_theta"] = float(rope.get("rope_theta", config.get("rope_theta", 1e4)))
        known.setdefault("num_key_value_heads", config.get("num_attention_heads"))
        known.setdefault("tie_word_embeddings", False)
        known.setdefault(
            "param_dtype", config.get("dtype") or config.get("torch_dtype") or "float32"
        )
        known["dtype"] = known["param_dtype"]
        missing = {
            f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING
        } - known.keys()
        if missing:
            raise ValueError(f"the config lacks {', '.join(sorted(missing))}")
        return cls(**(known | overrides))

    @classmethod
    def preset(cls, name: str, **overrides) -> "Qwen2Config":
        """A size by name; raises ValueError for an unknown one."""
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}, known: {', '.join(PRESETS)}")
        return cls(**(PRESETS[name] | overrides))


def _qwen25(hidden, intermediate, layers, heads, kv_heads, tied, rows=151936):
    return dict(
        vocab_size=rows,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=tied,
        num_tokens=151665,
        dtype="bfloat16",
        param_dtype="bfloat16",
        remat=True,
    )


PRESETS = {
    "tiny": dict(
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_theta=1e4,
        unroll=4,
    ),
    "qwen2.5-0.5b": _qwen25(896, 4864, 24, 14, 2, True),
    "qwen2.5-1.5b": _qwen25(1536, 8960, 28, 12, 2, True),
    "qwen2.5-3b": _qwen25(2048, 11008, 36, 16, 2, True),
    "qwen2.5-7b": _qwen25(3584, 18944, 28, 28, 4, False, rows=152064),
    "smollm2-135m": dict(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        rope_theta=1e5,
        rms_norm_eps=1e-5,
    ),
}


@dataclasses.dataclass(frozen=True)
class ParamSpec:
    """One parameter: its shape, the logical axis of each dimension (see `mesh.RULES`) and how it
    starts.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: str = "normal"  # normal (std 0.02, as HF) | zeros | ones


def param_table(config: Qwen2Config, head: str = "lm") -> dict[str, ParamSpec]:
    """Every parameter by path; initialisation, shardings and the import of weights follow from this
    table.
    """
    c = config
    L, D, F, V = c.num_hidden_layers, c.hidden_size, c.intermediate_size, c.vocab_size
    HC, KC = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    table = {
        "embed": ParamSpec((V, D), ("vocab", "embed")),
        "layers.attn_norm": ParamSpec((L, D), ("layers", None), "ones"),
        "layers.wq": ParamSpec((L, D, HC), ("layers", "embed", "heads")),
        "layers.wk": ParamSpec((L, D, KC), ("layers", "embed", "kv_heads")),
        "layers.wv": ParamSpec((L, D, KC), ("layers", "embed", "kv_heads")),
        "layers.wo": ParamSpec((L, HC, D), ("layers", "heads", "embed")),
        "layers.mlp_norm": ParamSpec((L, D), ("layers", None), "ones"),
        "layers.w_gate": ParamSpec((L, D, F), ("layers", "embed", "mlp")),
        "layers.w_up": ParamSpec((L, D, F), ("layers", "embed", "mlp")),
        "layers.w_down": ParamSpec((L, F, D), ("layers", "mlp", "embed")),
        "norm": ParamSpec((D,), (None,), "ones"),
    }
    if c.attention_bias:
        table["layers.bq"] = ParamSpec((L, HC), ("layers", "heads"), "zeros")
        table["layers.bk"] = ParamSpec((L, KC), ("layers", "kv_heads"), "zeros")
        table["layers.bv"] = ParamSpec((L, KC), ("layers", "kv_heads"), "zeros")
    if head == "value":
        table["value_head"] = ParamSpec((D,), (None,), "zeros")
        table["value_bias"] = ParamSpec((), (), "zeros")
    elif head != "lm":
        raise ValueError(f"head must be 'lm' or 'value', got {head!r}")
    elif not c.tie_word_embeddings:
        table["lm_head"] = ParamSpec((V, D), ("vocab", "embed"))
    return table


def _init(spec: ParamSpec, rngs: nnx.Rngs, dtype) -> jax.Array:
    if spec.init == "normal":
        return 0.02 * jax.random.normal(rngs.params(), spec.shape, dtype)
    return jnp.full(spec.shape, {"zeros": 0.0, "ones": 1.0}[spec.init], dtype)


def rms_norm(x: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
    """RMSNorm over the last axis, computed in float32, in the dtype of x."""
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return (normed * scale_D).astype(x.dtype)


def rope_table(length: int, head_dim: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of positions 0..length-1, float32 (length, head_dim // 2).

    Constants: computed in the program, XLA would fuse them into every use and take them anew for
      each head and row.
    """
    frequency_c = 1 / np.float32(theta) ** (
        np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    )
    angle = np.arange(length, dtype=np.float32)[:, None] * frequency_c
    return np.cos(angle), np.sin(angle)


def rope(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates the two halves of the last axis against each other; cos and sin broadcast against
    half of x.
    """
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def qkv(config: Qwen2Config, layer: dict, x_NxD: jax.Array):
    """Normed input through the three projections: (N, H*C), (N, K*C), (N, K*C); q is scaled by
    1/sqrt(C).
    """
    h_NxD = rms_norm(x_NxD, layer["attn_norm"], config.rms_norm_eps)
    q, k, v = (h_NxD @ layer[name].astype(h_NxD.dtype) for name in ("wq", "wk", "wv"))
    if config.attention_bias:
        q, k, v = (y + layer[name].astype(y.dtype) for y, name in ((q, "bq"), (k, "bk"), (v, "bv")))
    return q * config.head_dim**-0.5, k, v


def mlp(config: Qwen2Config, layer: dict, x_NxD: jax.Array) -> jax.Array:
    """Normed input through SwiGLU."""
    h_NxD = rms_norm(x_NxD, layer["mlp_norm"], config.rms_norm_eps)
    w_gate, w_up, w_down = (
        layer[name].astype(h_NxD.dtype) for name in ("w_gate", "w_up", "w_down")
    )
    return (jax.nn.silu(h_NxD @ w_gate) * (h_NxD @ w_up)) @ w_down


def attend(q_BxKxQxC, k_BxKxCxS, v_BxKxSxC, mask) -> jax.Array:
    """Softmax attention with float32 scores; Q counts queries times grouped heads, mask broadcasts
    to (B, K, Q, S).

    Keys come transposed: kept that way in the cache, a decode step's scores take less than half the
    time on a CPU.
    """
    score_BxKxQxS = jnp.einsum(
        "bkqc,bkcs->bkqs", q_BxKxQxC, k_BxKxCxS, preferred_element_type=jnp.float32
    )
    weight_BxKxQxS = jax.nn.softmax(jnp.where(mask, score_BxKxQxS, MASKED), axis=-1)
    return jnp.einsum("bkqs,bksc->bkqc", weight_BxKxQxS.astype(v_BxKxSxC.dtype), v_BxKxSxC)


def block(
    config: Qwen2Config, layer: dict, x_BxTxD: jax.Array, cos_TxC2, sin_TxC2, same_BxTxT=None
):
    """One decoder layer over whole sequences: (x_BxTxD, (k_BxKxCxT, v_BxKxTxC)).

    same_BxTxT: which positions are of one document, where a row has several.

    Matmuls with weights run on (B*T, D) and attention on (B, K, G*T, C): on a CPU that is half the
    time of the einsum-as-written form, backward pass included.
    """
    c = config
    B, T, D = x_BxTxD.shape
    H, K, C = c.num_attention_heads, c.num_key_value_heads, c.head_dim
    x_NxD = x_BxTxD.reshape(B * T, D)
    q, k, v = qkv(c, layer, x_NxD)
    if c.attention == "dot":
        q_BxKxGxTxC = rope(
            q.reshape(B, T, K, H // K, C).transpose(0, 2, 3, 1, 4), cos_TxC2, sin_TxC2
        )
        k_BxKxCxT = rope(k.reshape(B, T, K, C).transpose(0, 2, 1, 3), cos_TxC2, sin_TxC2).swapaxes(
            2, 3
        )
        v_BxKxTxC = v.reshape(B, T, K, C).transpose(0, 2, 1, 3)
        mask = jnp.tril(jnp.ones((T, T), bool))  # causal
        if same_BxTxT is not None:
            mask = (mask & same_BxTxT)[:, None]
        mask = jnp.tile(mask, (H // K, 1))
        a = attend(q_BxKxGxTxC.reshape(B, K, H // K * T, C), k_BxKxCxT, v_BxKxTxC, mask)
        a_NxHC = a.reshape(B, K, H // K, T, C).transpose(0, 3, 1, 2, 4).reshape(B * T, H * C)
    else:
        q_BxTxHxC, k_BxTxKxC = (
            rope(y.reshape(B, T, -1, C), cos_TxC2[:, None], sin_TxC2[:, None]) for y in (q, k)
        )
        v_BxTxKxC = v.reshape(B, T, K, C)
        a_NxHC = jax.nn.dot_product_attention(
            q_BxTxHxC,
            k_BxTxKxC,
            v_BxTxKxC,
            mask=None if same_BxTxT is None else same_BxTxT[:, None],
            scale=1.0,
            is_causal=True,
            implementation=c.attention,
        ).reshape(B * T, H * C)
        k_BxKxCxT, v_BxKxTxC = k_BxTxKxC.transpose(0, 2, 3, 1), v_BxTxKxC.transpose(0, 2, 1, 3)
    x_NxD = x_NxD + a_NxHC @ layer["wo"].astype(a_NxHC.dtype)
    x_NxD = x_NxD + mlp(c, layer, x_NxD)
    return constrain(x_NxD.reshape(B, T, D), ("batch", "time", None)), (k_BxKxCxT, v_BxKxTxC)


def attend_once(
    config: Qwen2Config,
    layer: dict,
    x_BxD,
    q_BxHC,
    cos_BxC2,
    sin_BxC2,
    k_BxKxCxS,
    v_BxKxSxC,
    visible_BxS,
):
    """The rest of a decoder layer for one token a row, whose keys and values are in the cache:
    x_BxD.
    """
    K, C = config.num_key_value_heads, config.head_dim
    B, HC = q_BxHC.shape
    q_BxHxC = rope(q_BxHC.reshape(B, -1, C), cos_BxC2[:, None], sin_BxC2[:, None])
    a = attend(q_BxHxC.reshape(B, K, -1, C), k_BxKxCxS, v_BxKxSxC, visible_BxS[:, None, None])
    x_BxD = x_BxD + a.reshape(B, HC) @ layer["wo"].astype(a.dtype)
    return x_BxD + mlp(config, layer, x_BxD)


@jax.custom_vjp
def narrow_logits(h_NxD: jax.Array, table_VxD: jax.Array) -> jax.Array:
    """Float32 logits of 16-bit operands, whose gradient is rounded to 16 bits before it meets them.

    Left to itself, the backward pass multiplies a float32 gradient with widened operands: twice the
    time on a GPU.
    """
    return jnp.einsum("nd,vd->nv", h_NxD, table_VxD, preferred_element_type=jnp.float32)


def _narrow_logits_backward(operands, gradient_NxV):
    h_NxD, table_VxD = operands
    gradient_NxV = gradient_NxV.astype(h_NxD.dtype)
    return jnp.einsum("nv,vd->nd", gradient_NxV, table_VxD), jnp.einsum(
        "nv,nd->vd", gradient_NxV, h_NxD
    )


narrow_logits.defvjp(
    lambda *operands: (narrow_logits(*operands), operands), _narrow_logits_backward
)


class Qwen2(nnx.Module):
    """The model. Split it once (`graphdef, params = nnx.split(model)`) and merge inside jax.jit.

    head="lm" gives logits, head="value" one value per position (zero at the start).
    """

    if TYPE_CHECKING:  # set by their paths, where the configuration has them
        norm: nnx.Param
        embed: nnx.Param
        lm_head: nnx.Param
        value_head: nnx.Param
        value_bias: nnx.Param

    def __init__(self, config: Qwen2Config, *, rngs: nnx.Rngs, head: str = "lm"):
        self.config = config
        self.head = head
        dtype = jnp.dtype(config.param_dtype)
        params = {
            path: nnx.Param(_init(s, rngs, dtype)) for path, s in param_table(config, head).items()
        }
        prefix = "layers."
        self.layers = nnx.Dict(
            {p.removeprefix(prefix): v for p, v in params.items() if p.startswith(prefix)}
        )
        for path, param in params.items():
            if not path.startswith(prefix):
                setattr(self, path, param)

    def __call__(
        self,
        tokens_BxT: jax.Array,
        lengths: jax.Array | None = None,
        documents_BxT: jax.Array | None = None,
    ) -> jax.Array:
        """Right-padded token ids -> logits (B, T, V) or values (B, T), float32. See `hidden` for
        lengths and documents.
        """
        hidden_BxTxD = self.hidden(tokens_BxT, lengths, documents_BxT)
        return self.unembed(hidden_BxTxD) if self.head == "lm" else self.value(hidden_BxTxD)

    def hidden(
        self,
        tokens_BxT: jax.Array,
        lengths: jax.Array | None = None,
        documents_BxT: jax.Array | None = None,
    ) -> jax.Array:
        """Final-norm hidden states (B, T, D).

        Attention is causal and padding is on the right, so padding never reaches a real position;
        with lengths (B,) the states beyond the end are zero, and so are their gradients. Where a
        row holds several documents, documents_BxT numbers them: none attends to another. Rotary
        positions go on through the row, of which attention sees differences alone.
        """
        x_BxTxD, _ = self._layers(tokens_BxT, slice(None), False, documents_BxT)
        x_BxTxD = rms_norm(x_BxTxD, self.norm[...], self.config.rms_norm_eps)
        if lengths is None:
            return x_BxTxD
        real_BxT = jnp.arange(tokens_BxT.shape[1]) < lengths[:, None]
        return jnp.where(real_BxT[..., None], x_BxTxD, 0)

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """Logits, float32, of hidden states (..., D); those of surplus rows are MASKED."""
        table_VxD = (self.embed if self.config.tie_word_embeddings else self.lm_head)[...]
        flat = hidden.reshape(-1, hidden.shape[-1])
        table_VxD = table_VxD.astype(flat.dtype)
        wide = flat.dtype == jnp.float32
        logits = (
            jnp.einsum("nd,vd->nv", flat, table_VxD) if wide else narrow_logits(flat, table_VxD)
        )
        if self.config.num_tokens < self.config.vocab_size:
            logits = jnp.where(
                jnp.arange(self.config.vocab_size) < self.config.num_tokens, logits, MASKED
            )
        return logits.reshape(*hidden.shape[:-1], -1)

    def value(self, hidden: jax.Array) -> jax.Array:
        """Values, float32, of hidden states (..., D) -> (...)."""
        return (
            hidden.astype(jnp.float32) @ self.value_head[...].astype(jnp.float32)
            + self.value_bias[...]
        )

    def prefill(self, tokens_BxP: jax.Array, lengths_B: jax.Array, cache_len: int):
        """Reads the prompts; returns the hidden state (B, D) at each prompt's last token and a
        cache for `decode`.

        cache_len: the number of slots S >= P. Prompt token p sits in slot p, the t-th decoded token
        of every row in slot P + t: one write serves the batch, whatever the prompt lengths. The
        cache also carries each layer's slice of the weights in the dtype of the computation, taken
        here once and not at every step. Raises ValueError if S < P.
        """
        B, P = tokens_BxP.shape
        if cache_len < P:
            raise ValueError(f"cache_len {cache_len} is below the prompts' padded length {P}")
        c = self.config
        K, C = c.num_key_value_heads, c.head_dim
        stacked = {
            name: param[...] if name.endswith("norm") else param[...].astype(c.dtype)
            for name, param in self.layers.items()
        }
        weights = [
            {name: weight[i] for name, weight in stacked.items()}
            for i in range(c.num_hidden_layers)
        ]
        x_BxPxD, (k_LxBxKxCxP, v_LxBxKxPxC) = self._layers(tokens_BxP, slice(-1), keep_cache=True)
        kv = list(zip(k_LxBxKxCxP, v_LxBxKxPxC))

        # Of the last layer's output only the last token's is read: a query and an MLP for each row,
        # not for each token.
        q, k, v = qkv(c, weights[-1], x_BxPxD.reshape(B * P, -1))
        cos_PxC2, sin_PxC2 = map(jnp.asarray, rope_table(P, C, c.rope_theta))
        k_BxKxCxP = rope(k.reshape(B, P, K, C).transpose(0, 2, 1, 3), cos_PxC2, sin_PxC2).swapaxes(
            2, 3
        )
        kv.append((k_BxKxCxP, v.reshape(B, P, K, C).transpose(0, 2, 1, 3)))
        real_BxP = jnp.arange(P) < lengths_B[:, None]
        x_BxD, q_BxHC = (
            jnp.take_along_axis(y.reshape(B, P, -1), (lengths_B - 1)[:, None, None], axis=1)[:, 0]
            for y in (x_BxPxD, q)
        )
        x_BxD = attend_once(
            c,
            weights[-1],
            x_BxD,
            q_BxHC,
            cos_PxC2[lengths_B - 1],
            sin_PxC2[lengths_B - 1],
            *kv[-1],
            real_BxP,
        )

        room = (0, cache_len - P)
        cache = {
            "kv": [
                (jnp.pad(k, [(0, 0)] * 3 + [room]), jnp.pad(v, [(0, 0)] * 2 + [room, (0, 0)]))
                for k, v in kv
            ],
            "weights": weights,
            "visible_BxS": jnp.pad(real_BxP, [(0, 0), room]),
            "slot": jnp.int32(P),
        }
        return rms_norm(x_BxD, self.norm[...], c.rms_norm_eps), cache

    def decode(self, token_B: jax.Array, position_B: jax.Array, cache: dict):
        """One token per row, at its own position: the hidden state (B, D) and the cache with the
        token in it.
        """
        c = self.config
        (B,), K, C = token_B.shape, c.num_key_value_heads, c.head_dim
        slot, visible_BxS = cache["slot"], cache["visible_BxS"]
        visible_BxS = visible_BxS | (jnp.arange(visible_BxS.shape[1]) == slot)
        cos_BxC2, sin_BxC2 = (
            jnp.asarray(table)[position_B]
            for table in rope_table(visible_BxS.shape[1], C, c.rope_theta)
        )
        x_BxD = self._embed(token_B)
        kv = []
        for layer, (k_BxKxCxS, v_BxKxSxC) in zip(cache["weights"], cache["kv"]):
            q_BxHC, k, v = qkv(c, layer, x_BxD)
            k_BxKxC = rope(k.reshape(B, K, C), cos_BxC2[:, None], sin_BxC2[:, None])
            k_BxKxCxS = jax.lax.dynamic_update_slice_in_dim(
                k_BxKxCxS, k_BxKxC[..., None], slot, axis=3
            )
            v_BxKxSxC = jax.lax.dynamic_update_slice_in_dim(
                v_BxKxSxC, v.reshape(B, K, 1, C), slot, axis=2
            )
            kv.append((k_BxKxCxS, v_BxKxSxC))
            x_BxD = attend_once(
                c, layer, x_BxD, q_BxHC, cos_BxC2, sin_BxC2, k_BxKxCxS, v_BxKxSxC, visible_BxS
            )
        cache = cache | {"kv": kv, "visible_BxS": visible_BxS, "slot": slot + 1}
        return rms_norm(x_BxD, self.norm[...], c.rms_norm_eps), cache

    def _embed(self, tokens: jax.Array) -> jax.Array:
        # Each device looks up its columns for the rows of all fsdp peers, then the peers trade
        # columns for rows.
        axes = ("data_batch", *[None] * (tokens.ndim - 1))
        x = self.embed[...].astype(self.config.dtype)[constrain(tokens, axes)]
        return constrain(constrain(x, (*axes, "embed")), ("batch", *axes[1:], None))

    def _layers(self, tokens_BxT: jax.Array, which: slice, keep_cache: bool, documents_BxT=None):
        c = self.config
        same_BxTxT = (
            None
            if documents_BxT is None
            else documents_BxT[:, :, None] == documents_BxT[:, None, :]
        )
        cos_TxC2, sin_TxC2 = rope_table(tokens_BxT.shape[1], c.head_dim, c.rope_theta)

        def step(x_BxTxD, layer):
            x_BxTxD, kv = block(c, layer, x_BxTxD, cos_TxC2, sin_TxC2, same_BxTxT)
            return x_BxTxD, kv if keep_cache else None

        if c.remat:
            policy = getattr(jax.checkpoint_policies, c.remat) if isinstance(c.remat, str) else None
            # without one, XLA would find what is recomputed in the forward pass
            loop = c.unroll < c.num_hidden_layers
            step = jax.checkpoint(step, policy=policy, prevent_cse=not loop)
        layers = {name: param[which] for name, param in self.layers.items()}
        return jax.lax.scan(step, self._embed(tokens_BxT), layers, unroll=c.unroll)
