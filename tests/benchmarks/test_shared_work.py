"""What is shared or left out to be fast changes no number: the package against `benchmarks/plain.py`, in float64."""

import pytest
import torch
from original import assert_close
from plain import PlainForPreTraining, plain_ranking, plain_retrieval

from albef_hf import AlbefForPreTraining, AlbefForQuestionAnswering, MomentumTeacher
from albef_hf.retrieval_albef import best_matches, encode_tokenized_texts, rerank


@pytest.fixture
def still(config):
    """No dropout, and weights at which different texts and images give different numbers."""
    config.text_config.hidden_dropout_prob = config.text_config.attention_probs_dropout_prob = 0.0
    config.initializer_range = config.text_config.initializer_range = config.vision_config.initializer_range = 0.2
    return config


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_losses_and_gradients_of_a_pretraining_step(still, batch, alpha, layers):
    still.text_config.num_multimodal_layers = layers
    results = []
    state = AlbefForPreTraining(still).state_dict()
    for kind in (PlainForPreTraining, AlbefForPreTraining):
        student = kind(still).double().train()
        student.load_state_dict(state)
        torch.manual_seed(1)
        teacher = MomentumTeacher(student, queue_size=8).double()
        inputs = {**batch, "pixel_values": batch["pixel_values"].double()}
        outputs = student(**inputs, teacher_outputs=teacher(**inputs), alpha=alpha)
        outputs.loss.backward()
        results.append((outputs, dict(student.named_parameters())))
    (plain, plain_weights), (ours, weights) = results
    for name in ("loss", "loss_itc", "loss_itm", "loss_mlm", "itm_logits"):
        assert_close(ours[name], plain[name], 1e-12, name)
    for name, weight in weights.items():
        torch.testing.assert_close(weight.grad, plain_weights[name].grad, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("layers", [1, 2, 3])  # of three, the middle one attends among texts of different lengths
def test_reranked_scores(still, layers):
    still.text_config.num_multimodal_layers = layers
    model = AlbefForPreTraining(still).eval()
    size = still.vision_config.image_size
    pixel_values = torch.randn(5, 3, size, size)
    input_ids = torch.randint(1000, 2000, (9, 12))
    mask = (torch.arange(12) < torch.randint(2, 13, (9, 1))).long()
    plain_of_images, plain_of_texts = plain_retrieval(model, pixel_values, input_ids, mask, k=3)
    with torch.no_grad():
        images = model.get_image_features(pixel_values)
    texts = encode_tokenized_texts(model, input_ids, mask)
    of_images = best_matches(images.pooler_output, texts.embeds, 3)[1]
    of_texts = best_matches(texts.embeds, images.pooler_output, 3)[1]
    states = enumerate(images.last_hidden_state.split(1))
    image_logits, text_logits = rerank(model, states, texts, of_images, of_texts)
    found = ((plain_of_images, image_logits, of_images), (plain_of_texts, text_logits, of_texts))
    for plain, logits, numbers in found:
        ours = torch.full_like(plain, -100).scatter(1, numbers, logits.diff(dim=2).squeeze(2))
        assert_close(ours, plain, 1e-6, "scores")
        assert torch.equal(ours.argsort(1, descending=True), plain.argsort(1, descending=True))


def test_ranked_answers(still):
    model = AlbefForQuestionAnswering(still).eval()
    size = still.vision_config.image_size
    questions = torch.randint(1000, 2000, (3, 7))
    mask = (torch.arange(7) < torch.tensor([[4], [7], [5]])).long()
    answers = torch.randint(1000, 2000, (20, 5))
    answers[:, 0] = 101
    lengths = torch.randint(3, 6, (20, 1))
    answers = answers.scatter(1, lengths - 1, 102).masked_fill(torch.arange(5) >= lengths, 0)
    pixel_values = torch.randn(3, 3, size, size)
    rows, probabilities = plain_ranking(model, questions, mask, pixel_values, answers, k=6)
    ours, our_probabilities = model.rank_answers(questions, pixel_values, answers, mask, top_k=6)
    assert torch.equal(ours, rows)
    assert_close(our_probabilities, probabilities, 1e-5, "probabilities")
