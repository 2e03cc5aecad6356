"""Run exported graphs by onnxruntime, with NumPy and without torch."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


class OnnxModel:
    """The graphs of a folder that `albef export` wrote.

    Args:
        folder: The folder.
        session_options: Options of onnxruntime, such as the number of threads.

    Attributes:
        config: The configuration of the model, as in its `config.json`.
    """

    def __init__(self, folder: str | os.PathLike, session_options: onnxruntime.SessionOptions | None = None):
        self.config: dict[str, Any] = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
        self.sessions = {
            path.stem: onnxruntime.InferenceSession(path, session_options)
            for path in sorted(Path(folder).glob("*.onnx"))
        }

    def run(self, name: str, *inputs: np.ndarray) -> Any:
        """Run a graph; return its output, or a list of several."""
        session = self.sessions[name]
        names = [argument.name for argument in session.get_inputs()]
        outputs = session.run(None, dict(zip(names, inputs, strict=True)))
        return outputs if len(outputs) > 1 else outputs[0]

    def _write(self, ids: np.ndarray, decoder: str, *inputs: np.ndarray, max_new_tokens: int) -> np.ndarray:
        """Append the most probable token to each row of ids, one after the other, until all rows have `[SEP]`."""
        text = self.config["text_config"]
        is_complete = np.zeros(len(ids), bool)
        for _ in range(max_new_tokens):
            logits = self.run(decoder, ids, *inputs)
            tokens = np.where(is_complete, text["pad_token_id"], logits[:, -1].argmax(-1))
            ids = np.concatenate([ids, tokens[:, None]], axis=1)
            is_complete |= tokens == text["eos_token_id"]
            if is_complete.all():
                break
        return ids


class OnnxRetrieval(OnnxModel):
    """Contrast (ITC) and matching (ITM) of a pretraining or retrieval model.

    Example:
        ```python
        processor = AlbefProcessor.from_pretrained("albef-onnx")
        model = OnnxRetrieval("albef-onnx")
        image_embeds, image_states = model.encode_images(**processor(images=images, return_tensors="np"))
        text_embeds, text_states = model.encode_texts(**processor(text="a red ball", return_tensors="np"))
        best = np.argsort(-(image_embeds @ text_embeds[0]))[:16]
        log_odds = model.match_images(image_states[best], text_states[0])
        ```
    """

    def encode_images(self, pixel_values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return unit features, (images, projection), and states for the matching, (images, tokens, width)."""
        embeds, states = self.run("image_encoder", pixel_values)
        return embeds, states

    def encode_texts(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return unit features, (texts, projection), and states of each text without padding, (tokens, width)."""
        embeds, states = self.run("text_encoder", input_ids, attention_mask)
        return embeds, [rows[: mask.sum()] for rows, mask in zip(states, attention_mask, strict=True)]

    def match_images(self, image_states: np.ndarray, text_states: np.ndarray) -> np.ndarray:
        """Return the log-odds that each image matches a text, (images,)."""
        return _log_odds(self.run("match_images", image_states, text_states[None]))

    def match_texts(self, image_states: np.ndarray, text_states: list[np.ndarray]) -> np.ndarray:
        """Return the log-odds that each text matches an image, (texts,)."""
        states, mask = _pad(text_states)
        return _log_odds(self.run("match_texts", image_states[None], states, mask))

    def probability(self, log_odds: np.ndarray, cosines: np.ndarray) -> np.ndarray:
        """Return the probability of a match, calibrated if the model is; see `MatchCalibration`."""
        fitted = self.config.get("match_calibration") or {"scale": 1.0, "cosine_weight": 0.0, "bias": 0.0}
        return 1 / (1 + np.exp(-(fitted["scale"] * log_odds + fitted["cosine_weight"] * cosines + fitted["bias"])))


class OnnxQuestionAnswering(OnnxModel):
    """Answers to questions about images: from a list, or written by the model.

    Example:
        ```python
        processor = AlbefProcessor.from_pretrained("vqa-onnx")
        model = OnnxQuestionAnswering("vqa-onnx")
        inputs = processor(images=image, text="What color is it?", return_tensors="np")
        print(processor.decode_answers(model.generate(**inputs)))
        ```
    """

    def generate(
        self, pixel_values: np.ndarray, input_ids: np.ndarray, attention_mask: np.ndarray, max_new_tokens: int = 10
    ) -> np.ndarray:
        """Return the most probable token after the other, (questions, tokens), `[CLS]` first, padded after `[SEP]`."""
        questions = self.run("question_encoder", pixel_values, input_ids, attention_mask)
        start = np.full((len(questions), 1), self.config["text_config"]["bos_token_id"])
        return self._write(start, "answer_decoder", questions, attention_mask, max_new_tokens=max_new_tokens)

    def rank_answers(
        self,
        pixel_values: np.ndarray,
        input_ids: np.ndarray,
        attention_mask: np.ndarray,
        answer_ids: np.ndarray,
        answer_attention_mask: np.ndarray,
        top_k: int = 128,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Choose from a list of answers, as `AlbefForQuestionAnswering.rank_answers` does for one question.

        Args:
            pixel_values: An image, (1, channels, height, width).
            input_ids: A question, (1, tokens).
            attention_mask: (1, tokens).
            answer_ids: The list, (answers, tokens), from `AlbefProcessor.encode_answers`.
            answer_attention_mask: (answers, tokens), 1 for tokens and 0 for padding.
            top_k: Number of answers that are scored completely.

        Returns:
            Rows of `answer_ids`, and their probabilities among the `top_k`, each (top_k,), best first.
        """
        question = self.run("question_encoder", pixel_values, input_ids, attention_mask)
        first = _log_softmax(self.run("answer_decoder", answer_ids[:1, :1], question, attention_mask))[0, 0]
        rows = np.argsort(-first[answer_ids[:, 1]], kind="stable")[:top_k]
        ids, is_token = answer_ids[rows], answer_attention_mask[rows, 1:]
        questions = np.repeat(question, len(rows), 0), np.repeat(attention_mask, len(rows), 0)
        log_probabilities = _log_softmax(self.run("answer_decoder", ids[:, :-1], *questions))
        scores = (np.take_along_axis(log_probabilities, ids[:, 1:, None], 2)[..., 0] * is_token).sum(1)
        probabilities = np.exp(_log_softmax(scores + first[ids[:, 1]]))  # the first token counts twice
        order = np.argsort(-probabilities, kind="stable")
        return rows[order], probabilities[order]


class OnnxCaptioning(OnnxModel):
    """Captions of images.

    Example:
        ```python
        processor = AlbefProcessor.from_pretrained("captions-onnx")
        model = OnnxCaptioning("captions-onnx")
        inputs = processor(images=images, return_tensors="np")
        print(processor.decode_answers(model.generate(**inputs, prompt_ids=processor.encode_prompt())))
        ```
    """

    def generate(self, pixel_values: np.ndarray, prompt_ids: list[int], max_new_tokens: int = 20) -> np.ndarray:
        """Return the most probable token after the other, (images, tokens), the prompt first, padded after `[SEP]`.

        Args:
            pixel_values: (images, channels, height, width).
            prompt_ids: `[CLS]` and the words before each caption; a `[SEP]` among them is removed, as by the model.
            max_new_tokens: Maximum number of tokens after the prompt.
        """
        images = self.run("image_encoder", pixel_values)
        end = self.config["text_config"]["eos_token_id"]
        prompt = [prompt_ids[0], *(token for token in prompt_ids[1:] if token != end)]
        return self._write(np.tile(prompt, (len(images), 1)), "caption_decoder", images, max_new_tokens=max_new_tokens)


def _log_odds(logits: np.ndarray) -> np.ndarray:
    return logits[..., 1] - logits[..., 0]


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _pad(states: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return (texts, tokens, width) states and their mask, (texts, tokens)."""
    lengths = np.array([len(rows) for rows in states])
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
    padded = np.zeros((*mask.shape, states[0].shape[1]), states[0].dtype)
    padded[mask == 1] = np.concatenate(states)
    return padded, mask
