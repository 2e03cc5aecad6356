"""CIDEr-D, BLEU-4 and ROUGE-L of captions, as in the evaluation of COCO."""
