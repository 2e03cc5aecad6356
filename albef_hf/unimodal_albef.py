"""Image encoder and text encoder together, which all models without a head start with."""

from torch import nn
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithCrossAttentions

from .configuration_albef import AlbefConfig
from .encoders_albef import AlbefPreTrainedModel, AlbefTextModel, AlbefVisionModel
from .image_encoder_albef import AlbefImageEncoder
from .initialization_albef import add_adapters
from .outputs_albef import AlbefModelOutput, attention_outputs


class AlbefUnimodalEncoders(AlbefPreTrainedModel):
    """Image encoder and text encoder; the base class of the models for one image, for two, and for captions."""

    text_model_class = AlbefTextModel

    def __init__(self, config: AlbefConfig):
        super().__init__(config)
        config.check_image_settings()  # again, since loading may have changed the settings
        if config.has_albef_vit:
            self.vision_model = AlbefVisionModel._from_config(config.vision_config)
        else:
            self.vision_model = AlbefImageEncoder(config)
        self.text_model = self.text_model_class._from_config(config.text_config)
        if config.lora_config:
            add_adapters(self, config.lora_config)

    def get_input_embeddings(self) -> nn.Module:
        """Return the word embeddings."""
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embeddings."""
        self.text_model.set_input_embeddings(value)

    @staticmethod
    def _make_output(
        images: BaseModelOutput, texts: BaseModelOutput, fused: BaseModelOutputWithCrossAttentions
    ) -> AlbefModelOutput:
        """Combine the outputs of the three encoders."""
        return AlbefModelOutput(
            last_hidden_state=fused.last_hidden_state,
            image_hidden_states=images.last_hidden_state,
            text_hidden_states=texts.last_hidden_state,
            vision_model_output=images,
            text_model_output=texts,
            multimodal_model_output=fused,
            **attention_outputs(fused),
        )


__all__ = ["AlbefUnimodalEncoders"]
