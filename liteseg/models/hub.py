"""Models in folders and repositories as Hugging Face's hub has them, with a model card."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NoReturn

from liteseg.errors import MissingExtraError

__all__ = ["Hub"]

# the hub's own name for it
_WEIGHTS = "model.safetensors"

_CARD = """\
---
{{ card_data }}
---

# {{ config.name }}

Semantic segmentation by `{{ config.name }}` of [LiteSeg](https://arxiv.org/abs/1912.06683),
{{ config.num_classes }} classes{% if config.class_names %}: {{ config.class_names | join(", ") }}{% endif %}.

Input: RGB / 255, minus (0.485, 0.456, 0.406), over (0.229, 0.224, 0.225)
{%- if config.input_scale != 1 %}, resized by {{ config.input_scale }}{% endif %}; `liteseg.predict` does that.

```python
import liteseg

model = liteseg.fuse(liteseg.create_model(weights="model.safetensors"))
labels = liteseg.predict(model, "street.jpg")
```

`{{ class_name }}.from_pretrained(...)` loads it too. Training data, scores and what the model must not be used for are
for its author to say here.
"""

try:
    from huggingface_hub import PyTorchModelHubMixin
except ImportError:

    class Hub:
        """What models have of Hugging Face's hub where the extra `hub` is not installed: errors that say so."""

        def _missing(self, *_: Any, **__: Any) -> NoReturn:
            raise MissingExtraError("a model in the hub's form", "hub", "huggingface_hub")

        save_pretrained = push_to_hub = _missing
        from_pretrained: Any = classmethod(_missing)

else:

    class Hub(
        PyTorchModelHubMixin,
        library_name="liteseg",
        pipeline_tag="image-segmentation",
        tags=["semantic-segmentation"],
        paper_url="https://arxiv.org/abs/1912.06683",
        model_card_template=_CARD,
    ):
        """Hugging Face's mixin for our models (extra `hub`).

        ``save_pretrained(folder)`` writes ``model.safetensors``, which :func:`liteseg.create_model` takes as it is,
        ``config.json`` and a model card; ``from_pretrained`` of a model's class reads it from a folder or from the hub;
        ``push_to_hub`` uploads it.
        """

        config: Any

        def _save_pretrained(self, save_directory: Path) -> None:
            from liteseg.models.checkpoint import save_weights

            save_weights(self, save_directory / _WEIGHTS)

        @classmethod
        def _from_pretrained(
            cls,
            *,
            model_id: str,
            revision: str | None,
            cache_dir: str | Path | None,
            force_download: bool,
            local_files_only: bool,
            token: str | bool | None,
            map_location: str = "cpu",
            strict: bool = True,
            **model_kwargs: Any,
        ) -> Any:
            from liteseg.models.registry import create_model

            # the weights hold the configuration, config.json is for others to read
            model_kwargs.pop("config", None)
            if os.path.isdir(model_id):
                path = os.path.join(model_id, _WEIGHTS)
            else:
                from huggingface_hub import hf_hub_download

                path = hf_hub_download(
                    model_id,
                    _WEIGHTS,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
            model = create_model(weights=path, **model_kwargs)
            if not isinstance(model, cls):
                raise ValueError(f"from_pretrained: expected a {cls.__name__} in {model_id}, got {model.config.name}")
            return model.eval().to(map_location)

        def generate_model_card(self, *args: Any, **kwargs: Any) -> Any:
            return super().generate_model_card(
                *args, config=self.config, class_name=f"liteseg.models.{type(self).__name__}", **kwargs
            )
