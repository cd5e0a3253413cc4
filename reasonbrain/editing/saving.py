"""What diffusers' users expect of saving a pipeline: to a folder, to the model hub, and by pickle.

pipe.save_pretrained("melter")
pipe.push_to_hub("someone/melter")
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from reasonbrain.checkpoint import save_model
from reasonbrain.config.schema import Config
from reasonbrain.editing.arguments import check_choices
from reasonbrain.errors import UserError
from reasonbrain.model import ReasonBrain
from reasonbrain.plugin_folder import refuse_pickle
from reasonbrain.publishing import push

UPLOAD = ("repo_id", "commit_message", "private", "token", "create_pr")


class Saving:
    """The part of ``ReasonBrainPipeline`` that saves it."""

    settings: Config

    if TYPE_CHECKING:

        @property
        def model(self) -> ReasonBrain: ...

    def save_pretrained(
        self,
        save_directory: str | Path,
        dtype: torch.dtype | None = None,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        safe_serialization: bool = True,
        push_to_hub: bool = False,
        use_flashpack: bool = False,
        **upload: Any,
    ) -> None:
        """Writes what is in the pipeline to a folder that ``from_pretrained`` loads, in safetensors.

        dtype: the precision of stored floats; None keeps that of the weights. variant: a part of the names of weight
        files. max_shard_size: the largest size of a file, ``"5GB"`` unless given. push_to_hub: also upload the folder
        to ``repo_id``, by default its name, with the further arguments of ``push_to_hub``.

        Raises UserError like ``publishing.push``, and for other file formats."""
        refuse_pickle(safe_serialization)
        if use_flashpack:
            raise UserError("use_flashpack=True is not supported; only safetensors are written")
        check_choices("argument", list(upload), UPLOAD if push_to_hub else ())
        folder = Path(save_directory)
        save_model(self.model, self.settings, folder, dtype, max_shard_size=max_shard_size, variant=variant)
        if push_to_hub:
            message = upload.pop("commit_message", None)
            push(folder, upload.pop("repo_id", folder.name), message=message, **upload)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
    ) -> str:
        """Uploads what is in the pipeline to a repository, ``org/name``, as ``publishing.push``. Returns the URL of the
        commit, or of the pull request. The other arguments: as for ``save_pretrained``."""
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, variant=variant, safe_serialization=safe_serialization)
            return push(folder, repo_id, (), private, commit_message, token, create_pr)

    def __getstate__(self) -> dict[str, Any]:
        for model in (m for m in self.model.modules() if getattr(m, "_output_capturing_hooks_installed", False)):
            del model._output_capturing_hooks_installed  # by transformers, which installs what is missing
            for module in model.modules():
                for key, hook in list(module._forward_hooks.items()):
                    if hook.__module__ == "transformers.utils.output_capturing":  # cannot be pickled
                        del module._forward_hooks[key]
        return self.__dict__
