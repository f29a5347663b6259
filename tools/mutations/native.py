"""The native operations: sampling, the trunk, the head and the optimizer's step in C++."""

from mutations.cpp import text
from mutations.mutation import Mutation

FOLDER = "computation/native"
DECODER, TRUNK, HEAD, OPTIMIZER = (
    f"tests/computation/native/test_{part}.py" for part in ("decoder", "trunk", "head", "optimizer")
)


def _mutation(name, file, function, old, new, tests):
    return Mutation(name, f"{FOLDER}/{file}", function, [text(old, new)], tests)


MUTATIONS = [
    _mutation(
        "temperature_dropped_in_the_native_draw",
        "sampling.cc",
        "compute_draw",
        "1.0f / self.temperature",
        "1.0f",
        DECODER,
    ),
    _mutation(
        "pads_attended_to_in_native_sampling", "kernels.h", "attend", "seen[s] ? scores[s] : 0.0f", "scores[s]", DECODER
    ),
    _mutation(
        "native_cache_written_one_slot_late",
        "sampling.cc",
        "attend_head",
        "keys + cache + size_t(b->start + t)",
        "keys + cache + size_t(minimum(b->start + t + 1, b->slots - 1))",
        DECODER,
    ),
    _mutation(
        "pads_attended_to_in_bfloat16_sampling",
        "sampling_bfloat16.cc",
        "attend",
        "uint32_t(seen[first + s])",
        "1u",
        DECODER,
    ),
    _mutation(
        "values_of_odd_slots_lost_in_bfloat16", "sampling_bfloat16.cc", "write_value", "slot % 2", "false", DECODER
    ),
    _mutation("temperature_dropped_in_native_head", "head.cc", "logit_gradients", "gradient * scale", "gradient", HEAD),
    _mutation("chosen_token_dropped_in_native_head", "head.cc", "logit_gradients", "+= dlogprob", "+= 0", HEAD),
    _mutation("logits_kept_without_their_base", "head.cc", "forward", "base_of(low, high)", "0", HEAD),
    _mutation(
        "pads_computed_in_the_native_update",
        "trunk.h",
        "tokens_of",
        "real[row * length + t]",
        "(real[row * length + t] || t)",
        TRUNK,
    ),
    _mutation(
        "scale_dropped_in_the_native_attention_gradient",
        "attention.h",
        "attend_back",
        "- mean) * scale",
        "- mean)",
        TRUNK,
    ),
    _mutation("mean_dropped_in_the_native_norm_gradient", "gradients.h", "norm_gradient", "- g_mean", "", TRUNK),
    _mutation(
        "future_seen_in_the_native_update",
        "attention.h",
        "attend_forward",
        "before + i + r + 1",
        "minimum(before + i + r + 2, seen)",
        TRUNK,
    ),
    _mutation("gradient_not_scaled_in_the_native_step", "optimizer.cc", "step", "* own.scale", "", OPTIMIZER),
    _mutation("decay_dropped_in_the_native_step", "optimizer.cc", "step", "* (1.0f - own.decay)", "", OPTIMIZER),
    _mutation(
        "native_step_written_under_who_reads",
        "variables.cc",
        "numbers_of_variable",
        "!held.RefCountIsOne()",
        "false",
        OPTIMIZER,
    ),
    _mutation(
        "native_rows_replaced_not_added",
        "embedding.cc",
        "compute_add_rows",
        "load_some(to, width - i) +",
        "",
        OPTIMIZER,
    ),
]
