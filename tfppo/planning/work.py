"""The work of an iteration's phases, and what shares of a machine's rates they reach with it."""

import dataclasses
from collections.abc import Mapping

from tfppo.config import Config
from tfppo.planning.costs import decode_bytes, decode_flops, forward_flops, prefill_flops, update_flops


def flops_per_second(ceilings: Mapping[str, float], dtype: str) -> float:
    """The rate of products in a dtype of the models; float32 is TF32 where that was measured, as it then is in use."""
    name = dtype.removeprefix("mixed_")
    if name == "float32" and "tensorfloat32_gflops" in ceilings:
        name = "tensorfloat32"
    return ceilings[f"{name}_gflops"] * 1e9


@dataclasses.dataclass(frozen=True)
class Work:
    """What the phases of an iteration multiply and read, for responses of full length.

    Args:
        config: of which model, sampling and ppo count; ppo.rollout_batch_size is the batch.
        prompt_length: tokens of every prompt.
        rollout_dtype, update_dtype: Keras dtype policies, of sampling and reference, and of the update.
    """

    config: Config
    prompt_length: int
    rollout_dtype: str
    update_dtype: str

    def flops(self) -> dict[str, float]:
        """Floating-point operations of the products, by phase: those of the model, none that is computed again."""
        config, prompt, length = self.config, self.prompt_length, self.config.sampling.response_length
        model, ppo, rows = config.model, config.ppo, config.ppo.rollout_batch_size
        counted = {
            "sampling": prefill_flops(model, rows=rows, prompt_length=prompt)
            + sum(decode_flops(model, rows=rows, context=context) for context in self._contexts()),
            "reference": forward_flops(model, rows=rows, length=prompt + length - 1, states=length),
            "update": ppo.ppo_epochs
            * update_flops(
                model,
                rows=rows,
                prompt_length=prompt,
                response_length=length,
                separate_critic=ppo.critic == "separate",
            ),
        }
        return counted | {"iteration": sum(counted.values())}

    def bytes_decoded(self) -> float:
        """Bytes of weights, keys and values that all steps of sampling read, without the pass over the prompts."""
        return sum(map(self._bytes_of_step, self._contexts()))

    def seconds_needed(self, ceilings: Mapping[str, float]) -> dict[str, float]:
        """The seconds that the products and bytes of each phase need at the machine's own rates.

        Decoding needs the larger of two times: reading weights and cache at the copy rate, or its products at the peak.
        """
        model, rows = self.config.model, self.config.ppo.rollout_batch_size
        sampling, bandwidth = flops_per_second(ceilings, self.rollout_dtype), ceilings["copy_gb_per_second"] * 1e9
        decoding = sum(
            max(
                self._bytes_of_step(context) / bandwidth,
                decode_flops(model, rows=rows, context=context) / sampling,
            )
            for context in self._contexts()
        )
        flops = self.flops()
        return {
            "sampling": prefill_flops(model, rows=rows, prompt_length=self.prompt_length) / sampling + decoding,
            "reference": flops["reference"] / sampling,
            "update": flops["update"] / flops_per_second(ceilings, self.update_dtype),
        }

    def shares(
        self, seconds: Mapping[str, float], ceilings: Mapping[str, float], peak_tflops: float | None = None
    ) -> dict[str, dict[str, float]]:
        """What the phases reach of single rates of the machine.

        Args: seconds: by phase; peak_tflops: what the vendor states for bfloat16; None: not known.
        Returns: {name: {phase: share}}: "share_of_memory_roofline", bytes that decoding reads at the copy rate;
            "share_of_bfloat16_products", the model FLOPs utilisation (Chowdhery et al. 2022) by the measured rate;
            "share_of_stated_peak", the same by the vendor's.
        """
        flops = {phase: count for phase, count in self.flops().items() if phase in seconds}
        peaks = {"share_of_bfloat16_products": ceilings["bfloat16_gflops"] * 1e9}
        if peak_tflops:
            peaks["share_of_stated_peak"] = peak_tflops * 1e12
        found = {
            name: {phase: count / seconds[phase] / peak for phase, count in flops.items()}
            for name, peak in peaks.items()
        }
        reading = self.bytes_decoded() / (ceilings["copy_gb_per_second"] * 1e9)
        memory = {phase: reading / seconds[phase] for phase in seconds if phase == "sampling"}
        return {"share_of_memory_roofline": memory, **found}

    def _contexts(self):
        """The positions that each step after the first token sees."""
        return range(self.prompt_length + 1, self.prompt_length + self.config.sampling.response_length)

    def _bytes_of_step(self, context):
        return decode_bytes(
            self.config.model,
            rows=self.config.ppo.rollout_batch_size,
            context=context,
            bytes_per_weight=2 if self.rollout_dtype == "mixed_bfloat16" else 4,
        )
