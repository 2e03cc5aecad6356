"""transformers' own tests of processors, on that of the package; see `fetch.py`."""

import unittest

from transformers import BlipImageProcessorPil
from transformers_tests.test_processing_common import ProcessorTesterMixin

from albef_hf import AlbefProcessor
from albef_hf.data import embedded_tokenizer
from albef_hf.processing_albef import without_separator


class ProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = AlbefProcessor

    @classmethod
    def _setup_image_processor(cls):
        return BlipImageProcessorPil()

    @classmethod
    def _setup_tokenizer(cls):
        return without_separator(embedded_tokenizer())
