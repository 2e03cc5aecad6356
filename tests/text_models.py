"""Text models and tokenizers of several kinds at tiny size, trained on a few sentences in several scripts."""

import functools
import json
from pathlib import Path

import torch
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer, Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    CamembertConfig,
    CamembertForMaskedLM,
    CamembertTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaTokenizer,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaTokenizer,
)

SMALL = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
LANGUAGES = {
    "English": "Two dogs play in the snow. A red ball, isn't it? Tom and Anna ride 3 bikes in New York.",
    "German": "Zwei Hunde spielen im Schnee. Ein roter Ball, nicht wahr? Die Straße führt über Köln nach Österreich.",
    "Chinese": "两只狗在雪地里玩耍。红色的球,是吗?一个人骑着自行车穿过北京的街道。",
    "Korean": "개 두 마리가 눈 속에서 놀고 있습니다. 빨간 공이죠? 한 사람이 서울에서 자전거를 탑니다.",
    "Japanese": "二匹の犬が雪の中で遊んでいます。赤いボールですね?「東京」でデートをする人がいます。",
    "Arabic": "كلبان يلعبان في الثلج. كرة حمراء، أليس كذلك؟ يَرْكَبُ رَجُلٌ دَرَّاجَةً في القاهرة.",
}
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
KINDS = ("bert", "roberta", "xlm-roberta", "camembert")


@functools.cache
def _pieces() -> tuple[tuple[str, float], ...]:
    """Return the pieces of a SentencePiece vocabulary and their scores."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, show_progress=False, special_tokens=["<unk>"], unk_token="<unk>")
    tokenizer.train_from_iterator(LANGUAGES.values(), trainer)
    pieces = json.loads(tokenizer.to_str())["model"]["vocab"]
    return tuple((piece, score) for piece, score in pieces if piece != "<unk>")


def make_tokenizer(kind: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a cased BERT, a RoBERTa, an XLM-R or a CamemBERT."""
    if kind == "bert":
        words = BertWordPieceTokenizer(lowercase=False, strip_accents=False)
        words.train_from_iterator(LANGUAGES.values(), vocab_size=600, min_frequency=1, show_progress=False)
        return BertTokenizer(vocab=words.get_vocab(), do_lower_case=False)
    if kind == "roberta":
        pairs = ByteLevelBPETokenizer()
        settings = {"min_frequency": 1, "show_progress": False, "special_tokens": SPECIAL}
        pairs.train_from_iterator(LANGUAGES.values(), vocab_size=600, **settings)
        model = json.loads(pairs.to_str())["model"]
        return RobertaTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])
    first = [(token, 0.0) for token in SPECIAL[:4]]
    if kind == "xlm-roberta":
        return XLMRobertaTokenizer(vocab=[*first, *_pieces(), ("<mask>", 0.0)])
    unused = [("<s>NOTUSED", 0.0), ("<pad>", 0.0), ("</s>NOTUSED", 0.0), ("<unk>", 0.0), ("<unk>NOTUSED", -100.0)]
    return CamembertTokenizer(vocab=[*unused, ("<s>", 0.0), ("</s>", 0.0), *_pieces(), ("<mask>", 0.0)])


def make_text_model(kind: str, layers: int, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return a random text model with its masked-language head, at weights at which tokens matter."""
    config_class, model_class = {
        "bert": (BertConfig, BertForMaskedLM),
        "roberta": (RobertaConfig, RobertaForMaskedLM),
        "xlm-roberta": (XLMRobertaConfig, XLMRobertaForMaskedLM),
        "camembert": (CamembertConfig, CamembertForMaskedLM),
    }[kind]
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
    }
    family = {} if kind == "bert" else {"type_vocab_size": 1, "layer_norm_eps": 1e-5, "max_position_embeddings": 514}
    config = config_class(
        **SMALL, **ids, **family, num_hidden_layers=layers, vocab_size=len(tokenizer), initializer_range=0.2
    )
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = model_class(config).eval()
    for name, weight in model.named_parameters():
        if name.endswith("bias") or "orm." in name:  # zeros and ones would hide what is not copied
            torch.nn.init.normal_(weight, std=0.2)
    return model


def save_text_model(folder: Path, kind: str, layers: int) -> PreTrainedModel:
    """Save a text model with its tokenizer, as it is on the Hub, and return it."""
    tokenizer = make_tokenizer(kind)
    model = make_text_model(kind, layers, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model
