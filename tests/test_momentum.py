"""The teacher remembers: queues wrap round, averages are averages, and files come back as they were."""

import copy

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from albef_hf import AlbefForPreTraining, AlbefForQuestionAnswering, FeatureQueue, MomentumTeacher
from albef_hf.momentum import device_decides, lerp_if
from albef_hf.outputs_albef import AlbefTeacherOutput


def numbered(start: int, count: int) -> torch.Tensor:
    return torch.arange(start, start + count, dtype=torch.float32)[:, None].expand(-1, 2)


def test_the_queue_starts_with_random_unit_vectors():
    queue = FeatureQueue(100, 8)
    assert torch.allclose(queue.image_features.norm(dim=1), torch.ones(100))
    assert not torch.equal(queue.image_features, queue.text_features)


def test_the_queue_wraps_round_with_any_batch_size():
    queue = FeatureQueue(5, 2)
    queue.enqueue(numbered(0, 3), -numbered(0, 3))
    assert queue.pointer == 3
    queue.enqueue(numbered(3, 4), -numbered(3, 4))
    assert queue.pointer == 2
    assert queue.image_features[:, 0].tolist() == [5, 6, 2, 3, 4]
    assert torch.equal(queue.text_features, -queue.image_features)
    assert (queue.ids == -100).all()
    # More than it holds: the newest stay.
    queue.enqueue(numbered(10, 12), numbered(10, 12), torch.arange(10, 22))
    assert sorted(queue.image_features[:, 0].tolist()) == [17, 18, 19, 20, 21]
    assert torch.equal(queue.ids, queue.image_features[:, 0].long())
    queue.enqueue(numbered(30, 2), numbered(30, 2), torch.tensor([7, 8]))
    assert torch.equal(queue.ids[queue.image_features[:, 0] >= 30], torch.tensor([7, 8]))


def test_a_queue_of_nothing_is_allowed(model, batch):
    teacher = MomentumTeacher(model, queue_size=0)
    outputs = teacher(**batch)
    assert outputs.image_queue.shape == (0, 16)
    assert torch.isfinite(model(**batch, teacher_outputs=outputs, alpha=0.4).loss)
    teacher.enqueue(outputs.image_embeds, outputs.text_embeds)


def test_the_average_by_hand(model):
    teacher = MomentumTeacher(model, momentum=0.75, queue_size=4)
    with torch.no_grad():
        model.itm_head.weight.fill_(2.0)
        teacher.model.itm_head.weight.fill_(1.0)
    teacher.update(model)
    assert torch.allclose(teacher.model.itm_head.weight, torch.tensor(1.25))
    assert not any(weight.requires_grad for weight in teacher.parameters())


@pytest.mark.parametrize("is_finite", [True, False])
def test_a_step_that_is_not_finite_changes_nothing(model, is_finite):
    teacher = MomentumTeacher(model, queue_size=4)
    expected = copy.deepcopy(teacher)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.rand_like(weight))
    keys = torch.full((3, 16), 2.0 if is_finite else torch.nan)
    if is_finite:
        expected.enqueue(keys, keys)
        expected.update(model)
    teacher.enqueue(keys, keys, is_finite=torch.tensor(is_finite))
    teacher.update(model, torch.tensor(is_finite))
    for name, value in expected.state_dict().items():
        assert torch.equal(teacher.state_dict()[name], value), name


def test_a_condition_on_the_device_gives_the_same_average():
    averages = [torch.randn(5, 3), torch.randn(7)]
    weights = [torch.randn(5, 3), torch.randn(7)]
    expected = [average.clone() for average in averages]
    lerp_if(torch.tensor(False), averages, weights, 0.005)
    assert all(torch.equal(*pair) for pair in zip(averages, expected, strict=True))
    torch._foreach_lerp_(expected, weights, 0.005)
    lerp_if(torch.tensor(True), averages, weights, 0.005)
    assert all(torch.equal(*pair) for pair in zip(averages, expected, strict=True))
    assert not device_decides(averages, weights)  # on a CPU, whose memory is there to be read


