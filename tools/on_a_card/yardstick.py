"""PyTorch on the same card, as a yardstick: how it samples, and how it updates. Needs PyTorch and transformers.

Each runs by itself, and prints one line of JSON; `steps.py` has the calls:

    python tools/on_a_card/yardstick.py '{"what": "generate", "device": "cuda", "layers": 12, ...}'

`WAYS` names what can be asked for. All take a GPT-2 with random weights and no dropout, prompts of real tokens without
padding, and no stop token. float32 is TF32 on a GPU, which is in their favour.
"""

import json
import os
import statistics
import sys
import time
from types import SimpleNamespace

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import transformers
from decoding_loop import DecodingLoop


def main(text):
    """What the JSON asks for, as a line of JSON."""
    sizes = SimpleNamespace(**json.loads(text))
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.manual_seed(0)
    print(json.dumps(WAYS[sizes.what](sizes) | about(sizes)), flush=True)


def about(sizes):
    """Where it ran, and the most memory that tensors took there."""
    if sizes.device != "cuda":
        return {"device": sizes.device, "torch": torch.__version__}
    name, peak = torch.cuda.get_device_name(), torch.cuda.max_memory_allocated() / 1e9
    return {"device": name, "torch": torch.__version__, "device_peak_gb": peak}


def gpt2(sizes):
    """A GPT-2 of these sizes, in float32."""
    config = transformers.GPT2Config(
        n_layer=sizes.layers,
        n_embd=sizes.width,
        n_head=sizes.heads,
        vocab_size=sizes.vocabulary,
        n_positions=max(1024, sizes.prompt + sizes.response),
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    return transformers.GPT2LMHeadModel._from_config(config, attn_implementation="sdpa").to(sizes.device)


def prompts(sizes):
    """Token ids [B, P]."""
    return torch.randint(2, sizes.vocabulary, (sizes.batch, sizes.prompt), device=sizes.device)


def timed(sizes, function):
    """Seconds of the first call, and the median of the later ones, after one more to warm up."""

    def seconds():
        started = time.perf_counter()
        function()
        if sizes.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    first = seconds()
    seconds()
    if sizes.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    return {"first_call_seconds": first, "seconds": statistics.median(seconds() for _ in range(sizes.runs))}


def sampled(sizes, function):
    """Figures of a function that draws all responses."""
    figures = timed(sizes, function)
    return figures | {"tokens_per_second": sizes.batch * sizes.response / figures["seconds"]}


def generate(sizes):
    """`generate` as TRL's PPO trainer calls it: float32, scores of every token, and their log-probabilities."""
    model, ids = gpt2(sizes).eval(), prompts(sizes)
    how = transformers.GenerationConfig(
        **drawing(sizes), temperature=1.0 + 1e-7, output_scores=True, return_dict_in_generate=True
    )

    @torch.no_grad()
    def run():
        drawn = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=how)
        logits, responses = torch.stack(drawn.scores, 1), drawn.sequences[:, sizes.prompt :]
        return logits.log_softmax(-1).gather(2, responses[..., None])[..., 0]

    return sampled(sizes, run)


def generate_at_its_best(sizes):
    """`generate` in bfloat16 with a static cache, whose step it compiles; no scores."""
    model, ids = gpt2(sizes).eval().bfloat16(), prompts(sizes)
    how = transformers.GenerationConfig(**drawing(sizes), temperature=1.0, cache_implementation="static")
    if sizes.device != "cuda":  # there transformers compiles by itself
        model.forward = torch.compile(model.forward, dynamic=False)

    @torch.inference_mode()
    def run():
        return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=how)

    return sampled(sizes, run)


def drawing(sizes):
    """Settings of `generate` for responses of full length, drawn from the whole distribution."""
    return dict(
        do_sample=True,
        top_k=0,
        top_p=1.0,
        max_new_tokens=sizes.response,
        min_new_tokens=sizes.response,
        use_cache=True,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=1,
    )


def loop(sizes):
    """A loop by hand in bfloat16: the step compiled and captured as a CUDA graph, which draws by itself."""
    model, ids = gpt2(sizes).eval(), prompts(sizes)
    ours = DecodingLoop(model, sizes, torch.bfloat16)
    figures = sampled(sizes, lambda: ours(ids))
    tokens, logprobs = ours(ids)
    with torch.inference_mode():
        logits = model(torch.cat([ids, tokens], 1)[:, :-1]).logits[:, sizes.prompt - 1 :].float()
        expected = logits.log_softmax(-1).gather(2, tokens[..., None])[..., 0]
    # Of the sampled tokens' log-probabilities, to those of a pass in float32: what bfloat16 rounds.
    return figures | {"largest_difference": (expected - logprobs).abs().max().item()}


def update(sizes, compiled):
    """One epoch under bfloat16 autocast: clipped losses of policy and value head, gradients, clipping, fused AdamW."""
    model = gpt2(sizes).train()
    head = torch.nn.Linear(sizes.width, 1, device=sizes.device)
    weights = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=1e-6, fused=True)
    rows = sizes.batch // sizes.minibatches
    ids = torch.randint(2, sizes.vocabulary, (sizes.batch, sizes.prompt + sizes.response), device=sizes.device)
    old, advantages, returns, values = torch.randn(4, sizes.batch, sizes.response, device=sizes.device)

    def loss_of(ids, old, advantages, returns, values):
        states = model.transformer(input_ids=ids[:, :-1]).last_hidden_state[:, sizes.prompt - 1 :]
        logprobs = model.lm_head(states).float().log_softmax(-1)
        chosen = logprobs.gather(2, ids[:, sizes.prompt :, None])[..., 0]
        entropy = -(logprobs.exp() * logprobs).sum(-1).mean().detach()
        ratio = (chosen - old).exp()
        surrogate = torch.max(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2)).mean()
        estimates = head(states.float())[..., 0]
        kept = values + (estimates - values).clamp(-0.2, 0.2)
        errors = torch.max((estimates - returns) ** 2, (kept - returns) ** 2).mean() / 2
        return surrogate + 0.1 * errors, entropy

    loss = torch.compile(loss_of, dynamic=False) if compiled else loss_of

    def run():
        for part in torch.randperm(sizes.batch, device=sizes.device).view(-1, rows):
            with torch.autocast(sizes.device, torch.bfloat16):
                total, _ = loss(ids[part], old[part] * 0.01 - 9, advantages[part], returns[part], values[part])
            total.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    figures = timed(sizes, run)
    return figures | {"seconds_a_step": figures["seconds"] / sizes.minibatches}


WAYS = {
    "generate": generate,
    "generate at its best": generate_at_its_best,
    "loop": loop,
    "update, eager": lambda sizes: update(sizes, compiled=False),
    "update, compiled": lambda sizes: update(sizes, compiled=True),
}

if __name__ == "__main__":
    main(sys.argv[1])
