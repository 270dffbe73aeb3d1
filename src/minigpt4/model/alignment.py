"""The aligned model: what MiniGPT-4 is (paper, section 3), assembled from frozen parts; loading and saving it.

The network is transformers' BLIP-2 graph; this file puts parts into it and names its steps. It knows nothing about
datasets, training loops, sampling or conversations.

Here *features* always means what the frozen vision side gives for an image: the Q-Former's output, before the
projection.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from minigpt4.errors import UserError
from minigpt4.files import new_directory
from minigpt4.model import parts, sources
from minigpt4.model.adapters import LoRA, Trained
from minigpt4.model.export import read_export, write_export, write_parts
from minigpt4.model.graph import fresh_projection, hide_image_token, make_graph, put_tensors
from minigpt4.model.packed import Packer
from minigpt4.model.precision import Placement, pack_4bit_layers
from minigpt4.model.record import (
    ADAPTERS_FILE,
    ALIGNMENT_FILE,
    FORMAT_VERSION,
    PROJECTION_FILE,
    Origin,
    check_origin,
    load_tensors,
    parts_inside,
    portable,
    read_record,
)
from minigpt4.model.vision import VisionSide
from minigpt4.prompts.encode import check_template
from minigpt4.prompts.own import choose_template, end_at_stop
from minigpt4.prompts.templates import TEMPLATES, Template, get_template

if TYPE_CHECKING:
    from transformers import Blip2ForConditionalGeneration

    from minigpt4.generation.chat import Chat

STAGES = (1, 2)


class MiniGPT4(VisionSide):
    """A frozen vision tower and Q-Former, a frozen LLM, and the linear projection between them.

    Attributes: `blip2` (the network), `tokenizer`, `image_processor`, `template` (the chat format it was aligned for),
    `image_token_id`, `origin`, `stage` (the last stage that it was trained in, or None), `placement` (where it
    lives and in which numbers; None if whoever put it together did not say), `trained` (what its stages train), `lora`
    (LoRA matrices beside the LLM's own; None in all but that variant), `compiled` (whether its training is:
    `minigpt4.training.speed`).
    """

    def __init__(
        self,
        blip2: Blip2ForConditionalGeneration,
        tokenizer: Any,
        image_processor: Any,
        template: Template,
        origin: Origin,
        stage: int | None = None,
        placement: Placement | None = None,
        trained: Trained = Trained(),  # noqa: B008  # frozen
    ) -> None:
        super().__init__(blip2, image_processor, origin, trained)
        self.tokenizer = tokenizer
        self.template = template
        self.stage = stage
        self.placement = placement
        self.lora = LoRA(blip2.language_model, trained.lora_rank) if trained.lora_rank else None
        self.image_token_id: int = blip2.config.image_token_id
        self.compiled = False
        pack_4bit_layers(blip2, allowed=True)
        # Not only suppressed when a token is chosen: it must take no probability from the words either.
        blip2.language_model.register_forward_hook(partial(hide_image_token, self.image_token_id))
        self.requires_grad_(False)
        self.eval()

    # -- the forward pass, step by step: encode -> project -> embed -> LLM -> logits

    def project(self, features: Tensor) -> Tensor:
        """Features (n, q, d_qformer) -> soft prompts for the LLM (n, q, d_llm): the one trained layer."""
        projection = self.blip2.language_projection
        weight = next(projection.parameters())
        return projection(features.to(weight)).to(self.dtype)  # to the weight's device and dtype

    def embed(self, input_ids: Tensor, features: Tensor | None) -> Tensor:
        """Token ids (b, t) -> LLM input embeddings (b, t, d_llm), with the projected features in the images' places.

        `features` (n, q, d_qformer) are those of all images of the batch in reading order; each fills the next q
        places of `image_token_id`. Raises ValueError if places and features do not fit.
        """
        ids = input_ids.to(self.device)
        embeddings = self.blip2.language_model.get_input_embeddings()(ids)
        places = (ids.flatten() == self.image_token_id).nonzero()[:, 0]
        vectors = 0 if features is None else features.shape[0] * features.shape[1]
        if len(places) != vectors:
            raise ValueError(f"{len(places)} image places in input_ids, but {vectors} vectors in features")
        if features is None:
            return embeddings
        images = self.project(features).flatten(0, 1)
        return embeddings.flatten(0, 1).index_copy(0, places, images).view_as(embeddings)

    def hidden_states(self, input_ids: Tensor, features: Tensor | None, attention_mask: Tensor | None = None) -> Tensor:
        """Token ids (b, t) and features -> the LLM's last hidden states (b, t, d_llm), without the language head."""
        embeddings = self.embed(input_ids, features)
        body = self.blip2.language_model.base_model
        return body(inputs_embeds=embeddings, attention_mask=attention_mask, use_cache=False).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., d_llm) -> logits (..., vocabulary); `<image>` gets -inf, for it is no word."""
        llm = self.blip2.language_model
        logits = llm.get_output_embeddings()(hidden)
        if cap := getattr(llm.config, "final_logit_softcapping", None):  # Gemma's
            logits = torch.tanh(logits / cap) * cap
        image_column = torch.arange(logits.shape[-1], device=logits.device) == self.image_token_id
        return logits.masked_fill(image_column, float("-inf"))

    @cached_property
    def packer(self) -> Packer | None:
        """Runs the LLM on rows laid end to end; None if it cannot, which is tried when this is first asked for."""
        return Packer.of(self.blip2.language_model)

    # -- talking to it

    def generate(self, *args: Any, **settings: Any) -> list[str]:
        """Answers to prompts about images, in batches: see `minigpt4.generation.engine.generate`."""
        from minigpt4.generation.engine import generate

        return generate(self, *args, **settings)

    def start_chat(self, template: str | Template | None = None) -> Chat:
        """A conversation in the model's chat format, or in another one."""
        from minigpt4.generation.chat import Chat

        return Chat(self, get_template(template or self.template))

    # -- facts about it

    @property
    def has_qformer(self) -> bool:
        """False for the paper's variant that projects the patches themselves (`minigpt4.model.graph`)."""
        return self.blip2.config.qformer_config.num_hidden_layers > 0

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the frozen LLM."""
        return self.blip2.language_model.get_input_embeddings().weight.dtype

    @property
    def llm_fingerprint(self) -> str:
        """Changes when the LLM's weights do."""
        return self.origin.llm_fingerprint

    def train(self, mode: bool = True) -> MiniGPT4:
        """Training mode for what is trained only: frozen parts have no dropout, ever."""
        super().train(False)
        self.training = mode
        for module in self.modules():
            own = list(module.parameters(recurse=False))
            if own and all(parameter.requires_grad for parameter in own):
                module.training = mode
        return self

    # -- making, loading, saving

    @classmethod
    def assemble(
        cls,
        vision_qformer: str | Path,
        llm: str | Path,
        *,
        template: str | Template | None = None,
        qformer: bool = True,
        trained: Trained = Trained(),  # noqa: B008  # frozen
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        load_in: str | None = None,
        max_memory: Mapping[int | str, int | str] | None = None,
        seed: int = 0,
    ) -> MiniGPT4:
        """Frozen parts and a fresh projection, drawn from `seed`.

        `vision_qformer` and `llm` are directories, hub ids or pocket names. `template` defaults to the LLM's own chat
        format, and to `vicuna_v0` if it has none. Without `qformer` the projection reads the tower's patches, four at a
        time (paper, section 4.4); `trained` names its other variants. For `dtype`, `device`, `load_in` and `max_memory`
        see `from_pretrained`. Raises UserError for parts that do not exist or are not what they should be.
        """
        placement = Placement.of(dtype, device, load_in, max_memory)
        if isinstance(template, str):
            template = get_template(template)  # a wrong name is known before anything is loaded
        vision = parts.load_vision_qformer(vision_qformer, qformer)
        language = parts.load_llm(llm, placement.dtype, placement)
        template = choose_template(template, language.tokenizer, str(llm))
        check_template(language.tokenizer, template, str(llm))
        blip2 = make_graph(vision, language.model.config, language.image_token_id)
        put_tensors(blip2, vision, str(vision_qformer), placement.dtype)
        blip2.language_model = language.model
        end_at_stop(language.model, language.tokenizer, template)
        blip2.language_projection = fresh_projection(vision, language.model.config, seed, trained.projection_layers)
        blip2.query_tokens.data = blip2.query_tokens.data.to(placement.device)
        for part in (blip2.vision_model, blip2.qformer, blip2.language_projection):  # the LLM is in its place
            part.to(placement.device)
        origin = Origin(portable(vision_qformer), vision.fingerprint, portable(llm), language.fingerprint)
        return cls(blip2, language.tokenizer, vision.image_processor, template, origin, None, placement, trained)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        load_in: str | None = None,
        max_memory: Mapping[int | str, int | str] | None = None,
    ) -> MiniGPT4:
        """The model of an alignment (its directory, or `pocket`, `pocket-stage1`, `pocket-blip2`) or of an export.

        `dtype` defaults to bfloat16 on CUDA and to float32 elsewhere, `device` to CUDA if there is one. `load_in`
        ("8bit", "4bit", "fp8" or "int8"; not on every device) quantises the LLM's linear layers while they are read.
        With `device="auto"` the LLM's layers fill the GPUs, then the CPU's memory, then the disk, up to `max_memory`
        (such as `{0: "10GiB", "cpu": "20GiB"}`). Raises UserError if anything is missing, broken, or does not fit
        together.
        """
        source = sources.resolve(name_or_path)
        origin, template, stage, qformer, trained = read_record(source)
        if sources.find_file(source, "config.json"):  # an export holds the frozen parts too
            placement = Placement.of(dtype, device, load_in, max_memory)
            blip2, tokenizer, image_processor = read_export(source, placement)
            return cls(blip2, tokenizer, image_processor, template, origin, stage, placement)
        model = cls.assemble(
            origin.vision_qformer,
            origin.llm,
            template=template,
            qformer=qformer,
            trained=trained,
            dtype=dtype,
            device=device,
            load_in=load_in,
            max_memory=max_memory,
        )
        _put_projection(model, sources.find_file(source, PROJECTION_FILE), str(name_or_path))
        check_origin(str(name_or_path), origin, model.origin)
        if model.adapter_names():
            adapters = sources.find_file(source, ADAPTERS_FILE)
            model.put_adapters(load_tensors(adapters, str(name_or_path), ADAPTERS_FILE), str(name_or_path))
        model.stage = stage
        return model

    def save_pretrained(self, directory: str | Path, overwrite: bool = False) -> None:
        """Write the alignment: the projection, and a record of the frozen parts, which are named but not copied.

        Raises UserError if `directory` exists and is not empty; `overwrite` replaces an earlier alignment.
        """
        with new_directory(directory, overwrite=overwrite, marker=ALIGNMENT_FILE) as new:
            self._write_projection(new)
            self._write_adapters(new)
            self.write_record(new)

    def export(self, directory: str | Path, overwrite: bool = False) -> None:
        """Write a whole Hugging Face directory, which transformers loads with no code of ours and answers the same.

        Of the variants without a Q-Former or with three projection layers, for which transformers has no model, it
        writes the alignment with its parts beside it: `vision`, `llm`, and the projection. LoRA is added to the LLM's
        weights. Raises UserError if `directory` exists and is not empty, or if the LLM is quantised or lies on the
        disk; `overwrite` replaces an earlier export.
        """
        if self.placement and (self.placement.load_in or self.placement.spread):
            held = f"load_in={self.placement.load_in!r}" if self.placement.load_in else "device='auto'"
            raise UserError(f"a model loaded with {held} cannot be exported whole; load it without that, then export")
        merged = self.lora.merged() if self.lora else nullcontext()
        with new_directory(directory, overwrite=overwrite, marker=ALIGNMENT_FILE) as new, merged:
            if self.has_qformer and self.trained.projection_layers == 1:
                write_export(self, new)
                origin = self.origin
                if self.trained.qformer:  # features of the Q-Former as it was are not this one's
                    origin = replace(origin, vision_fingerprint=self.trained_vision())
                self.write_record(new, origin, Trained())
            else:
                write_parts(self, new)
                self._write_projection(new)
                inside = parts_inside(new, self.has_qformer)
                self.write_record(new, inside, Trained(self.trained.projection_layers))

    def _write_projection(self, directory: Path) -> None:
        tensors = {name: t.detach().cpu() for name, t in self.blip2.language_projection.state_dict().items()}
        save_file(tensors, directory / PROJECTION_FILE, metadata={"format": "pt"})

    def _write_adapters(self, directory: Path) -> None:
        tensors = {name: self.get_parameter(name).detach().cpu().contiguous() for name in self.adapter_names()}
        if tensors:
            save_file(tensors, directory / ADAPTERS_FILE, metadata={"format": "pt"})

    def write_record(self, directory: Path, origin: Origin | None = None, trained: Trained | None = None) -> None:
        """Write `alignment.json`; `origin` and `trained` take the place of the model's own."""
        text = json.dumps(self._record(origin or self.origin, trained or self.trained), indent=2) + "\n"
        (directory / ALIGNMENT_FILE).write_text(text, encoding="utf-8")

    def _record(self, origin: Origin, trained: Trained) -> dict[str, Any]:
        known = TEMPLATES.get(self.template.name) == self.template
        return {
            "format_version": FORMAT_VERSION,
            "origin": asdict(origin),
            "template": self.template.name if known else asdict(self.template),
            "image_size": self.blip2.config.vision_config.image_size,
            "num_query_tokens": self.num_query_tokens,
            "qformer": self.has_qformer,
            "stage": self.stage,
            **({"trained": asdict(trained)} if trained != Trained() else {}),
        }