def test_the_average_does_not_depend_on_memory_layouts(model):
    teacher = MomentumTeacher(model, momentum=0.0, queue_size=4)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1)
    teacher.update(model.to(memory_format=torch.channels_last), torch.tensor(True))
    for average, weight in zip(teacher.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(average, weight)


def test_the_teacher_of_a_bfloat16_student_moves(model):
    teacher = MomentumTeacher(model.to(torch.bfloat16), momentum=0.995, queue_size=4)
    before = teacher.model.itm_head.weight.clone()
    with torch.no_grad():
        model.itm_head.weight += 0.01
    teacher.update(model)
    assert before.dtype == torch.float32
    assert (teacher.model.itm_head.weight - before).abs().mean() > 1e-5


def test_weights_in_low_precision_give_the_same_targets(model, batch, tmp_path):
    teacher = MomentumTeacher(model, momentum=0.75, queue_size=4).eval()
    names = teacher.state_dict().keys()
    full_precision = teacher(**batch)

    def targets() -> AlbefTeacherOutput:
        with torch.autocast("cpu", torch.bfloat16):
            return teacher(**batch)

    def assert_equal(found: AlbefTeacherOutput, expected: AlbefTeacherOutput) -> None:
        for name in ("image_embeds", "text_embeds", "logits"):
            assert torch.equal(found[name], expected[name]), name

    before = targets()
    teacher.keep_low_precision(torch.bfloat16)
    assert_equal(targets(), before)
    assert_equal(teacher(**batch), full_precision)  # without autocast
    state = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    assert state.keys() == names

    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    teacher.update(model)
    after = targets()
    expected = MomentumTeacher(model, queue_size=4).eval()
    expected.load_state_dict(teacher.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        assert_equal(after, expected(**batch))
    assert not torch.equal(after.logits, before.logits)
    teacher.save_pretrained(tmp_path)
    assert load_file(tmp_path / "momentum.safetensors").keys() < names
    teacher.load_state_dict(state)
    assert_equal(targets(), before)


def test_no_weight_of_a_linear_layer_is_cast_in_a_call(model, batch):
    teacher = MomentumTeacher(model, queue_size=4).eval()
    names = {weight.data_ptr(): name for name, weight in teacher.model.named_parameters()}

    class Casts(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.weights: set[str] = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            is_cast = func._schema.name in ("aten::to", "aten::_to_copy")
            if is_cast and args[0].data_ptr() in names:
                self.weights.add(names[args[0].data_ptr()])
            return func(*args, **(kwargs or {}))

    with torch.autocast("cpu", torch.bfloat16):
        with Casts() as before:
            teacher(**batch)
        teacher.keep_low_precision(torch.bfloat16)
        with Casts() as after:
            teacher(**batch)
    patches = "albef.vision_model.embeddings.patch_embedding"  # a convolution
    assert after.weights == {f"{patches}.weight", f"{patches}.bias"} < before.weights


def test_dropout_is_on_unless_switched_off(config, batch):
    config.text_config.hidden_dropout_prob = 0.5
    teacher = MomentumTeacher(AlbefForPreTraining(config), queue_size=4)
    assert not torch.equal(teacher(**batch).text_embeds, teacher(**batch).text_embeds)
    teacher.eval()
    assert torch.equal(teacher(**batch).text_embeds, teacher(**batch).text_embeds)


def test_logits_that_have_no_effect_are_not_computed(model, batch):
    teacher = MomentumTeacher(model, queue_size=4)
    assert teacher(**batch, alpha=0.0).logits is not None  # dropout draws the random numbers that it always drew
    teacher.eval()
    without, with_logits = teacher(**batch, alpha=0.0), teacher(**batch, alpha=0.4)
    assert without.logits is None and torch.equal(with_logits.logits, teacher(**batch).logits)
    for name in ("image_embeds", "text_embeds", "image_queue"):
        assert torch.equal(without[name], with_logits[name]), name
    losses = [model(**batch, teacher_outputs=outputs, alpha=0.0).loss_mlm for outputs in (without, with_logits)]
    assert torch.equal(*losses)


def test_saved_and_loaded_it_is_the_same(model, batch, config, tmp_path):
    teacher = MomentumTeacher(model, queue_size=6)
    with torch.no_grad():
        for weight in teacher.model.parameters():
            weight += 0.01 * torch.randn_like(weight)
    outputs = teacher(**batch)
    teacher.enqueue(outputs.image_embeds, outputs.text_embeds)
    model.save_pretrained(tmp_path)
    teacher.save_pretrained(tmp_path)

    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "queue" in name or "teacher" in name]  # noqa: SIM118
    student = AlbefForPreTraining.from_pretrained(tmp_path)
    loaded = MomentumTeacher.from_pretrained(tmp_path, student)
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    config.projection_dim = 8
    with pytest.raises(ValueError, match="does not fit the student"):
        MomentumTeacher.from_pretrained(tmp_path, AlbefForPreTraining(config))


def test_a_saved_queue_stays_and_where_there_is_none_the_option_counts(model, tmp_path):
    for saved, wanted, there in ((0, 0, 0), (0, 5, 5), (6, 0, 6), (6, 5, 6)):
        MomentumTeacher(model, queue_size=saved).save_pretrained(tmp_path)
        teacher = MomentumTeacher.from_pretrained(tmp_path, model, queue_size=wanted)
        assert len(teacher.queue.image_features) == len(teacher.queue.ids) == there


TEXT = "contrastive_head.text_projection.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda weights: weights | {f"model.{TEXT}": torch.zeros(3, 4)}, rf"{TEXT} \(\(3, 4\) instead of \(16, 32"),
        (lambda weights: {key.replace("text_proj", "words"): value for key, value in weights.items()},
         rf"missing: .*{TEXT}; unexpected: .*contrastive_head.wordsection.weight"),
        (lambda weights: {key: value for key, value in weights.items() if TEXT not in key}, f"missing: {TEXT}. Pass"),
        (lambda weights: {}, "has no weights"),
        (lambda weights: None, "momentum.safetensors is empty: download it or write it again"),
        (lambda weights: b"{}", "momentum.safetensors is damaged after 2 bytes"),
    ],
    ids=["shape", "renamed", "incomplete", "nothing", "empty", "damaged"],
)  # fmt: skip
def test_what_does_not_fit_is_named(model, tmp_path, damage, message):
    MomentumTeacher(model, queue_size=6).save_pretrained(tmp_path)
    file = tmp_path / "momentum.safetensors"
    weights = damage(load_file(file))
    if isinstance(weights, dict):
        save_file(weights, file)
    else:
        file.write_bytes(weights or b"")
    with pytest.raises(ValueError, match=message):
        MomentumTeacher.from_pretrained(tmp_path, model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 1.5}, "between 0 and 1"),
        ({"momentum": float("nan")}, "between 0 and 1"),
        ({"queue_size": -1}, "queue_size is -1: pass"),
    ],
)
def test_a_momentum_that_is_no_share_and_a_queue_below_nothing_are_refused(settings, message, model):
    with pytest.raises(ValueError, match=message):
        MomentumTeacher(model, **settings)


