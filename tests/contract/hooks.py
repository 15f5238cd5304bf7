"""Methods and attributes of dependencies that subclasses in qlmm override, call or set: these cannot be moved here.

A subclass replaces a method where it stands. This list says which, and why no public way would do;
``test_compat.py`` checks that each still exists with these arguments, and that no other is overridden.

Usage: ``for hook in HOOKS: print(hook.owner, hook.name, hook.why)``
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["HOOKS", "Hook"]


@dataclass(frozen=True, slots=True)
class Hook:
    """A method or an attribute of a dependency's class.

    Attributes:
        owner: the class, as it is imported.
        name: the method, or an attribute that the class's own code reads.
        takes: the method's arguments after ``self``; None for an attribute.
        why: what depends on it.
    """

    owner: str
    name: str
    takes: tuple[str, ...] | None
    why: str


# Read from transformers 5.23 and TRL 1.16.
HOOKS: tuple[Hook, ...] = (
    Hook(
        "transformers.Trainer",
        "_clip_grad_norm",
        ("model",),
        "norms per part are measured before clipping; the first callback comes after it",
    ),
    Hook(
        "transformers.Trainer",
        "_get_grad_norm",
        ("model", "grad_norm"),
        "gradients are looked at where nothing is clipped too; the first callback comes after it",
    ),
    Hook("transformers.Trainer", "_get_output_dir", ("trial",), "a checkpoint gets its name once it is sealed"),
    Hook("transformers.Trainer", "_save_checkpoint", ("model", "trial"), "what a full disk leaves half is removed"),
    Hook(
        "transformers.Trainer",
        "_get_train_sampler",
        ("train_dataset",),
        "rows come in the order of the mixture; there is no argument for a sampler",
    ),
    Hook(
        "transformers.Trainer",
        "_save",
        ("output_dir", "state_dict"),
        "a checkpoint also holds bare parameters, and no copy of the reference",
    ),
    Hook("trl.SFTTrainer", "_send_telemetry", (), "nothing is sent about users, whatever the environment says"),
    Hook(
        "trl.KTOTrainer",
        "_compute_loss",
        ("model", "inputs", "return_outputs"),
        "what other rows' answers need is taken from the batch before TRL sees it",
    ),
    Hook(
        "trl.KTOTrainer",
        "_compute_kl_logps",
        ("model", "batch"),
        "other rows' answers come with token types and masks of their own",
    ),
    Hook(
        "trl.DPOTrainer",
        "compute_ref_log_probs",
        ("model", "inputs"),
        "the reference is computed when a pair is first met, and remembered",
    ),
    Hook("trl.DPOTrainer", "precompute_ref_logps", None, "True makes TRL take the reference's values from the batch"),
    Hook(
        "qlmm.compat.trl_experimental.ORPOTrainer",
        "concatenated_forward",
        ("model", "batch"),
        "log-probabilities come from the fused head, for rows of either layout",
    ),
    Hook(
        "qlmm.compat.trl_experimental.CPOTrainer",
        "concatenated_forward",
        ("model", "batch"),
        "log-probabilities come from the fused head, for rows of either layout",
    ),
    Hook(
        "qlmm.compat.trl_experimental.ORPOTrainer",
        "odds_ratio_loss",
        ("policy_chosen_logps", "policy_rejected_logps"),
        "an answer that is certain has finite odds",
    ),
    Hook("qlmm.compat.trl_experimental.ORPOTrainer", "aux_loss_enabled", None, "routers are never trained"),
    Hook("qlmm.compat.trl_experimental.CPOTrainer", "aux_loss_enabled", None, "routers are never trained"),
    Hook(
        "transformers.PreTrainedModel",
        "_init_weights",
        ("module",),
        "documented for new model classes: a tower's package initialises its own layers",
    ),
    Hook(
        "transformers.PreTrainedModel",
        "_tied_weights_keys",
        None,
        "documented for new model classes: the head is tied to embeddings under the language model's own name",
    ),
    Hook(
        "transformers.LlavaProcessor",
        "_get_num_multimodal_tokens",
        ("image_sizes", "kwargs"),
        "connectors with a fixed number of tokens answer for themselves",
    ),
    Hook(
        "transformers.LlavaProcessor",
        "replace_image_token",
        ("image_inputs", "image_idx", "kwargs"),
        "a picture takes as many placeholders as its connector gives tokens",
    ),
)