def set_trainable(model: MiniGPT4, stage: int) -> list[str]:
    """Freeze everything but what the stages train, and return the names of the trained parameters.

    That is the projection, and nothing else (paper, sections 3.1 and 3.3), but for the variants (`model.trained`).

    Trained parameters are kept in float32 whatever the dtype of the frozen ones: steps of 1e-4 vanish in bfloat16.
    """
    if stage not in STAGES:
        raise UserError(f"there is no stage {stage!r}; the stages are {', '.join(map(str, STAGES))}")
    pack_4bit_layers(model, allowed=False)
    trained, adapters = [], set(model.adapter_names())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("blip2.language_projection.") or name in adapters)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            trained.append(name)
    model.stage = stage
    return trained


def _put_projection(model: MiniGPT4, path: Path | None, name: str) -> None:
    projection = model.blip2.language_projection
    tensors = load_tensors(path, name, PROJECTION_FILE)
    expected = {key: tuple(t.shape) for key, t in projection.state_dict().items()}
    found = {key: tuple(t.shape) for key, t in tensors.items()}
    if found != expected:
        raise UserError(
            f"{name}: its projection {found.get('weight')} does not fit the parts that it names: "
            f"Q-Former {model.origin.vision_qformer} and LLM {model.origin.llm} need {expected.get('weight', expected)}"
        )
    projection.load_state_dict(tensors)
