"""The other decoders of `benchmarks/decoding.py`, in a Python environment of their own: a server of JSON lines.

It reads one request a line from standard input and answers with one line:

    {"do": "load", "side": SIDE, "model": DIRECTORY, "assistant": DIRECTORY or null, "gamma": γ, "gpu": false}
    {"do": "generate", "side": SIDE, "prompt": [ids], "new": n}   → {"tokens": [ids], "seconds": s, "primary_runs": r}

Greedy, without stop tokens, `new` tokens exactly, with the prompt's prefill in the time. On a GPU weights are random,
of the shape that DIRECTORY's config.json says, in bfloat16. The environment needs torch, transformers,
llama-cpp-python and gguf; a side that cannot be loaded answers {"error": why}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

THREADS = 2
CONTEXT = 512


class HuggingFace:
    """`transformers` generate: eager, with a static cache, compiled, or assisted by a smaller model."""

    def __init__(self, side: str, model: str, assistant: str | None, gamma: int, gpu: bool):
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.set_num_threads(THREADS)
        torch.set_grad_enabled(False)
        self.device = torch.device("cuda" if gpu else "cpu")

        def load(path: str) -> Any:
            if gpu:
                with self.device:
                    loaded = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path), dtype=torch.bfloat16)
            else:
                loaded = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
            loaded = loaded.eval()
            loaded.generation_config.eos_token_id = None
            loaded.generation_config.pad_token_id = 0
            return loaded

        self.torch, self.model, self.arguments, self.runs = torch, load(model), {}, 0
        if side == "hf assisted":
            helper = load(assistant or "")
            # A block is always γ drafts: neither the length nor a confidence threshold adapts.
            helper.generation_config.num_assistant_tokens = gamma
            helper.generation_config.num_assistant_tokens_schedule = "constant"
            helper.generation_config.assistant_confidence_threshold = 0.0
            self.arguments["assistant_model"] = helper
        if side in ("hf static", "hf compile", "hf max-autotune"):
            self.arguments["cache_implementation"] = "static"
        if side == "hf compile":
            self.model.forward = torch.compile(self.model.forward, mode="reduce-overhead" if gpu else None)
        if side == "hf max-autotune":
            import torch._inductor.config as inductor

            inductor.freezing = True  # weights are packed for the product once; the CPU's own templates need it
            self.model.forward = torch.compile(self.model.forward, mode="max-autotune-no-cudagraphs")
        self.model.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.runs += 1

    def generate(self, prompt: list[int], new: int) -> list[int]:
        ids = self.torch.tensor([prompt], device=self.device)
        self.runs = 0
        output = self.model.generate(
            ids, attention_mask=self.torch.ones_like(ids), do_sample=False, max_new_tokens=new, **self.arguments
        )
        return output[0, len(prompt) :].tolist()


class LlamaCpp:
    """llama.cpp through `llama-cpp-python`, in float32; the most probable token is taken by its own greedy sampler."""

    def __init__(self, model: str):
        import ctypes

        import llama_cpp

        path = Path(model) / "model.gguf"
        if not path.exists():
            write_gguf(Path(model), path)
        self.api, self.ctypes, self.runs = llama_cpp, ctypes, 0
        self.log = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self.log, ctypes.c_void_p(0))
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx, parameters.n_threads, parameters.n_threads_batch = CONTEXT, THREADS, THREADS
        parameters.type_k = parameters.type_v = llama_cpp.GGML_TYPE_F32
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        self.sampler = llama_cpp.llama_sampler_init_greedy()

    def generate(self, prompt: list[int], new: int) -> list[int]:
        api, emitted, given = self.api, [], list(prompt)
        api.llama_memory_clear(api.llama_get_memory(self.context), True)
        self.runs = 0
        while len(emitted) < new:
            read = (api.llama_token * len(given))(*given)  # the batch holds a pointer to it
            batch = api.llama_batch_get_one(read, len(given))
            if api.llama_decode(self.context, batch):
                raise RuntimeError("llama_decode failed")
            self.runs += 1
            given = [api.llama_sampler_sample(self.sampler, self.context, -1)]
            emitted += given
        return emitted


def write_gguf(source: Path, path: Path) -> None:
    """A Hugging Face Llama directory as a float32 GGUF file without a vocabulary."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((source / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("none")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, array in load_file(source / "model.safetensors").items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            # llama.cpp rotates neighbouring entries of a head together, transformers entry i with i + E/2.
            count = heads if "q_proj" in name else kv_heads
            array = array.reshape(count, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        theirs = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(theirs, array.astype("float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    # Libraries print on standard output too, which is for answers only.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sides: dict[str, Any] = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            side = request["side"]
            if request["do"] == "load":
                model = request["model"]
                foreign = (
                    LlamaCpp(model)
                    if side == "llama.cpp"
                    else HuggingFace(side, model, request["assistant"], request["gamma"], request["gpu"])
                )
                sides[side] = foreign
                answer: dict[str, Any] = {}
            else:
                begin = time.perf_counter()
                tokens = sides[side].generate(request["prompt"], request["new"])
                seconds = time.perf_counter() - begin
                answer = {"tokens": tokens, "seconds": seconds, "primary_runs": sides[side].runs}
        except Exception as error:  # another library's failure is a row of the table, not the end of the benchmark
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
