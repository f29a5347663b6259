"""GPT-2's decoding written out in PyTorch, so that a whole step with its draw can be captured as one CUDA graph."""

import torch
from torch.nn import functional


class DecodingLoop:
    """Draws responses with the weights of a transformers GPT-2, one step a token, with a cache of fixed size.

    On a GPU, the pass over the prompts is one CUDA graph and the step another, which is replayed for every token: what
    changes from step to step lies in tensors on the device. On a CPU the same functions are called.

    Args: model: a GPT2LMHeadModel; sizes: batch, prompt, response, device; dtype: of weights, cache and products.
    """

    def __init__(self, model, sizes, dtype):
        self.sizes, self.heads = sizes, model.config.n_head
        self.weights = {name: value.detach().to(dtype) for name, value in model.named_parameters()}
        self.layers = model.config.n_layer
        rows, slots, device = sizes.batch, sizes.prompt + sizes.response, sizes.device
        shape = [self.layers, 2, rows, self.heads, slots, model.config.n_embd // self.heads]
        self.cache = torch.zeros(shape, dtype=dtype, device=device)
        self.ids = torch.zeros(rows, sizes.prompt, dtype=torch.long, device=device)
        self.tokens = torch.zeros(rows, sizes.response, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(rows, sizes.response, device=device)
        self.uniforms = torch.zeros(rows, sizes.response, device=device)
        self.place = torch.zeros(1, dtype=torch.long, device=device)  # of the next token in the response
        self.slots = torch.arange(slots, device=device)
        self.prefill, self.step = self._captured(self._prefill), self._captured(self._step)

    @torch.inference_mode()
    def __call__(self, ids):
        """Responses to prompts [B, P]: tokens and log-probabilities [B, R], overwritten by the next call."""
        self.ids.copy_(ids)
        self.uniforms.uniform_()
        self.place.zero_()
        self.prefill()
        for _ in range(self.sizes.response - 1):
            self.step()
        return self.tokens, self.logprobs

    def _captured(self, function):
        """A function of no arguments that does the same, compiled; on a GPU as a CUDA graph."""
        function = torch.compile(function, dynamic=False)
        if self.sizes.device != "cuda":
            return function
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode(), torch.cuda.stream(side):
            for _ in range(2):  # compiles, and lets the libraries allocate their workspaces
                self.place.fill_(1)  # a step looks at the token before
                function()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(graph):
            function()
        return graph.replay

    def _prefill(self):
        """The pass over the prompts, and the first token."""
        length = self.sizes.prompt
        x = self.weights["transformer.wte.weight"][self.ids] + self.weights["transformer.wpe.weight"][:length]
        for layer in range(self.layers):
            query, key, value = self._projected(x, layer)
            self.cache[layer, 0, :, :, :length] = key
            self.cache[layer, 1, :, :, :length] = value
            context = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = self._rest(x, context, layer)
        self._draw(x[:, -1])

    def _step(self):
        """One token more."""
        last = self.tokens.index_select(1, self.place - 1)
        position = self.place + (self.sizes.prompt - 1)
        positions = self.weights["transformer.wpe.weight"].index_select(0, position)
        x = self.weights["transformer.wte.weight"][last] + positions
        visible = (self.slots <= position)[None, None, None]
        for layer in range(self.layers):
            query, key, value = self._projected(x, layer)
            keys, values = self.cache[layer, 0], self.cache[layer, 1]
            keys.index_copy_(2, position, key)
            values.index_copy_(2, position, value)
            context = functional.scaled_dot_product_attention(query, keys, values, attn_mask=visible)
            x = self._rest(x, context, layer)
        self._draw(x[:, 0])

    def _projected(self, x, layer):
        """Queries, keys and values [B, H, T, D/H] of x [B, T, D]."""
        together = self._product(self._norm(x, f"transformer.h.{layer}.ln_1"), f"transformer.h.{layer}.attn.c_attn")
        return together.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def _rest(self, x, context, layer):
        block = f"transformer.h.{layer}"
        x = x + self._product(context.transpose(1, 2).flatten(2), f"{block}.attn.c_proj")
        hidden = self._product(self._norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")
        return x + self._product(functional.gelu(hidden, approximate="tanh"), f"{block}.mlp.c_proj")

    def _draw(self, state):
        """Draws by the inverse of the CDF from the last states [B, D], and goes on to the next place."""
        logits = self._norm(state, "transformer.ln_f") @ self.weights["transformer.wte.weight"].T
        logprobs = logits.float().log_softmax(-1)
        sums = logprobs.exp().cumsum(-1)
        bound = self.uniforms.index_select(1, self.place) * sums[:, -1:]
        token = torch.searchsorted(sums, bound, right=True).clamp(max=logits.shape[1] - 1)
        self.tokens.index_copy_(1, self.place, token)
        self.logprobs.index_copy_(1, self.place, logprobs.gather(1, token))
        self.place += 1

    def _norm(self, x, name):
        return functional.layer_norm(
            x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], eps=1e-5
        )

    def _product(self, x, name):
        return x @ self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]
