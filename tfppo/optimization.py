"""Optimizer steps that are the same on one replica and many: gradients are summed, then clipped, then applied.

Keras clips each replica's gradients before it sums them, which is another update for every number of replicas. Here
the sum comes first, so the optimizers leave the reducing out.
"""

import keras
import tensorflow as tf


class _FusedAdam:
    """Adam's step as one pass over a variable and its moments, of gradients that are summed over replicas already.

    Keras would sum them a second time, and make a dozen passes. Some variables may learn at another rate.
    """

    _rate_scales = None

    def scale_learning_rate(self, variables, scale):
        """These variables learn at `scale` times the learning rate."""
        self._rate_scales = {self._get_variable_index(variable): scale for variable in variables}

    def update_step(self, gradient, variable, learning_rate):
        """One variable's step."""
        index = self._get_variable_index(variable)
        step = tf.cast(self.iterations + 1, tf.float32)
        beta_2_power = tf.pow(self.beta_2, step)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=tf.pow(self.beta_1, step),
            beta2_power=beta_2_power,
            lr=tf.cast(learning_rate, tf.float32) * (self._rate_scales or {}).get(index, 1.0),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self._kernel_epsilon(beta_2_power),
            grad=gradient,
        )

    def _kernel_epsilon(self, beta_2_power):
        """What the kernel adds to sqrt(v): it takes TensorFlow's form of Adam."""
        del beta_2_power
        return self.epsilon

    def _all_reduce_sum_gradients(self, grads_and_vars):
        return list(grads_and_vars)


class Adam(_FusedAdam, keras.optimizers.Adam):
    """Keras' Adam, which is TensorFlow's form of it: its epsilon is the Adam paper's epsilon-hat."""


class AdamW(_FusedAdam, keras.optimizers.AdamW):
    """AdamW (Loshchilov and Hutter 2019) in PyTorch's form: m_hat / (sqrt(v_hat) + epsilon).

    The bias corrections come before epsilon is added: for small gradients a larger step than that of TensorFlow's form.
    """

    def _kernel_epsilon(self, beta_2_power):
        # sqrt(v_hat) + epsilon = (sqrt(v) + epsilon * sqrt(1 - b2^t)) / sqrt(1 - b2^t)
        return self.epsilon * tf.sqrt(1.0 - beta_2_power)


def make_optimizer(name, variables, *, learning_rate, beta_1, beta_2, epsilon, weight_decay):
    """An optimizer by name ("adam" or "adamw"), built for the variables; decay leaves vectors and scalars alone."""
    if name == "adam":
        optimizer = Adam(learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon)
    else:
        optimizer = AdamW(learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, weight_decay=weight_decay)
        optimizer.exclude_from_weight_decay(var_list=[v for v in variables if len(v.shape) < 2])
    optimizer.build(variables)
    return optimizer


def clip_by_global_norm(gradients, max_norm, groups=None):
    """Gradients scaled so that the common norm of each group is at most `max_norm` (0: as they are).

    Args: groups: lists of indices of gradients; None: all are one group.
    Returns: the gradients, and the norm of all of them before.
    """
    norm = tf.linalg.global_norm(gradients)
    if not max_norm:
        return gradients, norm
    clipped = list(gradients)
    for group in groups or [range(len(gradients))]:
        group_norm = tf.linalg.global_norm([gradients[i] for i in group])
        scale = tf.minimum(1.0, max_norm / tf.maximum(group_norm, 1e-12))
        for i in group:
            clipped[i] = gradients[i] * scale
    return clipped, norm


def dense_gradients(tape, target, variables, output_gradients=None):
    """Gradients as plain tensors, zeros where a variable has no part in the target."""
    gradients = tape.gradient(target, variables, output_gradients)
    return [
        tf.zeros_like(variable) if gradient is None else tf.convert_to_tensor(gradient)
        for gradient, variable in zip(gradients, variables, strict=True)
    ]


def gradients_of(loss_fn, variables):
    """Dense gradients of a loss and its statistics: loss_fn() -> (loss, statistics) to (gradients, statistics)."""
    with tf.GradientTape() as tape:
        loss, statistics = loss_fn()
    return dense_gradients(tape, loss, variables), statistics


def optimize(
    strategy, optimizer, replica_gradients, args, *, max_grad_norm, groups=None, stop_when=lambda statistics: False
):
    """One optimizer step over all replicas; left out on every one of them where a gradient is not finite.

    Call it inside a `tf.function`, in the cross-replica context.
    Args:
        replica_gradients: (*args) -> (gradients, statistics), a replica's share of both, such that the sums over the
            replicas are what is wanted.
        groups: lists of indices of the variables that are clipped together; None: all.
        stop_when: the summed statistics -> whether the step is to be left out.
    Returns: the summed statistics, the gradient's norm before clipping, whether the step was taken, and what
        `stop_when` said.
    """

    def reduced(*args):
        context = tf.distribute.get_replica_context()
        gradients, statistics = context.all_reduce(tf.distribute.ReduceOp.SUM, replica_gradients(*args))
        gradients, norm = clip_by_global_norm(gradients, max_grad_norm, groups)
        return gradients, statistics, norm

    gradients, statistics, norms = strategy.run(reduced, args)
    norm, *_ = strategy.experimental_local_results(norms)
    statistics = tf.nest.map_structure(lambda value: strategy.experimental_local_results(value)[0], statistics)
    stopped = tf.convert_to_tensor(stop_when(statistics))
    taken = tf.math.is_finite(norm) & ~stopped

    def apply():
        strategy.run(optimizer.apply, (gradients,))
        return tf.constant(0)

    tf.cond(taken, apply, lambda: tf.constant(0))
    return statistics, norm, taken, stopped
