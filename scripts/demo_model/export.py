"""Checkpoint -> GGUF: Llama architecture, weights in Q8_0, norms in float32, tokenizer and chat template."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np

from . import dialogues
from . import tokenizer as tok
from .model import DemoModel
from .recipes import ModelConfig
from .train import load_model


def interleave(weight: np.ndarray, n_head: int) -> np.ndarray:
    """Re-order the rows of a Q or K matrix [n_head * d, D].

    Training rotates the elements (i, i + d/2) of a head, llama.cpp rotates (2i, 2i + 1).
    """
    rows, width = weight.shape
    return weight.reshape(n_head, 2, rows // n_head // 2, width).swapaxes(1, 2).reshape(rows, width)


def _add_tokenizer(writer: gguf.GGUFWriter, work: Path) -> None:
    data = json.loads((work / "tokenizer.json").read_text(encoding="utf-8"))
    vocab: dict[str, int] = data["model"]["vocab"]
    tokens = [""] * len(vocab)
    for text, index in vocab.items():
        tokens[index] = text
    control = {tokens.index(name) for name in tok.SPECIALS}
    merges = [m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if i in control else gguf.TokenType.NORMAL for i in range(len(tokens))]
    )
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokens.index(dialogues.END_OF_TEXT))
    writer.add_eos_token_id(tokens.index(dialogues.TURN_END))
    writer.add_eot_token_id(tokens.index(dialogues.TURN_END))
    writer.add_pad_token_id(tokens.index(dialogues.PAD))
    # Training texts begin at any place of a document, so nothing is put before them.
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(tok.CHAT_TEMPLATE)


def _add_metadata(writer: gguf.GGUFWriter, title: str, cfg: ModelConfig, step: int, tokens: int) -> None:
    writer.add_name(title)
    writer.add_description(
        "A very small model for trying and testing KV-cache compression: it reads facts and recalls "
        f"them, and writes simple sentences. {step} steps, {tokens} tokens."
    )
    writer.add_license("other")
    writer.add_license_name("see models/README.md: the texts and their licences")
    writer.add_languages(["en"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(cfg.n_vocab)
    writer.add_context_length(cfg.n_ctx)
    writer.add_embedding_length(cfg.n_embd)
    writer.add_block_count(cfg.n_layer)
    writer.add_feed_forward_length(cfg.n_ff)
    writer.add_head_count(cfg.n_head)
    writer.add_head_count_kv(cfg.n_head_kv)
    writer.add_key_length(cfg.head_dim)
    writer.add_value_length(cfg.head_dim)
    writer.add_rope_dimension_count(cfg.head_dim)
    writer.add_rope_freq_base(cfg.rope_theta)
    writer.add_layer_norm_rms_eps(cfg.rms_eps)


def _tensor_names(n_layer: int) -> dict[str, str]:
    """The name in the GGUF of each parameter."""
    names = {
        "embed.weight": "token_embd.weight",
        "out_norm": "output_norm.weight",
        "output.weight": "output.weight",
    }
    for i in range(n_layer):
        for ours, theirs in (
            ("attn_norm", "attn_norm"),
            ("wq.weight", "attn_q"),
            ("wk.weight", "attn_k"),
            ("wv.weight", "attn_v"),
            ("wo.weight", "attn_output"),
            ("ffn_norm", "ffn_norm"),
            ("gate.weight", "ffn_gate"),
            ("up.weight", "ffn_up"),
            ("down.weight", "ffn_down"),
        ):
            names[f"blocks.{i}.{ours}"] = f"blk.{i}.{theirs}.weight"
    return names


def _add_weights(writer: gguf.GGUFWriter, model: DemoModel) -> None:
    """Matrices as q8_0, norms as float32."""
    cfg, kind = model.cfg, gguf.GGMLQuantizationType.Q8_0
    weights = {name: p.detach().float().numpy() for name, p in model.named_parameters()}
    for ours, theirs in _tensor_names(cfg.n_layer).items():
        array = weights[ours]
        if ours.endswith("wq.weight"):
            array = interleave(array, cfg.n_head)
        elif ours.endswith("wk.weight"):
            array = interleave(array, cfg.n_head_kv)
        if array.ndim == 1:
            writer.add_tensor(theirs, array.astype(np.float32))
        else:
            writer.add_tensor(theirs, gguf.quants.quantize(np.ascontiguousarray(array), kind), raw_dtype=kind)


def write(work: Path, home: Path, title: str, out: Path) -> None:
    """Write `out` from the newest checkpoint in `home`; `work` has the tokenizer."""
    model, data = load_model(home / "checkpoint.pt")
    writer = gguf.GGUFWriter(None, "llama")
    _add_metadata(writer, title, model.cfg, data["step"], data["tokens"])
    _add_tokenizer(writer, work)
    _add_weights(writer, model)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    writer.write_header_to_file(part)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(out)
    print(f"export: {out} ({out.stat().st_size / 1e6:.1f} MB), step {data['step']}", flush=True)