def test_a_queue_below_nothing_is_refused_where_there_is_none(config):
    with pytest.raises(ValueError, match="queue_size is -1"):
        MomentumTeacher(AlbefForQuestionAnswering(config), queue_size=-1)


class Wrapper(torch.nn.Module):
    """As `DistributedDataParallel` and PEFT hold a model: named attributes of it are passed on or are not there."""

    def __init__(self, module: torch.nn.Module):
        super().__init__()
        self.module = module


@pytest.mark.parametrize("wrap", [lambda model: torch.compile(model, backend="eager"), Wrapper, torch.nn.DataParallel])
def test_a_student_is_taken_out_of_its_wrapper(wrap, model, batch, tmp_path):
    teacher = MomentumTeacher(wrap(model), momentum=0.75, queue_size=24)
    assert len(teacher.queue.image_features) == 24 and type(teacher.model) is AlbefForPreTraining
    assert teacher(**batch).image_embeds.shape == (4, 16)
    with torch.no_grad():
        model.itm_head.weight.fill_(2.0)
        teacher.model.itm_head.weight.fill_(1.0)
    teacher.update(wrap(model))
    assert torch.allclose(teacher.model.itm_head.weight, torch.tensor(1.25))
    teacher.save_pretrained(tmp_path)
    loaded = MomentumTeacher.from_pretrained(tmp_path, wrap(model)).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in teacher.state_dict().items())


def test_what_has_no_teacher_is_refused(model):
    with pytest.raises(ValueError, match="AlbefModel has no get_teacher_outputs: pass a model with a head"):
        MomentumTeacher(model.albef)


def test_the_queue_of_a_float64_student_is_float64(model):
    queue = MomentumTeacher(model.double(), queue_size=4).queue
    assert queue.image_features.dtype == queue.text_features.dtype == torch.float64 and queue.ids.dtype == torch.int64
