"""Loading the weights of a published model, all of them or none."""

from __future__ import annotations

from typing import Any

from reasonbrain.errors import UserError

# buffers that libraries once stored and now compute
STORED_ONCE = ("position_ids", "inv_freq")


def load_published(cls: Any, source: str, spare: tuple[str, ...] = (), **options: Any) -> Any:
    """``cls.from_pretrained`` of transformers or diffusers, which only warn of weights that do not fit. Reads
    safetensors, unless ``options`` say otherwise.

    spare: beginnings of the names of published tensors that ``cls`` leaves out on purpose.

    Raises UserError if tensors are missing, have another shape, or belong to no module of the model, and whatever the
    library raises."""
    # tensors of another shape are listed, too, instead of an error that does not name them
    told = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    model, info = cls.from_pretrained(source, **told, **{"use_safetensors": True, **options})
    unexpected = [n for n in info["unexpected_keys"] if not n.endswith(STORED_ONCE) and not n.startswith(spare)]
    mismatched = [name if isinstance(name, str) else name[0] for name in info["mismatched_keys"]]
    # diffusers believes the index of a sharded model; a tensor that only the index names stays without data
    missing = {*info["missing_keys"], *(name for name, p in model.named_parameters() if p.is_meta)} - {*mismatched}
    for names, fault in (
        (missing, "lack"),
        (mismatched, "have in another shape"),
        (unexpected, "have, but the model does not,"),
    ):
        if names := sorted(names):
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(f"the weights of {cls.__name__} in '{source}' {fault} {', '.join(names[:3])}{more}")
    return model
