"""Which checkpoint a file belongs to, by the layouts that libraries write (measured; Megatron-LM and NeMo from sources)."""

from __future__ import annotations

import pytest

from launcher.outputs.candidates import ROOT, of_file


@pytest.mark.parametrize(
    ("path", "owner"),
    [
        ("model.pt", ROOT),
        ("checkpoint-500/optimizer.pt", "checkpoint-500"),
        ("final/model.safetensors", "final"),
        # containers: folders that hold checkpoint folders
        ("checkpoints/checkpoint_0/model.safetensors", "checkpoints/checkpoint_0"),  # accelerate, automatic naming
        ("run-5/checkpoint-10/trainer_state.json", "run-5/checkpoint-10"),  # hyper-parameter search
        ("exp1/checkpoint-10/trainer_state.json", "exp1/checkpoint-10"),
        ("exp1/config.json", "exp1"),  # a Trainer's own checkpoint beside them
        ("a/b/c/step_100/model.pt", "a/b/c/step_100"),
        ("nemo/checkpoints/model-step=10-loss=0.5/weights/0", "nemo/checkpoints/model-step=10-loss=0.5"),
        ("orbax/100/default/manifest.ocdbt", "orbax/100"),
        ("exp1/best/model.safetensors", "exp1/best"),
        ("megatron/iter_0000010/mp_rank_00/model_optim_rng.pt", "megatron/iter_0000010"),
        # parts of one checkpoint
        ("checkpoint-5/global_step5/mp_rank_00_model_states.pt", "checkpoint-5"),  # DeepSpeed in a Trainer
        ("checkpoint-5/pytorch_model_fsdp_0/.metadata", "checkpoint-5"),
        ("state/optimizer_0/__0_0.distcp", "state"),
        ("pipeline/unet/config.json", "pipeline"),
        ("pipeline/text_encoder_2/model.safetensors", "pipeline"),
        ("7/default/d/abc", "7"),  # Orbax straight in the output
        ("final/1_Pooling/config.json", "final"),  # sentence-transformers
        ("arrays/params/layers/0/0.0", "arrays"),
        # being written, or ours
        ("tmp-checkpoint-5/model.safetensors", None),  # transformers 4.37
        ("7.orbax-checkpoint-tmp/default/x", None),
        ("orbax/7.orbax-checkpoint-tmp/default/x", None),
        (".launcher/0190/files/model.pt", None),
    ],
)
def test_a_files_path_says_whose_part_it_is(path: str, owner: str | None) -> None:
    assert of_file(path) == owner
