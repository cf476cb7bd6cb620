"""Orbax's CheckpointManager with jax on the CPU: one folder for each step, committed by a rename."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax.numpy as jnp
import orbax.checkpoint as ocp
import tiny

OUT = tiny.output()

if tiny.rank() == 0:
    with ocp.CheckpointManager(OUT.resolve(), options=ocp.CheckpointManagerOptions(max_to_keep=2)) as manager:
        for step in (1, 2, 3):
            state = {"params": {"w": jnp.arange(12.0).reshape(3, 4) * step, "b": jnp.full(3, step)}, "step": step}
            manager.save(step, args=ocp.args.StandardSave(state))
            manager.wait_until_finished()
            tiny.remember(str(step), params=state["params"])
